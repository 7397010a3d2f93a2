"""Comparing methods: fair by construction, sealed until chosen, resumable, and reported from the rows alone."""

import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import minipeft as mp
from minipeft import cli
from minipeft.commands.compare import CONTENDERS
from minipeft.commands.method_options import choose_methods
from minipeft.compare import Results, Study, StudyError, compete, inputs, read_study, study_of, writing
from minipeft.compare.bare import LinearProbe
from minipeft.compare.compete import STUDY_FILE
from minipeft.compare.contenders import USUAL, method_of, resized, unstarted
from minipeft.compare.figures import over_models
from minipeft.compare.keep import method_words
from minipeft.compare.machine import Meter
from minipeft.compare.pages import (
    comma_separated,
    curve_table,
    main_table,
    markdown,
    measures_table,
    models_table,
    samples_table,
    write_report,
)
from minipeft.compare.protocol import told_of
from minipeft.compare.report import Report
from minipeft.compare.results import RESULTS_FILE, pack, unpack
from minipeft.compare.sealed import SealedTask, StillSealed
from minipeft.compare.statistics import differences, holm, mean_of
from minipeft.compare.study import Run
from minipeft.compare.writing import distinct, overlap
from minipeft.generate import generate
from minipeft.methods import METHODS
from minipeft.overview import count
from minipeft.pretrain import CONFIGS
from minipeft.tasks import Encoder, Example, Task
from minipeft.train_config import TrainConfig
from minipeft.tune import _settings

WORDS = {"good": ("fine", "lovely", "great"), "bad": ("awful", "dull", "poor")}


def reviews(n: int, seed: int) -> tuple[Example, ...]:
    """Texts whose label stands in them."""
    drawn = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(n):
        label = ("bad", "good")[number % 2]
        words = [WORDS[label][int(torch.randint(3, (1,), generator=drawn))] for _ in range(1 + number % 4)]
        rows.append(Example(f"The film was {' and '.join(words)}.", label, f"review {number}"))
    return tuple(rows)


SPLITS = {"train": reviews(40, 1), "dev": reviews(16, 2), "test": reviews(20, 3)}
PROMPTS = ("{text} It was", "{text} I found it")
TINY = Task("tiny", SPLITS, ("bad", "good"), {"bad": " bad", "good": " good"}, " It was", PROMPTS)
TEXTS = Task("texts", {name: tuple(Example("", row.text) for row in rows) for name, rows in SPLITS.items()})
PART: dict[str, Any] = {
    "name": "main",
    "tasks": ["tiny"],
    "models": ["pico"],
    "contenders": ["majority", "calibrated_prompt", "linear_probe", "soft_prompt", "full"],
    "seeds": [1, 2],
}
TWO_TRIALS = {
    "linear_probe": {"trials": [{"lr": 0.01, "pool": "last"}, {"lr": 0.01, "pool": "mean"}]},
    "soft_prompt": {"length": 4, "trials": [{"lr": 0.03, "init": "vocab"}, {"lr": 0.1, "init": "labels"}]},
    "full": {"trials": [{"lr": 1e-4}, {"lr": 1e-3}]},
}


def settings(**parts: Any) -> dict[str, Any]:
    """A small study of one part."""
    common = {"name": "small", "steps": 3, "batch_size": 4, "eval_every": 2}
    return {**common, "contenders": TWO_TRIALS, "parts": [{**PART, **parts}]}


@pytest.fixture(autouse=True)
def tasks(monkeypatch: pytest.MonkeyPatch) -> dict[str, Task]:
    known = {"tiny": TINY, "texts": TEXTS}
    monkeypatch.setattr(inputs, "open_task", known.__getitem__)
    return known


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    """A study, run once for all tests that only read it."""
    out, study = tmp_path_factory.mktemp("study"), study_of(settings())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "open_task", {"tiny": TINY}.__getitem__)
        compete(study, out, workers=0)
    return study, out


def test_every_contender_is_swept_then_tested_with_fresh_seeds(finished: tuple[Study, Path]) -> None:
    rows = list(Results(finished[1] / RESULTS_FILE).rows.values())
    trained = ("linear_probe", "soft_prompt", "full")
    for name in trained:
        own = [row for row in rows if row["contender"] == name]
        assert [(row["stage"], row["seed"], row["trial"]) for row in own if row["stage"] == "sweep"] == [
            ("sweep", 0, 0),
            ("sweep", 0, 1),
        ]
        finals = [row for row in own if row["stage"] == "final"]
        best = max((row for row in own if row["stage"] == "sweep"), key=lambda row: row["dev"])
        assert [row["seed"] for row in finals] == [1, 2]
        assert {row["trial"] for row in finals} == {best["trial"]}
    for name in ("majority", "calibrated_prompt"):
        assert [row["stage"] for row in rows if row["contender"] == name] == ["final"]
    assert all("test" not in row for row in rows if row["stage"] == "sweep")
    tokens = {(row["stage"], row["seed"]): row["tokens"] for row in rows if row["contender"] == "soft_prompt"}
    assert tokens == {(row["stage"], row["seed"]): row["tokens"] for row in rows if row["contender"] == "full"}, (
        "all methods read the same examples"
    )


