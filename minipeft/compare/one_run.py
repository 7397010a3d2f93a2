"""One run of a study: what it is told in, a row of numbers out."""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from minipeft.batches import ShuffledStream
from minipeft.compare.bare import LinearProbe, Untrained
from minipeft.compare.contenders import BARE, LINEAR_PROBE, method_of
from minipeft.compare.inputs import room_of, sealed_task
from minipeft.compare.machine import Meter, machine
from minipeft.compare.results import Row, number_or_none, pack
from minipeft.compare.sealed import SealedTask
from minipeft.compare.study import FINAL, Run, Study
from minipeft.compare.writing import SHOWN, judge_in, steer, tell, writer_of
from minipeft.evaluate import Score, evaluate, label_log_likelihoods, label_numbers, score_labels
from minipeft.files import read_json, write_json
from minipeft.gpt2 import GPT2
from minipeft.methods import HardPrompt, Method, trains_a_copy
from minipeft.metrics import read_metrics
from minipeft.overview import BYTES
from minipeft.perplexity import perplexity_of
from minipeft.tasks import Encoder, Example, Task
from minipeft.train_config import TrainConfig
from minipeft.training_state import TrainingDiverged, TrainResult
from minipeft.tune import REPORT_FILE, TuneConfig, encoder_for, tune
from minipeft.tuned import Tuned, attach

JUDGE_FOLDER, SCRATCH_FOLDER, TEXTS_FOLDER = "judge", "scratch", "texts"
NOTHING = {"trainable": 0, "kept": 0, "tokens": 0}
"""What an untrained contender trains, keeps and learns from."""


