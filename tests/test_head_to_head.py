"""The page of the committed study: computed from its rows, and not written where they would mislead."""

import json
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from minipeft.compare import Results, Study, read_study
from minipeft.compare.report import Report
from minipeft.compare.results import RESULTS_FILE, Row, pack

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "recipes"))

import head_to_head  # noqa: E402

STUDY = read_study(ROOT / "recipes" / "head_to_head.toml")
DRAW = random.Random(0)
COMMON = {"commit": "0123456789ab", "machine": "one", "diverged": None, "seconds_in_all": 60.0, "dev": 0.5}
COSTS = {"trainable": 100, "kept": 100, "bytes": 400, "seconds": 50.0, "peak_bytes": 3e8, "bytes_before": 2e8}


def measured(task: str) -> dict[str, float]:
    """What a task's test measures, drawn."""
    share = DRAW.random()
    if task == "e2e":
        return {"bleu": 100 * share, "rouge_l": 50.0, "nist": 4.0, "perplexity": 9.0, "words": 20.0, "ended": 90.0}
    if task in ("positive", "negative"):
        return {"as_wanted": 100 * share, "distinct_1": 30.0, "base_perplexity": 20.0, "perplexity": 9.0}
    if task in ("movie", "product", "tweet"):
        return {"accuracy": share, "balanced_accuracy": share, "loss": 1.0}
    return {"perplexity": 80 * share, "loss": 1.0}


def made_up(study: Study) -> Iterator[Row]:
    """Rows of a whole study, as `Results` keeps them."""
    closed = Results("nowhere")
    for part in study.parts:
        own = [{"key": study.key(run), **asdict(run), **COMMON, **COSTS} for run in study.sweep(part)]
        closed.rows |= {row["key"]: row for row in own}
        yield from own
        if part.chosen_by is None:
            groups = dict.fromkeys(run.group for run in study.sweep(part))
            chosen = [{"group": list(group), "trial": 0, "dev": 0.5} for group in groups]
            closed.closed[part.name] = {"closed": part.name, "sweep": [row["key"] for row in own], "chosen": chosen}
            yield closed.closed[part.name]
        for run in study.finals(part, closed.choices(study, part)):
            found = {"test": measured(run.task), "right": pack(torch.rand(9) > 0.5)}
            samples = {"samples": [{"given": "name[A]", "written": "A | b"}], "judge": 0.75}
            yield {"key": study.key(run), **asdict(run), **COMMON, **COSTS, **found, **samples}


ROWS = list(made_up(STUDY))
FINALS = [row for row in ROWS if row.get("stage") == "final"]


def report_of(rows: list[Row], folder: Path) -> Report:
    path = folder / RESULTS_FILE
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Report(STUDY, Results(path))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return report_of(ROWS, tmp_path_factory.mktemp("whole"))


def test_the_page_is_to_the_byte_what_the_committed_rows_say() -> None:
    report = Report(STUDY, Results(head_to_head.ROWS))
    assert head_to_head.unfit(report) == ""
    page = head_to_head.PAGE.read_text(encoding="utf-8")
    assert head_to_head.written(head_to_head.WORDS.read_text(encoding="utf-8"), report) == page
    pictures = {path.name for path in head_to_head.PICTURES.iterdir()}
    assert pictures == set(re.findall(r"\]\(head_to_head/(\w+\.png)\)", page))


def test_a_whole_study_of_one_commit_and_machine_may_be_written(whole: Report) -> None:
    assert head_to_head.unfit(whole) == ""


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"commit": "ffff"}, "the final runs of main are of 0123456789ab, ffff, and not of one commit."),
        ({"machine": "two"}, "the final runs of main are of one; two, so that they do not compare."),
    ],
)
def test_rows_of_different_code_or_machines_are_no_page(tmp_path: Path, other: dict[str, str], sentence: str) -> None:
    changed = [row | other if row is FINALS[7] else row for row in ROWS]
    assert head_to_head.unfit(report_of(changed, tmp_path)) == sentence


def test_parts_may_be_of_machines_of_their_own(tmp_path: Path) -> None:
    changed = [row | {"machine": "two"} if row.get("part") == "costs" else row for row in ROWS]
    assert head_to_head.unfit(report_of(changed, tmp_path)) == ""


def test_seconds_are_those_of_the_part_that_times(tmp_path: Path) -> None:
    slow = [row | {"seconds": 70.0} if row.get("part") == "costs" else row for row in ROWS]
    known = head_to_head.computed(report_of(slow, tmp_path))
    assert known["cost"]("main", "movie", "nano", "prefix", "seconds") == "70"
    assert known["frontier"]("main", "nano", "seconds").count("(70:") == 1
    table = known["costs"]("main", "movie", "nano")
    assert "| 70 |" in table
    assert "| 50 |" not in table


def test_an_unfinished_study_is_no_page(tmp_path: Path) -> None:
    cut = [row for row in ROWS if (row.get("stage"), row.get("part"), row.get("seed")) != ("final", "micro", 3)]
    assert head_to_head.unfit(report_of(cut, tmp_path)) == "micro: 5 runs are not done yet."
    assert "main: " in head_to_head.unfit(report_of([], tmp_path))


def test_whatever_a_page_can_ask_for_is_computed(whole: Report) -> None:
    known = head_to_head.computed(whole)
    arguments = {
        "main": ["main", "balanced_accuracy"],
        "costs": ["main", "movie", "nano"],
        "measures": ["e2e", "e2e", "nano"],
        "samples": ["e2e", "e2e", "nano"],
        "curve": ["numbers", "size", "movie", "nano"],
        "models": ["movie"],
        "starts": ["starts", "movie", "nano", "prefix_starts"],
        "paired": ["main", "nano"],
        "over_examples": ["main", "nano"],
        "by_size": [],
        "score": ["main", "movie", "nano", "prefix"],
        "cost": ["main", "movie", "nano", "prefix", "bytes"],
        "difference": ["main", "nano", "prefix", "soft_prompt", "balanced_accuracy"],
        "over_tasks": ["main", "nano", "prefix", "soft_prompt"],
        "described": ["main", "pico"],
        "rank": ["main", "nano", "1"],
        "frontier": ["main", "nano", "seconds"],
        "steered": ["nano", "prefix"],
        "gap": ["movie", "prefix", "full"],
        "apart": ["main", "costs"],
        "edges": ["main", "lowest"],
        "parts": [],
        "total": ["runs"],
        "judge": [],
    }
    assert arguments.keys() == known.keys()
    told = {name: known[name](*own) for name, own in arguments.items()}
    assert all(told.values())
    assert len(told["by_size"].splitlines()) == 2 + 5  # a head, a rule, two budgets, three lengths
    assert len(told["paired"].splitlines()) == len(told["over_examples"].splitlines()) == 2 + len(head_to_head.PAIRS)
    assert told["total"] == f"{sum(len(whole.rows(part.name)) for part in STUDY.parts):,}"


def test_words_are_kept_and_what_is_asked_for_is_put_in(whole: Report) -> None:
    page = head_to_head.written("There are {{total finals}} of them: {{cost main movie nano prefix bytes}}.", whole)
    assert page.endswith("of them: 400.")
    with pytest.raises(KeyError, match="nonsense"):
        head_to_head.written("{{nonsense}}", whole)