def test_no_test_label_is_read_before_the_sweep_is_closed(
    tasks: dict[str, Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, opened = tmp_path / RESULTS_FILE, []

    class Envelope(tuple[Example, ...]):
        """Test examples that cannot even be counted before the file says that the sweep is closed."""

        def _look(self) -> None:
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
            assert any('"closed": "main"' in line for line in lines), "a test example was read too early"
            opened.append(len(lines))

        def __iter__(self) -> Iterator[Example]:
            self._look()
            return super().__iter__()

        def __getitem__(self, place: Any) -> Any:
            self._look()
            return super().__getitem__(place)

        def __len__(self) -> int:
            self._look()
            return super().__len__()

    tasks["tiny"] = replace(TINY, splits={**SPLITS, "test": Envelope(SPLITS["test"])})
    compete(study_of(settings(contenders=["calibrated_prompt", "soft_prompt"], seeds=[1])), tmp_path, workers=0)
    assert opened
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    closed = next(place for place, line in enumerate(lines) if "closed" in line)
    assert min(opened) > closed, "the envelope was opened after the line that closes the sweep"
    assert [place for place, line in enumerate(lines) if "test" in line] == list(range(closed + 1, len(lines)))


def test_the_envelope_opens_only_with_the_word() -> None:
    sealed = SealedTask(TINY)
    assert sealed.open.splits["test"] == ()
    with pytest.raises(StillSealed, match="stay sealed until the sweep is closed"):
        sealed.unseal(lambda: False)
    assert sealed.unseal(lambda: True) == SPLITS["test"]


def test_a_sweep_that_lacks_a_run_cannot_be_closed(tmp_path: Path, finished: tuple[Study, Path]) -> None:
    study, out = finished
    lines = (out / RESULTS_FILE).read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / RESULTS_FILE).write_text("".join(lines[1:3]), encoding="utf-8")
    results = Results(tmp_path / RESULTS_FILE)
    with pytest.raises(StudyError, match="4 runs of the sweep are missing, so it cannot be closed"):
        results.close(study, study.parts[0])


def test_a_new_trial_opens_a_closed_sweep_again(finished: tuple[Study, Path]) -> None:
    study, out = finished
    results = Results(out / RESULTS_FILE)
    assert results.is_closed(study, study.parts[0])
    more = settings()
    more["contenders"] = {
        name: {**one, "trials": [*one["trials"], {**one["trials"][0], "lr": 0.5}]} for name, one in TWO_TRIALS.items()
    }
    assert not results.is_closed(study_of(more), study_of(more).parts[0])


def test_a_study_that_was_cut_off_ends_as_one_that_was_not(tmp_path: Path, finished: tuple[Study, Path]) -> None:
    study, out = finished
    lines = (out / RESULTS_FILE).read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / RESULTS_FILE).write_text("".join(lines[:4]) + lines[4][:30], encoding="utf-8")  # cut within a line
    compete(study, tmp_path, workers=0)
    whole, again = Results(out / RESULTS_FILE), Results(tmp_path / RESULTS_FILE)
    assert whole.rows.keys() == again.rows.keys()
    for key, row in whole.rows.items():
        for what in ("dev", "dev_curve", "test", "right", "tokens", "trial", "kept"):
            assert again.rows[key].get(what) == row.get(what), (key, what)
    assert len((tmp_path / RESULTS_FILE).read_text(encoding="utf-8").splitlines()) == len(lines)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / RESULTS_FILE).write_text('{"key": 1}\n', encoding="utf-8")
    with pytest.raises(StudyError, match=r"line 1 of .*results.jsonl is no result of a study"):
        Results(tmp_path / RESULTS_FILE)


def test_processes_find_what_one_process_finds(tmp_path: Path, finished: tuple[Study, Path]) -> None:
    """The whole pipeline in miniature, by the command line, on a file: two processes, then none."""
    rows = [{"text": row.text, "label": row.target, "split": split} for split in SPLITS for row in SPLITS[split]]
    data = tmp_path / "films.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    told = settings(tasks=["films"], contenders=["zero_shot", "soft_prompt"], seeds=[1])
    told["tasks"] = {"films": {"data": str(data), "input": "text", "target": "label"}}
    study = study_of(told)
    both = compete(study, tmp_path / "two", workers=2), compete(study, tmp_path / "none", workers=0)
    for key, row in both[0].rows.items():
        for what in ("dev", "test", "right", "tokens"):
            assert both[1].rows[key].get(what) == row.get(what)
        if row["contender"] == "soft_prompt" and sys.platform == "linux":
            assert 5e7 < row["peak_bytes"] < 3e9
    assert both[0].rows.keys() == both[1].rows.keys()


def test_a_trial_that_moves_to_another_place_is_still_the_one_that_is_run(tmp_path: Path) -> None:
    told = settings(contenders=["full"], seeds=[1])
    compete(study_of(told), tmp_path, workers=0)
    first = Results(tmp_path / RESULTS_FILE)
    best = max((row for row in first.rows.values() if row["stage"] == "sweep"), key=lambda row: row["dev"])
    told["contenders"] = {"full": {"trials": [{"lr": 1e-30}, *reversed(TWO_TRIALS["full"]["trials"])]}}
    again = compete(study_of(told), tmp_path, workers=0)
    final = [row for row in again.rows.values() if row["stage"] == "final"][-1]
    assert final["settings"]["lr"] == TWO_TRIALS["full"]["trials"][best["trial"]]["lr"]


