"""What a study is about, opened and checked before anything runs: its tasks, its models, its contenders on them."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from minipeft.compare.contenders import BARE, BEST_PROMPT, CALIBRATED, LINEAR_PROBE, MAJORITY, method_of, unstarted
from minipeft.compare.results import RESULTS_FILE
from minipeft.compare.sealed import SealedTask
from minipeft.compare.statistics import check_statistics
from minipeft.compare.study import Part, Study, StudyError
from minipeft.compare.writing import check_scorers
from minipeft.config import GPT2Config
from minipeft.files import fingerprint, read_json, write_json
from minipeft.gpt2 import GPT2
from minipeft.methods import Method, Prefix, PTuning, SoftPrompt
from minipeft.overview import count
from minipeft.tasks import Example, open_task, task_from_file

ONLY_LABELS = (MAJORITY, BEST_PROMPT, CALIBRATED, LINEAR_PROBE)
INPUTS_FILE = "inputs.json"


def sealed_task(study: Study, name: str) -> SealedTask:
    """A task of a study, one that ships or a person's own. Raises what `open_task` and `task_from_file` raise."""
    source = study.sources.get(name)
    if source is None:
        return SealedTask(open_task(name))
    return SealedTask(replace(task_from_file(source.data, source.input, source.target, source.kind), name=name))


def room_of(study: Study, part: Part, shape: GPT2Config) -> int:
    """Positions that every contender of a part leaves to a text: what the longest prompt or prefix of them leaves."""
    taken = (_positions(method) for method in _methods(study, part, shape))
    return shape.n_positions - max(taken, default=0)


def check_inputs(study: Study, out: Path) -> None:
    """Open every task and model and size every contender, so that what cannot run is said before anything runs.

    Their content is remembered in `OUT/inputs.json`: results of other data, or of another model of the same name, are
    not to be mixed. Raises StudyError, and what loading a task or a model raises.
    """
    if any(len(part.seeds) > 1 for part in study.parts):
        check_statistics()
    content: dict[str, str] = {}
    shape_of = lru_cache(maxsize=None)(lambda name: _model(study, name, content))
    for part in study.parts:
        for name in part.tasks:
            _check_task(study, part, name, content)
        for model in part.models:
            for method in _methods(study, part, shape_of(model)):
                count(unstarted(method), shape_of(model))
    _remember(content, out / INPUTS_FILE)


def _model(study: Study, name: str, content: dict[str, str]) -> GPT2Config:
    model = GPT2.from_pretrained(study.models.get(name, name))
    content[f"model {name}"] = fingerprint(*model.parameters())
    return model.config


def _check_task(study: Study, part: Part, name: str, content: dict[str, str]) -> None:
    sealed = sealed_task(study, name)
    task, methods = sealed.open, {name: study.contenders[name].method for name in part.contenders}
    content[f"task {name}"] = _hash_of([row for split in ("train", "dev") for row in task.splits[split]])
    if not task.labels and (wrong := [contender for contender, method in methods.items() if method in ONLY_LABELS]):
        raise StudyError(f"part {part.name}: {wrong[0]} is for tasks with labels, and {name} has none.")
    for contender in (study.contenders[one] for one in part.contenders):
        starts = {{**contender.settings, **trial}.get("init") for trial in contender.trials}
        if not task.labels and "labels" in starts:
            raise StudyError(f"part {part.name}: {contender.name} starts from labels, and {name} has none.")
    most, there = max((number or 0 for number in part.examples), default=0), len(task.splits["train"])
    if most > there:
        raise StudyError(f"part {part.name}: {name} has {there:,} training examples, fewer than {most:,}.")
    if study.is_told(name):
        check_scorers()


def check_test_splits(study: Study, part: Part, out: Path, is_closed: Callable[[], bool]) -> None:
    """Raise StudyError unless test examples are those that `out` has results of; StillSealed before their time."""
    tests = {f"test split of {name}": sealed_task(study, name).unseal(is_closed) for name in part.tasks}
    _remember({name: _hash_of(test) for name, test in tests.items()}, out / INPUTS_FILE)


def _hash_of(examples: Sequence[Example]) -> str:
    written = json.dumps([(example.text, example.target) for example in examples])
    return hashlib.sha256(written.encode("utf-8")).hexdigest()


def _methods(study: Study, part: Part, shape: GPT2Config) -> Iterator[Method]:
    """Every method of a part, in every trial and size."""
    for contender in (study.contenders[name] for name in part.contenders):
        if contender.method not in (*BARE, LINEAR_PROBE):
            for trial in range(len(contender.trials)):
                yield from (method_of(contender, trial, size, shape) for size in part.sizes)


def _positions(method: Method) -> int:
    return method.length if isinstance(method, SoftPrompt | PTuning | Prefix) else 0


def _remember(content: dict[str, str], path: Path) -> None:
    results = path.with_name(RESULTS_FILE)
    there_are = results.exists() and results.stat().st_size > 0
    before = read_json(path) if path.exists() and there_are else {}
    if changed := [name for name, found in content.items() if before.get(name, found) != found]:
        raise StudyError(f"the {changed[0]} is not the one that {path.parent} has results of; take another --out.")
    write_json(path, {**before, **content})
