"""One run of a study: what it is told in, a row of numbers out."""

import base64
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from minipeft.batches import ShuffledStream
from minipeft.compare.bare import LinearProbe, Untrained
from minipeft.compare.contenders import BARE, BEST_PROMPT, CALIBRATED, LINEAR_PROBE, MAJORITY, method_of
from minipeft.compare.machine import forget_peak, peak_bytes
from minipeft.compare.results import Row, number_or_none
from minipeft.compare.sealed import SealedTask
from minipeft.compare.study import FINAL, Run, Study, StudyError
from minipeft.compare.writing import judge_in, steer, tell
from minipeft.evaluate import Score, evaluate, label_log_likelihoods, score_labels
from minipeft.gpt2 import GPT2
from minipeft.methods import Method, trains_a_copy
from minipeft.metrics import read_metrics
from minipeft.overview import BYTES
from minipeft.perplexity import perplexity_of
from minipeft.tasks import Example, Task, open_task, task_from_file
from minipeft.tasks.writing import LABELS as STEERED
from minipeft.train_config import TrainConfig
from minipeft.training_state import TrainingDiverged
from minipeft.tune import REPORT_FILE, TuneConfig, encoder_for, tune
from minipeft.tuned import Tuned

JUDGE = "nano"
"""What a judge is finetuned from, whichever model writes."""
ONLY_LABELS = (MAJORITY, BEST_PROMPT, CALIBRATED, LINEAR_PROBE)


def sealed_task(study: Study, name: str) -> SealedTask:
    """A task of a study, one that ships or a person's own. Raises what `open_task` and `task_from_file` raise."""
    source = study.sources.get(name)
    if source is None:
        return SealedTask(open_task(name))
    return SealedTask(replace(task_from_file(source.data, source.input, source.target, source.kind), name=name))


def check_runs(study: Study) -> None:
    """Open every task, and size every contender on every model, so that what cannot run is said before anything runs.

    Raises StudyError, and what loading a task or a model raises.
    """
    for part in study.parts:
        for name in part.tasks:
            task = sealed_task(study, name).open
            if not task.labels and (wrong := [c for c in part.contenders if study.contenders[c].method in ONLY_LABELS]):
                raise StudyError(f"part {part.name}: {wrong[0]} is for tasks with labels, and {name} has none.")
            if most := max((number or 0 for number in part.examples), default=0):
                there = len(task.splits["train"])
                if most > there:
                    raise StudyError(f"part {part.name}: {name} has {there:,} training examples, fewer than {most:,}.")
        for model in part.models:
            shape = GPT2.from_pretrained(study.models.get(model, model)).config
            for contender in (study.contenders[name] for name in part.contenders):
                if contender.method not in (*BARE, LINEAR_PROBE):
                    for size in part.sizes:
                        method_of(contender, 0, size, shape)