def test_a_part_may_take_over_choices_and_vary_a_size(tmp_path: Path) -> None:
    told = settings(contenders=["soft_prompt"], seeds=[1])
    told["parts"].append({**told["parts"][0], "name": "longer", "sizes": ["length=1", "length=7"], "chosen_by": "main"})
    told["parts"].append({**told["parts"][0], "name": "few", "examples": [8, "all"], "chosen_by": "main"})
    study = study_of(told)
    results = compete(study, tmp_path, workers=0)
    longer = [row for row in results.rows.values() if row["part"] == "longer"]
    assert [row["kept"] for row in longer] == [128, 896]
    assert {row["stage"] for row in longer} == {"final"}
    both = Report(study, results).paired("longer", [("soft_prompt", "soft_prompt")])
    assert both[0].mean.runs == 2  # sizes are runs of their own, and not one in place of another
    told["parts"].append({**told["parts"][2], "name": "own seeds", "seeds": [1, 2]})
    assert len(list(study_of(told).finals(study_of(told).parts[3], results.choices(study, study.parts[2])))) == 4
    assert [row["read"] for row in results.rows.values() if row["part"] == "few"] == [8]
    report = Report(study, results)
    assert [cell.rows[0]["read"] for cell in report.cells("few")] == [8, 40]  # all examples: what main tested
    assert "(896)" in curve_table(report, "longer", "size", "tiny", "pico")
    assert list(report.unfinished()) == []
    assert {path.name for path in write_report(study, tmp_path)} >= {"longer_size.png", "few_examples.png"}


def test_results_of_other_data_are_not_mixed(tasks: dict[str, Task], tmp_path: Path) -> None:
    study = study_of(settings(contenders=["zero_shot"], seeds=[1]))
    compete(study, tmp_path, workers=0)
    tasks["tiny"] = replace(TINY, splits={**SPLITS, "train": reviews(40, 9)})
    with pytest.raises(StudyError, match=r"the task tiny is not the one that .* has results of; take another --out"):
        compete(study, tmp_path, workers=0)
    tasks["tiny"] = replace(TINY, splits={**SPLITS, "test": reviews(9, 9)})
    with pytest.raises(StudyError, match=r"the test split of tiny is not the one that .* has results of; take another"):
        compete(study, tmp_path, workers=0)
    (tmp_path / RESULTS_FILE).write_text("")  # before there is a result nothing can be mixed
    compete(study, tmp_path, workers=0)


def test_a_folder_that_holds_an_adapter_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(StudyError, match=r"holds a model or an adapter \(adapter_config.json\); take another --out"):
        compete(study_of(settings(contenders=["majority"], seeds=[1])), tmp_path, workers=0)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter_config.json"]


def test_every_contender_reads_as_much_of_a_long_text(tasks: dict[str, Task], tmp_path: Path) -> None:
    long = {split: tuple(replace(row, text=row.text * 40) for row in rows[:12]) for split, rows in SPLITS.items()}
    tasks["tiny"] = replace(TINY, splits=long)
    results = compete(
        study_of(settings(contenders=["linear_probe", "soft_prompt", "full"], seeds=[1])), tmp_path, workers=0
    )
    tokens = {row["contender"]: row["tokens"] for row in results.rows.values() if row["stage"] == "final"}
    assert tokens["soft_prompt"] == tokens["full"] == tokens["linear_probe"]
    model = mp.GPT2.from_pretrained("pico")
    assert max(len(model.tokenizer.encode(row.text)) for row in long["train"]) > 256  # so that something was cut


def test_what_the_sweep_would_only_find_out_later_is_said_at_once(tmp_path: Path) -> None:
    for change, sentence in (
        ({"length": 300, "trials": [{"lr": 0.1}]}, "length 300 leaves no room for text"),
        ({"length": 4, "trials": [{"lr": 0.1, "init": "magic"}]}, "init is 'magic'"),
    ):
        told = settings(contenders=["soft_prompt"], seeds=[1])
        told["contenders"] = {"soft_prompt": change}
        with pytest.raises(ValueError, match=sentence):
            compete(study_of(told), tmp_path, workers=0)
    told = settings(tasks=["texts"], contenders=["soft_prompt"], seeds=[1])
    with pytest.raises(StudyError, match="soft_prompt starts from labels, and texts has none"):
        compete(study_of(told), tmp_path, workers=0)
    assert not (tmp_path / RESULTS_FILE).exists()