class Performer:
    """Performs runs of a study; of several in one process what they read is read once."""

    def __init__(self, study: Study, folder: Path, device: str, is_closed: Callable[[Run], bool], commit: str) -> None:
        self.study, self.folder, self.device, self.is_closed, self.commit = study, folder, device, is_closed, commit
        self._task = lru_cache(maxsize=4)(lambda name: sealed_task(study, name))
        self._model = lru_cache(maxsize=2)(self._load)

    def perform(self, run: Run) -> Row:
        """The row of a run. One whose training diverges has no score; its row says why.

        Its `seconds` are for training with its evaluations, or for choosing a prompt on dev, those in all for reading
        and testing, too; on a CPU they are the processor's, of all cores: others at work beside it change them little.
        """
        contender, sealed = self.study.contenders[run.contender], self._task(run.task)
        row: Row = {"key": self.study.key(run), **asdict(run), "commit": self.commit, "diverged": None}
        row["machine"], whole = machine(self.device), Meter(self.device)
        try:
            if contender.method in BARE:
                row |= self._bare(run, contender.method, sealed)
            elif contender.method == LINEAR_PROBE:
                row |= self._probe(run, sealed)
            else:
                row |= self._tuned(run, sealed)
        except TrainingDiverged as error:
            row |= {"dev": None, "diverged": str(error).split(";")[0]}
        row["read"] = run.examples or len(sealed.open.splits["train"])
        row["seconds_in_all"] = whole.row()["seconds"]
        return row

    def _bare(self, run: Run, method: str, sealed: SealedTask) -> Row:
        task, model = self._task_of(run, sealed), self._model(run.model, "float32")
        if not task.labels:
            tuned = attach(model, HardPrompt("{text}" + task.joint))
            dev = evaluate(tuned, self._encoder(tuned, task, run), task.splits["dev"]).score
            found = self._test(tuned, task, self._unsealed(run, sealed), run)
            return {"dev": dev, **NOTHING, "bytes": 0, "seconds": 0.0, **found}
        meter = Meter(self.device)
        untrained = Untrained(model, task, method)  # dev chooses here
        took = meter.row()
        on_dev = untrained.score(task.splits["dev"], untrained.answers(task.splits["dev"]))
        test = self._unsealed(run, sealed)
        answers = untrained.answers(test)
        return {
            "dev": on_dev.accuracy,
            **NOTHING,
            "bytes": untrained.nbytes,
            "seconds": took["seconds"],
            "prompt": untrained.prompt,
            "test": _label_scores(untrained.score(test, answers), task, test, answers),
            "right": _right(task, test, answers),
        }

    def _probe(self, run: Run, sealed: SealedTask) -> Row:
        contender, task, asked = self.study.contenders[run.contender], self._task_of(run, sealed), self._config(run)
        model = self._model(run.model, "float32")
        settings = {**contender.settings, **contender.trials[run.trial]}
        meter = Meter(self.device)
        probe = LinearProbe(model, task, settings["pool"], asked.room)
        config = TrainConfig(
            asked.steps, float(settings["lr"]), asked.batch_size, eval_every=asked.eval_every, seed=run.seed
        )
        with self._scratch() as out:
            row = _trained(probe.fit(config, Path(out)), out)
        kept = sum(parameter.numel() for parameter in probe.layer.parameters())
        row |= {
            "settings": settings,
            "trainable": kept,
            **_kept(kept),
            "tokens": probe.order(config).length_of(config.steps),
        }
        row |= meter.row()
        if run.stage == FINAL:
            test = self._unsealed(run, sealed)
            answers = probe.answer(test)
            score = score_labels(probe.encoder, test, answers)
            row |= {"test": _label_scores(score, task, test, answers), "right": _right(task, test, answers)}
        return row

    def _tuned(self, run: Run, sealed: SealedTask) -> Row:
        contender, task = self.study.contenders[run.contender], self._task_of(run, sealed)
        method = method_of(contender, run.trial, run.size, self._model(run.model, self.study.dtype).config)
        model = self._base(run.model, method)
        meter = Meter(self.device)
        with self._scratch() as out:
            tuned, result = tune(model, method, task, self._config(run), out)
            row, report = _trained(result, out), read_json(Path(out) / REPORT_FILE)
        settings = {**report["method"], "lr": contender.trials[run.trial]["lr"]}
        row |= {
            "settings": settings,
            "trainable": report["trainable"],
            **_kept(report["kept"]),
            "tokens": report["tokens"],
        }
        row |= meter.row()
        if run.stage == FINAL:
            row |= self._test(tuned, task, self._unsealed(run, sealed), run)
        tuned.detach()
        return row

    def _test(self, tuned: Tuned, task: Task, examples: Sequence[Example], run: Run) -> Row:
        encoder = self._encoder(tuned, task, run)
        if task.labels:
            answers = label_log_likelihoods(tuned, encoder, examples)
            score = score_labels(encoder, examples, answers)
            return {"test": _label_scores(score, task, examples, answers), "right": _right(task, examples, answers)}
        loss = evaluate(tuned, encoder, examples).loss
        row: Row = {"test": {"perplexity": number_or_none(perplexity_of(loss)), "loss": number_or_none(loss)}}
        if self.study.is_told(run.task):
            written = tell(writer_of(tuned), encoder, examples, self.study.told_inputs)
        elif self.study.is_steered(run.task):
            judge = judge_in(self.folder / JUDGE_FOLDER)
            row["judge"] = read_json(self.folder / JUDGE_FOLDER / REPORT_FILE)["dev_accuracy"]
            written = steer(writer_of(tuned), tuned.base, judge, run.task, run.seed)
        else:
            return row
        row["test"] |= {what: number_or_none(value) for what, value in written.scores.items()}
        (self.folder / TEXTS_FOLDER).mkdir(exist_ok=True)
        write_json(self.folder / TEXTS_FOLDER / f"{self.study.key(run)}.json", {"texts": written.texts})
        return {**row, "samples": written.texts[:SHOWN]}

    def _unsealed(self, run: Run, sealed: SealedTask) -> tuple[Example, ...]:
        return sealed.unseal(lambda: self.is_closed(run))

    def _scratch(self) -> tempfile.TemporaryDirectory[str]:
        """A folder for what training writes; `compete` clears away what a run that was stopped left in there."""
        (self.folder / SCRATCH_FOLDER).mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=self.folder / SCRATCH_FOLDER)

    def _encoder(self, tuned: Tuned, task: Task, run: Run) -> Encoder:
        return encoder_for(tuned, task, truncate=True, room=self._room(run))

    def _room(self, run: Run) -> int:
        """As many positions for a text as every contender of the part has, so that all read the same."""
        return room_of(self.study, self.study.part(run.part), self._model(run.model, self.study.dtype).config)

    def _config(self, run: Run) -> TuneConfig:
        trial = self.study.contenders[run.contender].trials[run.trial]
        steps = self.study.steps_of(self.study.part(run.part))
        return TuneConfig(
            steps=steps,
            batch_size=self.study.batch_size,
            lr=float(trial["lr"]),
            eval_every=min(self.study.eval_every, steps),
            save_seconds=math.inf,
            seed=run.seed,
            truncate=True,
            room=self._room(run),
        )

    def _task_of(self, run: Run, sealed: SealedTask) -> Task:
        """The open part of a task, with the training examples of a run."""
        return replace(sealed.open, splits={**sealed.open.splits, "train": self._some(run, sealed.open)})

    def _some(self, run: Run, task: Task) -> tuple[Example, ...]:
        """All training examples, or so many of them, each label in its share, drawn by the run's seed."""
        rows = task.splits["train"]
        if run.examples is None:
            return rows
        stream = ShuffledStream(len(rows), run.seed, [row.target for row in rows] if task.labels else [])
        return tuple(rows[place] for _, place in stream.batch(0, run.examples))

    def _base(self, name: str, method: Method) -> GPT2:
        """The frozen base in the study's type; where all weights are trained they stay fp32, activations take it."""
        if self.study.dtype == "float32" or not trains_a_copy(method):
            return self._model(name, self.study.dtype)
        return self._load(name, "float32").use_activations(getattr(torch, self.study.dtype))

    def _load(self, name: str, dtype: str) -> GPT2:
        place = self.study.models.get(name, name)
        return GPT2.from_pretrained(place, device=self.device, dtype=getattr(torch, dtype)).use_kernels()


def _trained(result: TrainResult, out: str) -> Row:
    """What training came to on dev: the best, and [step, score, loss] of each evaluation."""
    rows = [row for row in read_metrics(out) if "score" in row]
    curve = [(row["step"], round(row["score"], 5), round(row["dev_loss"], 4)) for row in rows]
    return {"dev": result.best_score, "best_step": result.best_step, "dev_curve": curve}


def _kept(numbers: int) -> Row:
    """What one more task costs."""
    return {"kept": numbers, "bytes": BYTES * numbers}


def _label_scores(
    score: Score, task: Task, examples: Sequence[Example], answers: Float[Tensor, "N labels"]
) -> dict[str, float | None]:
    """Accuracy; the mean of each label's own, which knowing the commonest one does not raise; and the loss."""
    right, wanted = answers.argmax(dim=1), label_numbers(task.labels, examples)
    own = [(right == wanted)[wanted == label].double().mean() for label in wanted.unique()]
    balanced = float(sum(own)) / len(own)
    return {"accuracy": score.accuracy, "balanced_accuracy": balanced, "loss": number_or_none(score.loss)}


def _right(task: Task, examples: Sequence[Example], answers: Float[Tensor, "N labels"]) -> str:
    """Which test examples were answered right, in their order; for tests that pair two contenders."""
    return pack(answers.argmax(dim=1) == label_numbers(task.labels, examples))