class Performer:
    """Performs runs of a study; of several in one process what they read is read once."""

    def __init__(self, study: Study, folder: Path, device: str, is_closed: Callable[[Run], bool], commit: str) -> None:
        self.study, self.folder, self.device, self.is_closed, self.commit = study, folder, device, is_closed, commit
        self._task = lru_cache(maxsize=4)(lambda name: sealed_task(study, name))
        self._model = lru_cache(maxsize=2)(self._load)

    def perform(self, run: Run) -> Row:
        """The row of a run. One whose training diverges has no score; its row says why.

        Its `seconds` are the processor's, of all cores, for training with its evaluations: others at work beside it
        change them little.
        """
        contender, sealed = self.study.contenders[run.contender], self._task(run.task)
        row: Row = {"key": self.study.key(run), **asdict(run), "commit": self.commit, "diverged": None}
        started = time.monotonic()
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
        row["seconds_in_all"] = round(time.monotonic() - started, 2)
        return row

    def _bare(self, run: Run, method: str, sealed: SealedTask) -> Row:
        test = sealed.unseal(lambda: self.is_closed(run))
        task = replace(sealed.open, splits={**sealed.open.splits, "train": self._some(run, sealed.open)})
        dev, score, found, prompt = Untrained(self._model(run.model, "float32"), task, method).on_dev_and(test)
        offsets = BYTES * len(task.labels) if method == CALIBRATED else 0
        return {
            "dev": dev.accuracy if task.labels else dev.score,
            "trainable": 0,
            "kept": 0,
            "bytes": len((prompt or "").encode()) + offsets,
            "seconds": 0.0,
            "prompt": prompt,
            "tokens": 0,
            "test": _told(score),
            **_right(task, test, found),
        }

    def _probe(self, run: Run, sealed: SealedTask) -> Row:
        task = replace(sealed.open, splits={**sealed.open.splits, "train": self._some(run, sealed.open)})
        trial = self.study.contenders[run.contender].trials[run.trial]
        started = time.process_time()
        probe = LinearProbe(self._model(run.model, "float32"), task, trial["pool"])
        asked = self._config(run)
        settings = TrainConfig(
            asked.steps, float(trial["lr"]), asked.batch_size, eval_every=asked.eval_every, seed=run.seed
        )
        with tempfile.TemporaryDirectory() as out:
            result = probe.fit(settings, Path(out))
            curve = _curve(out)
        kept = sum(parameter.numel() for parameter in probe.layer.parameters())
        row = {"dev": result.best_score, "best_step": result.best_step, "dev_curve": curve, "settings": dict(trial)}
        row |= {"trainable": kept, "kept": kept, "bytes": BYTES * kept}
        row["seconds"] = round(time.process_time() - started, 2)
        if run.stage == FINAL:
            test = sealed.unseal(lambda: self.is_closed(run))
            found = probe.answer(test)
            row |= {"test": _told(score_labels(probe.encoder, test, found)), **_right(task, test, found)}
        return row

    def _tuned(self, run: Run, sealed: SealedTask) -> Row:
        contender = self.study.contenders[run.contender]
        task = replace(sealed.open, splits={**sealed.open.splits, "train": self._some(run, sealed.open)})
        shape = self._model(run.model, "float32").config
        method = method_of(contender, run.trial, run.size, shape)
        model = self._base(run.model, method)
        measured, started = forget_peak(), time.process_time()
        with tempfile.TemporaryDirectory() as out:
            tuned, result = tune(model, method, task, self._config(run), out)
            curve, report = _curve(out), json.loads((Path(out) / REPORT_FILE).read_text(encoding="utf-8"))
        row = {
            "dev": result.best_score,
            "best_step": result.best_step,
            "dev_curve": curve,
            "settings": {**report["method"], "lr": contender.trials[run.trial]["lr"]},
            "trainable": report["trainable"],
            "kept": report["kept"],
            "bytes": BYTES * report["kept"],
            "tokens": report["tokens"],
            "seconds": round(time.process_time() - started, 2),
            "peak_bytes": peak_bytes() if measured else None,
        }
        if run.stage == FINAL:
            row |= self._test(tuned, task, sealed.unseal(lambda: self.is_closed(run)), run)
        tuned.detach()
        return row

    def _test(self, tuned: Tuned, task: Task, examples: Sequence[Example], run: Run) -> Row:
        encoder = encoder_for(tuned, task, truncate=True)
        if task.labels:
            found = label_log_likelihoods(tuned, encoder, examples)
            return {"test": _told(score_labels(encoder, examples, found)), **_right(task, examples, found)}
        told = _told(evaluate(tuned, encoder, examples))
        if run.task == "e2e":
            told |= tell(tuned, task, examples)
        if run.task in STEERED:
            judge = judge_in(self.folder / "judge", GPT2.from_pretrained(JUDGE))
            told |= steer(tuned, judge, run.task, run.seed)
        return {"test": told}

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
        )

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


def _curve(out: str) -> list[tuple[int, float, float]]:
    """[step, score, loss] of each evaluation on dev."""
    rows = [row for row in read_metrics(out) if "score" in row]
    return [(row["step"], round(row["score"], 5), round(row["dev_loss"], 4)) for row in rows]


def _told(score: Score) -> dict[str, float | None]:
    if not math.isnan(score.accuracy):
        return {"accuracy": score.accuracy, "loss": number_or_none(score.loss)}
    return {"perplexity": number_or_none(perplexity_of(score.loss)), "loss": score.loss}


def _right(task: Task, examples: Sequence[Example], found: Float[Tensor, "N labels"] | None) -> dict[str, Any]:
    """Which test examples were answered right, in their order, as bits; for tests that pair two contenders."""
    if found is None:
        return {}
    answers = torch.tensor([task.labels.index(example.target) for example in examples])
    return {"right": pack(found.argmax(dim=1) == answers)}


def pack(bits: Bool[Tensor, "N"]) -> str:
    """Yes or no of each example, as text; `unpack` reads it."""
    return f"{len(bits)}:{base64.b64encode(np.packbits(bits.numpy()).tobytes()).decode()}"


def unpack(text: str) -> np.ndarray:
    """The bits that `pack` wrote, as 0 and 1."""
    number, _, packed = text.partition(":")
    return np.unpackbits(np.frombuffer(base64.b64decode(packed), dtype=np.uint8))[: int(number)]