def test_seeds_that_diverge_are_told_beside_the_mean(finished: tuple[Study, Path], tmp_path: Path) -> None:
    study, out = finished
    rows = [json.loads(line) for line in (out / RESULTS_FILE).read_text(encoding="utf-8").splitlines()]
    for row in rows:
        if row.get("stage") == "final" and row["contender"] == "full" and row["seed"] == 2:
            row.update(diverged="the loss is nan at step 2", dev=None)
            del row["test"]
    (tmp_path / RESULTS_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    report = Report(study, Results(tmp_path / RESULTS_FILE))
    assert "(1 of 2 diverged)" in main_table(report, "main")
    assert list(report.unfinished()) == []


def test_a_score_without_seeds_stands_for_every_seed(finished: tuple[Study, Path]) -> None:
    report = Report(finished[0], Results(finished[1] / RESULTS_FILE))
    (found,) = report.paired("main", [("full", "majority")])
    cells = {cell.contender: cell.mean.value for cell in report.cells("main")}
    assert found.mean.runs == 2
    assert found.mean.value == pytest.approx(cells["full"] - cells["majority"])
    over_examples = report.paired_over_examples("main", "full", "majority", "tiny", "pico")
    assert over_examples is not None
    assert (over_examples.value, over_examples.runs) == (pytest.approx(found.mean.value, abs=1e-4), 20)


def test_from_model_to_model_the_gap_to_full_finetuning_is_told_seed_by_seed(tmp_path: Path) -> None:
    three = settings(models=["pico", "nano", "larger"]) | {"models": {"larger": "nowhere"}}
    study, results = study_of(three), Results(tmp_path / RESULTS_FILE)
    (part,) = study.parts
    accuracies = {("soft_prompt", "pico"): (0.5, 0.6), ("soft_prompt", "nano"): (0.7, 0.75)}
    accuracies |= {("full", "pico"): (0.8, 0.7), ("full", "nano"): (0.8, 0.8)}
    common = {"commit": "", "diverged": None, "dev": 0.5}

    def keep(run: Run, **found: object) -> None:
        results.append({"key": study.key(run), **asdict(run), **common, **found})

    for run in study.sweep(part):
        keep(run)
    results.close(study, part)
    for run in study.finals(part, results.choices(study, part)):
        scores = accuracies.get((run.contender, run.model), (0.5, 0.5))
        keep(run, test={"accuracy": scores[run.seed - 1], "loss": 1.0})
    report = Report(study, results)
    lines = models_table(report, "tiny").splitlines()
    assert lines[0].startswith("| method | pico | nano | larger | behind full finetuning, pico | ")
    told = next(line for line in lines if "soft prompt" in line)
    assert told.startswith("| soft prompt | 55.0 ")
    # Behind by 30 and 10 points on pico, by 10 and 5 on nano; Student's t of two values is 12.706.
    assert told.endswith("| 20.0 ± 127.1 | 7.5 ± 31.8 | 0.0 ± 0.0 |")
    assert models_table(report, "tiny", best="nobody").splitlines()[0] == "| method | pico | nano | larger |"
    assert "## From model to model" in markdown(report)
    drawn = over_models(report, "tiny")
    assert [text.get_text() for text in drawn.axes[0].get_xticklabels()] == ["pico", "nano", "larger"]
    assert len(drawn.axes[0].get_legend().get_texts()) == len(PART["contenders"])


def test_one_model_is_no_picture(finished: tuple[Study, Path]) -> None:
    assert over_models(Report(finished[0], Results(finished[1] / RESULTS_FILE)), "tiny") is None


def test_divergence_is_a_row_without_a_score(tmp_path: Path) -> None:
    told = settings(contenders=["full"], seeds=[1])
    told["contenders"] = {"full": {"trials": [{"lr": 1e30}, {"lr": 1e-4}]}}
    results = compete(study_of(told), tmp_path, workers=0)
    sweep = [row for row in results.rows.values() if row["stage"] == "sweep"]
    assert sweep[0]["dev"] is None
    assert "at step" in sweep[0]["diverged"]
    (final,) = [row for row in results.rows.values() if row["stage"] == "final"]
    assert final["trial"] == 1


def test_text_is_compared_by_its_perplexity_and_a_hard_prompt_by_the_bare_model(tmp_path: Path) -> None:
    told = settings(tasks=["texts"], contenders=["zero_shot", "full"], seeds=[1])
    results = compete(study_of(told), tmp_path, workers=0)
    bare = next(row for row in results.rows.values() if row["contender"] == "zero_shot")
    model, total, tokens = mp.GPT2.from_pretrained("pico"), 0.0, 0
    for row in TEXTS.splits["test"]:
        ids = torch.tensor([[*model.tokenizer.encode(row.target), model.tokenizer.eot]])
        logits = model(ids)[0, :-1].log_softmax(dim=-1)
        total -= float(logits.gather(1, ids[0, 1:, None]).sum())
        tokens += ids.shape[1] - 1
    assert bare["test"]["perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"parts": []}, "a study needs at least one part"),
        ({"steps": "many"}, "the study: steps must be a whole number, got 'many'"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"epochs": 3}, "the study has no setting 'epochs'; it has name, parts"),
        ({"dtype": "int8"}, "dtype is 'int8'; it can be float32, bfloat16 or float16"),
        ({"parts": [{**PART, "seeds": [0, 1]}]}, "seed 0 is the sweep's; finals need fresh ones"),
        (
            {"parts": [{**PART, "contenders": ["magic"]}]},
            "there is no contender 'magic'; there are majority",
        ),
        ({"parts": [{**PART, "examples": [1]}]}, 'examples are whole numbers from 2 on, or "all"; one is 1'),
        ({"told_inputs": 0}, "told_inputs must be at least 1, got 0."),
        ({"parts": [{**PART, "chosen_by": "later"}]}, "chosen_by is 'later', which is no part before it"),
        ({"parts": [{**PART, "tasks": "movie"}]}, "part main: tasks must be a list, got 'movie'"),
        ({"parts": [{"name": "main"}]}, "part main lacks 'tasks'"),
        ({"parts": [{**PART, "sizes": ["rank=3"]}]}, 'sizes are "length=N" or "numbers=N"; one is \'rank=3\''),
        ({"parts": [{**PART, "sizes": [5]}]}, 'sizes are "length=N" or "numbers=N"; one is 5'),
        ({"parts": [{**PART, "seeds": [1, 1]}]}, "part main: seeds has something twice"),
        ({"parts": [{**PART, "seeds": ["a"]}]}, "seeds are whole numbers from 0 on; one is 'a'"),
        ({"parts": [{**PART, "contenders": []}]}, "part main: there are no contenders"),
        ({"parts": [{**PART, "steps": 0}]}, "part main: steps must be at least 1, got 0"),
        (
            {"parts": [PART, {**PART, "name": "b", "examples": [9, "all"], "sizes": ["length=1", "length=2"]}]},
            "two parts",
        ),
        (
            {"parts": [{**PART, "tasks": ["tiny"]}, {**PART, "name": "b", "tasks": ["texts"], "chosen_by": "main"}]},
            "part b: main, which chooses, has no 'texts' among its tasks",
        ),
        (
            {"parts": [{**PART, "examples": [10]}, {**PART, "name": "b", "chosen_by": "main"}]},
            "part b: main chooses nothing for all examples",
        ),
        ({"tasks": []}, "tasks must be tables, such as [tasks.NAME]"),
        ({"models": "x"}, "models must be a table"),
        (
            {"contenders": {**TWO_TRIALS, "full": {"method": "hard_prompt"}}},
            "there is no method 'hard_prompt' to compare",
        ),
        (
            {"contenders": {**TWO_TRIALS, "linear_probe": {"trials": [{"lr": 1, "pool": "median"}] * 2}}},
            "contender linear_probe: pool is 'median'; it can be last or mean",
        ),
        (
            {"contenders": {**TWO_TRIALS, "full": {"trials": [{"lr": 1e-3}]}}},
            "every contender must have as many trials, but there are linear_probe 2, soft_prompt 2, full 1",
        ),
        ({"contenders": {**TWO_TRIALS, "full": {"trials": [{"lr": 0}]}}}, "every trial needs an lr above 0; one has 0"),
        (
            {"contenders": {**TWO_TRIALS, "full": {"rank": 3, "trials": [{"lr": 0.1}]}}},
            "contender full: full has no setting 'rank'; it has top_layers",
        ),
        ({"contenders": {**TWO_TRIALS, "full": {}}}, "contender full is trained, so it needs trials"),
        ({"contenders": {**TWO_TRIALS, "full": {"method": "gpt5"}}}, "there is no method 'gpt5'"),
    ],
)
def test_what_is_no_study_is_said_in_one_sentence(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StudyError, match=re.escape(sentence)):
        study_of({**settings(), **change})


def test_a_study_survives_its_file(tmp_path: Path) -> None:
    told = settings(examples=[10, "all"], sizes=["length=2"])
    told["tasks"] = {"own": {"data": "x.tsv", "input": "1", "target": "2"}}
    study = study_of(told)
    (tmp_path / "study.json").write_text(json.dumps(told_of(study)), encoding="utf-8")
    assert read_study(tmp_path / "study.json") == study


def test_a_toml_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("steps = = 3")
    with pytest.raises(StudyError, match=r"a\.toml is no TOML file"):
        read_study(tmp_path / "a.toml")


def test_a_contender_is_fitted_to_a_count_of_numbers() -> None:
    shape = mp.GPT2.from_pretrained("nano").config
    for name in ("soft_prompt", "prefix", "llama_adapter", "adapter", "lora"):
        method = method_of(USUAL[name], 0, "numbers=15360", shape)
        plain = replace(method, init="random") if hasattr(method, "init") else method
        ((knob, value),) = _knob(plain).items()
        kept, more = count(plain, shape).kept, count(resized(plain, knob, value + 1), shape).kept
        assert abs(kept - 15360) <= more - kept, name
    assert method_of(USUAL["prefix"], 0, "numbers=15360", shape).length == 5  # type: ignore[attr-defined]
    assert method_of(USUAL["soft_prompt"], 0, "numbers=15360", shape).length == 60  # type: ignore[attr-defined]


def _knob(method: Any) -> dict[str, int]:
    return {name: getattr(method, name) for name in ("length", "rank", "width") if hasattr(method, name)}


def test_the_help_names_every_usual_contender() -> None:
    assert CONTENDERS.split(", ") == list(USUAL)


def test_a_study_can_ask_for_a_prefix_without_its_mlp() -> None:
    """In the study that is committed, the starts of a prefix are those of the main table's: it has none."""
    study = read_study(Path(__file__).parents[1] / "recipes" / "head_to_head.toml")
    shape = mp.GPT2.from_pretrained("nano").config
    method = method_of(study.contenders["prefix_starts"], 0, None, shape)
    assert method == mp.Prefix(10, None, init="random")
    told = json.loads(json.dumps(told_of(study)))
    assert method_of(study_of(told).contenders["prefix_starts"], 0, None, shape) == method


@pytest.mark.parametrize("budget", [6144, 30720])
def test_the_committed_budgets_are_met_by_soft_prompts_prefixes_and_lora(budget: int) -> None:
    shape = mp.GPT2.from_pretrained("nano").config
    names = ("soft_prompt", "prefix", "lora")
    kept = [count(unstarted(method_of(USUAL[name], 0, f"numbers={budget}", shape)), shape).kept for name in names]
    assert kept == [budget] * 3


def test_the_scale_of_lora_stays_when_its_rank_changes() -> None:
    assert resized(mp.LoRA(rank=8, alpha=16), "rank", 2) == mp.LoRA(rank=2, alpha=4.0)


@pytest.mark.parametrize(
    ("name", "size", "sentence"),
    [
        ("ia3", "length=3", "contender ia3: ia3 has no length"),
        ("bitfit", "numbers=100", "bitfit has one size, so it cannot have 100"),
    ],
)
def test_a_size_that_cannot_be_is_refused(name: str, size: str, sentence: str) -> None:
    with pytest.raises(StudyError, match=sentence):
        method_of(USUAL[name], 0, size, mp.GPT2.from_pretrained("pico").config)


def test_a_linear_probe_reads_the_states_that_a_loop_reads_and_leaves_the_model_alone(tmp_path: Path) -> None:
    model = mp.GPT2.from_pretrained("pico")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for pool in ("last", "mean"):
        probe = LinearProbe(model, TINY, pool)
        found = probe._read(SPLITS["dev"])
        for row, example in zip(found, SPLITS["dev"], strict=True):
            hidden = model.hidden(torch.tensor([model.tokenizer.encode(example.text + " It was")]))[0]
            wanted = hidden[-1] if pool == "last" else hidden.mean(dim=0)
            torch.testing.assert_close(row, wanted, atol=1e-4, rtol=1e-4)
    probe.fit(TrainConfig(150, 0.01, 8), tmp_path)
    answers = probe.answer(SPLITS["test"]).argmax(dim=1)
    assert (answers == torch.tensor([TINY.labels.index(row.target) for row in SPLITS["test"]])).float().mean() > 0.9
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_means_and_intervals_are_students() -> None:
    mean = mean_of([1.0, 2.0, 3.0])
    assert (mean.value, mean.runs) == (2.0, 3)
    assert mean.half == pytest.approx(4.302653 / math.sqrt(3), abs=1e-5)  # the table's t of 2 degrees at 95 %
    assert math.isnan(mean_of([5.0]).half)


def test_contenders_are_compared_run_for_run() -> None:
    scores = {"a": {1: 5.0, 2: 6.0, 3: 8.0, 9: 100.0}, "b": {1: 4.0, 2: 4.0, 3: 7.0}, "c": {1: 0.0}}
    (found,) = differences(scores, [("a", "b"), ("a", "c")])
    assert (found.mean.value, found.mean.runs) == (pytest.approx(4 / 3), 3)
    assert found.p == pytest.approx(0.0572, abs=1e-4)  # t = 4 of 2 degrees of freedom
    (less,) = differences(scores, [("a", "b")], higher_is_better=False)
    assert less.mean.value == pytest.approx(-4 / 3)


def test_differences_without_spread_have_no_p() -> None:
    (found,) = differences({"a": {1: 2.0, 2: 3.0}, "b": {1: 1.0, 2: 2.0}}, [("a", "b")])
    assert math.isnan(found.p)
    assert math.isnan(found.adjusted)


def test_holm_corrects_as_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.01, math.nan, 0.03], 4)[::2] == pytest.approx([0.04, 0.09])  # four were asked about


def test_what_is_told_of_fields_is_scored_for_the_bare_model_as_for_a_tuned_one(
    tasks: dict[str, Task], tmp_path: Path
) -> None:
    rows = {
        split: tuple(Example(f"name[{row.target}]", row.text) for row in examples[:6])
        for split, examples in SPLITS.items()
    }
    tasks["e2e"] = Task("e2e", rows, joint="<|endoftext|>", hard_prompts=("{text}<|endoftext|>",))
    told = settings(tasks=["e2e"], contenders=["zero_shot", "soft_prompt"], seeds=[1])
    told["contenders"] = {"soft_prompt": {"length": 2, "trials": [{"lr": 0.1}]}}
    study = study_of(told)
    results = compete(study, tmp_path, workers=0)
    finals = {row["contender"]: row["test"] for row in results.rows.values() if row["stage"] == "final"}
    assert finals.keys() == {"zero_shot", "soft_prompt"}
    measured = {"perplexity", "loss", "bleu", "rouge_l", "nist", "words", "ended"}
    assert all(test.keys() == measured for test in finals.values())
    report = Report(study, results)
    assert "e2e, pico: BLEU" in main_table(report, "main")
    assert measures_table(report, "main", "e2e", "pico").startswith("| method | BLEU | ROUGE-L | NIST | perplexity | ")
    own = [row for row in results.rows.values() if row["contender"] == "soft_prompt" and row["stage"] == "final"]
    given = list(dict.fromkeys(example.text for example in rows["test"]))[: len(own[0]["samples"])]
    assert [sample["given"] for sample in own[0]["samples"]] == given
    kept = json.loads((tmp_path / "texts" / f"{own[0]['key']}.json").read_text())["texts"]
    assert [text["given"] for text in kept] == list(dict.fromkeys(example.text for example in rows["test"]))
    assert f"| {given[0]} | zero-shot prompt | " in samples_table(report, "main", "e2e", "pico")
    assert "NIST" in markdown(report)


def test_for_as_many_inputs_as_asked_the_same_ones_each_time_text_is_written() -> None:
    asked: list[list[list[int]]] = []
    model = mp.GPT2.from_pretrained("pico")

    def write(rows: list[list[int]], sampling: mp.Sampling) -> list[list[int]]:
        asked.append(rows)
        return [[*row, *model.tokenizer.encode(" fine")] for row in rows]

    task = Task("e2e", {}, joint="<|endoftext|>")
    encoder = Encoder(task, model.tokenizer, 256)
    examples = [Example(f"name[{number}]", "It is fine.") for number in range(9) for _ in range(2)]
    some, again, every = (writing.tell(write, encoder, examples, most) for most in (4, 4, None))
    assert [len(found.texts) for found in (some, every)] == [4, 9]
    assert some == again
    assert set(map(str, asked[0])) < set(map(str, asked[2]))
    assert (some.scores["words"], some.scores["ended"]) == (1, 100)


def test_what_is_drawn_is_drawn_with_every_seed_trained_or_not() -> None:
    study = study_of(settings(tasks=["positive", "texts"], contenders=["zero_shot", "full"], seeds=[1, 2]))
    (part,) = study.parts
    finals = [(run.task, run.seed) for run in study.finals(part, {}) if run.contender == "zero_shot"]
    assert finals == [("positive", 1), ("positive", 2), ("texts", 1)]


def test_a_judge_says_what_steered_texts_are_and_seeds_draw_different_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "WRITTEN", 6)
    model, drawn = mp.GPT2.from_pretrained("pico"), []
    judge = mp.attach(model, mp.HardPrompt("{text} I thought it was"))

    def write(rows: list[list[int]], sampling: mp.Sampling) -> list[list[int]]:
        drawn.append(range(sampling.seed, sampling.seed + len(rows)))
        return generate(model, rows, replace(sampling, max_new_tokens=4))

    found = [writing.steer(write, model, judge, "positive", seed) for seed in (1, 2)]
    assert not set(drawn[0]) & set(drawn[1])
    assert found[0].texts != found[1].texts
    assert all(text["written"].startswith(writing.OPENING) for text in found[0].texts)
    assert set(found[0].scores) == {"as_wanted", "distinct_1", "distinct_2", "base_perplexity", "words", "ended"}


def test_on_cuda_seconds_pass_until_the_device_is_done_and_memory_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: asked.append(f"synchronize {device}"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: asked.append(f"reset {device}"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 12_345)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2_345)
    meter = Meter("cuda:0")
    time.sleep(0.05)
    row = meter.row()
    assert asked == ["synchronize cuda:0", "reset cuda:0", "synchronize cuda:0"]
    assert (row["peak_bytes"], row["bytes_before"]) == (12_345, 2_345)
    assert row["seconds"] is not None
    assert row["seconds"] >= 0.05  # of the clock: this process slept


def test_overlap_counts_every_reference() -> None:
    texts = ["the cat sat on the mat today", "a dog"]
    references = [["a cat sat there", "the cat sat on the mat today"], ["a dog"]]
    both = overlap(texts, references)
    assert (both["bleu"], both["rouge_l"]) == pytest.approx((100.0, 100.0))
    one = overlap(["the cat sat on a mat"], [["the cat sat on the mat"]])
    assert one["rouge_l"] == pytest.approx(100 * 5 / 6)  # five of six words in order, both ways
    precisions = [5 / 6, 3 / 5, 2 / 4, 1 / 3]
    assert one["bleu"] == pytest.approx(100 * math.prod(precisions) ** 0.25, abs=1e-6)
    # The information of "the", twice of six words, of the four others that match, and of "cat" behind "the".
    assert one["nist"] == pytest.approx((math.log2(3) + 4 * math.log2(6)) / 6 + math.log2(2) / 5)
    assert overlap([""], [["a dog"]])["nist"] == 0


def test_distinct_is_the_share_of_different_words() -> None:
    assert distinct(["a b a", "a b"], 1) == pytest.approx(2 / 5)
    assert distinct(["a b a", "a b"], 2) == pytest.approx(2 / 3)
    assert distinct(["a"], 2) == 0


def test_bits_survive_being_packed() -> None:
    bits = torch.rand(37) > 0.5
    assert unpack(pack(bits)).tolist() == bits.int().tolist()


def test_the_accuracy_of_a_row_is_the_share_of_its_bits(finished: tuple[Study, Path]) -> None:
    rows = [row for row in Results(finished[1] / RESULTS_FILE).rows.values() if row["stage"] == "final"]
    assert len(rows) == 8
    good = [example.target == "good" for example in SPLITS["test"]]
    for row in rows:
        right = unpack(row["right"])
        assert right.mean() == pytest.approx(row["test"]["accuracy"], abs=1e-6)
        of_each = [right[[one == label for one in good]].mean() for label in (True, False)]
        assert sum(of_each) / 2 == pytest.approx(row["test"]["balanced_accuracy"], abs=1e-6)


def test_the_report_is_computed_from_the_rows_alone(finished: tuple[Study, Path], tmp_path: Path) -> None:
    study, out = finished
    for name in (RESULTS_FILE, STUDY_FILE):
        shutil.copyfile(out / name, tmp_path / name)
    paths = write_report(read_study(tmp_path / STUDY_FILE), tmp_path)
    assert {path.name for path in paths} >= {"report.md", "report.csv", "main_scores.png", "main_kept.png"}
    text = paths[0].read_text(encoding="utf-8")
    rows = [row for row in Results(out / RESULTS_FILE).rows.values() if row["stage"] == "final"]
    full = [100 * row["test"]["accuracy"] for row in rows if row["contender"] == "full"]
    line = next(line for line in text.splitlines() if line.startswith("| full finetuning"))
    assert f"{sum(full) / 2:.1f} ± {abs(full[0] - full[1]) / 2 * 12.706205:.1f}" in line  # t of one degree of freedom
    assert len(paths[1].read_text(encoding="utf-8").splitlines()) == 1 + len(Results(out / RESULTS_FILE).rows)
    report = Report(study, Results(out / RESULTS_FILE))
    assert (markdown(report), comma_separated(report)) == (text, paths[1].read_text(encoding="utf-8"))


def test_the_report_ends_with_the_command_for_what_did_best(
    finished: tuple[Study, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part's command, read by the command line, tunes the method that was best, as the study did."""
    folder = tmp_path / "my data"
    folder.mkdir()
    films = [f"a {word} film, {n}\t{label}\n" for n in range(40) for word, label in (("fine", "good"), ("dull", "bad"))]
    (folder / "films.tsv").write_text("".join(["text\tlabel\n", *films]), encoding="utf-8")
    (folder / "prose.txt").write_text("".join(f"It was film {n}, and long.\n" for n in range(2000)))
    told = settings(tasks=["films"], contenders=["majority", "soft_prompt", "full"], seeds=[4, 5])
    told["tasks"] = {"films": {"data": str(folder / "films.tsv"), "input": "text", "target": "label"}}
    told["tasks"]["prose"] = {"data": str(folder / "prose.txt")}
    told["parts"].append(
        {**told["parts"][0], "name": "prose", "tasks": ["prose"], "contenders": ["full", "soft_prompt"]}
    )
    told["parts"].append(
        {**told["parts"][0], "name": "sized", "contenders": ["soft_prompt"], "sizes": ["length=2", "length=7"]}
    )
    told["parts"].append({**told["parts"][0], "name": "again", "chosen_by": "main"})
    told["dtype"] = "bfloat16"
    study, results = study_of(told), Results(tmp_path / RESULTS_FILE)
    best = {"main": ("full", None), "prose": ("soft_prompt", None), "sized": ("soft_prompt", "length=7")}

    def keep(run: Run, **found: object) -> None:
        results.append({"key": study.key(run), **asdict(run), "commit": "", "dev": 0.5, **found})

    for part in study.parts:
        for run in study.sweep(part):
            keep(run, diverged=None)
        if part.chosen_by is None:
            results.close(study, part)
        for run in study.finals(part, results.choices(study, part)):
            wins = best.get(part.name) == (run.contender, run.size)
            found: dict[str, object] = {"test": {"perplexity": 2.0 if wins else 9.0}, "diverged": None, "settings": {}}
            if part.name != "prose":
                found["test"] = {"accuracy": 0.9 if wins else 0.5}
            if run.contender != "majority":
                contender = study.contenders[run.contender]
                method = method_of(contender, run.trial, run.size, CONFIGS["pico"])
                lr = contender.trials[run.trial]["lr"]
                found["settings"] = {"name": method.name, **json.loads(json.dumps(_settings(method))), "lr": lr}
            if (part.name, run.contender, run.seed) == ("main", "soft_prompt", 4):
                found |= {"diverged": "the loss is nan", "test": {"accuracy": None}}
            if (part.name, run.contender, run.seed) == ("main", "soft_prompt", 5):
                found["test"] = {"accuracy": 1.0}  # the best by one run, of two
            keep(run, **found)

    lines = [line for line in markdown(Report(study, results)).splitlines() if line.startswith("minipeft tune ")]
    assert len(lines) == len(set(re.findall(r"--out (\S+)", " ".join(lines)))) == len(best)
    for line, (name, (contender, size)) in zip(lines, best.items(), strict=True):
        seen: list[Any] = []

        def tuning(base: mp.GPT2, *given: Any, seen: list[Any] = seen, **_: Any) -> None:
            seen += [base, *given]
            raise ValueError("it is seen")

        monkeypatch.setattr("minipeft.tune.tune", tuning)
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        with pytest.raises(SystemExit):
            cli.main()
        base, method, task, config, out = seen
        assert base.config == CONFIGS["pico"]
        assert method == method_of(study.contenders[contender], 0, size, CONFIGS["pico"])
        assert task.labels == (() if name == "prose" else ("bad", "good"))
        assert (config.steps, config.batch_size, config.eval_every, config.seed) == (3, 4, 2, 4)
        assert (config.lr, config.truncate) == (study.contenders[contender].trials[0]["lr"], True)
        assert "--dtype bfloat16" in line
        assert out == Path("runs") / f"{name}_{task.name}_pico_{contender}"


@pytest.mark.parametrize("name", [name for name, one in USUAL.items() if one.method in METHODS])
def test_a_row_s_settings_are_options_that_mean_the_same(name: str) -> None:
    contender = USUAL[name]
    for trial in range(len(contender.trials)):
        method = method_of(contender, trial, None, CONFIGS["pico"])
        row = {"name": method.name, **json.loads(json.dumps(_settings(method))), "lr": 0.1}
        words = list(method_words(row))
        given = dict(zip(words[::2], words[1::2], strict=True))
        options = {one: given.get(f"--{one}") for one in ("length", "init", "reparam")}
        numbers = {one: int(options[one]) if options[one] else None for one in ("length", "reparam")}
        sets = [value for option, value in zip(words[::2], words[1::2], strict=True) if option == "--set"]
        assert choose_methods(contender.method, {**options, **numbers}, sets) == method


def test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on(tmp_path: Path) -> None:
    data, out = tmp_path / "films.tsv", tmp_path / "out"
    rows = [f"{row.text}\t{row.target}\t{split}" for split in SPLITS for row in SPLITS[split]]
    data.write_text("text\tlabel\tsplit\n" + "\n".join(rows) + "\n", encoding="utf-8")
    how = ["--data", str(data), "--input", "text", "--target", "label", "--model", "pico", "--methods", "ia3"]
    how += ["--steps", "2", "--seeds", "1", "--workers", "1", "--out", str(out)]
    command = [sys.executable, "-m", "minipeft.cli", "compare", *how]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    deadline = time.monotonic() + 120
    while not (out / RESULTS_FILE).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "what was finished is kept" in told
    kept = (out / RESULTS_FILE).read_text(encoding="utf-8").splitlines()
    assert 1 <= len(kept) < 6
    again = subprocess.run(command, capture_output=True, text=True, env=env, timeout=240, check=False)
    assert again.returncode == 0, again.stderr
    lines = (out / RESULTS_FILE).read_text(encoding="utf-8").splitlines()
    assert lines[: len(kept)] == kept
    assert len(lines) == 4 + 1 + 1  # trials, the line that closes the sweep, one seed
    assert "| IA³ |" in again.stdout
