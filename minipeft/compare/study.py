"""A study: what is compared, and by which rules, all of it fixed before anything runs.

Tasks × models × contenders × amounts of examples × sizes × seeds. A contender is a method with the trials among which
dev chooses, for every contender as many. Trials see train and dev; the best is run again with seeds of its own, and
only these runs see test.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from minipeft.tasks.writing import LABELS as STEERED

SWEEP, FINAL = "sweep", "final"
TOLD = "e2e"
"""The task whose texts are compared with what people wrote."""
Group = tuple[Any, ...]
"""What the runs have in common among which dev chooses: part, task, model, contender, examples, size."""


class StudyError(ValueError):
    """A study that cannot be run; the message names what is wrong in it."""


@dataclass(frozen=True)
class Contender:
    """A method, its settings, and the trials: learning rates, and what else dev is to choose.

    One without trials is not trained: it is measured once, by a rule of its own (`minipeft.compare.bare`).
    """

    name: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    trials: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Source:
    """A person's own data as a task: see `minipeft.tasks.task_from_file`."""

    data: str
    input: str | None = None
    target: str | None = None
    kind: str = "auto"


@dataclass(frozen=True)
class Part:
    """One table or curve of a study, and what it crosses.

    examples: how many of the training examples are read (None: all). sizes: "length=20" or "numbers=15360", which
    settings of each contender are fitted to (None: its own). seeds: of the runs that see test; none, and the part is a
    sweep alone. chosen_by: another part whose choices it takes over instead of sweeping again, and what that tested
    with all examples where its own are several amounts. timed_by: another part whose seconds and memory stand for its
    own, as its runs disturb one another or a GPU hides what they take.
    """

    name: str
    tasks: tuple[str, ...]
    models: tuple[str, ...]
    contenders: tuple[str, ...]
    examples: tuple[int | None, ...] = (None,)
    sizes: tuple[str | None, ...] = (None,)
    seeds: tuple[int, ...] = (1, 2, 3)
    chosen_by: str | None = None
    timed_by: str | None = None
    steps: int | None = None
    """Instead of the study's."""

    def __post_init__(self) -> None:
        for name in ("tasks", "models", "contenders", "examples", "sizes", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise StudyError(f"part {self.name}: {name} has something twice.")
            if not values and name != "seeds":
                raise StudyError(f"part {self.name}: there are no {name}.")
        if self.steps is not None and self.steps < 1:
            raise StudyError(f"part {self.name}: steps must be at least 1, got {self.steps}.")
        if len(self.sizes) > 1 and len(self.examples) > 1:
            raise StudyError(f"part {self.name}: it varies sizes and examples; make two parts of it.")

    def check_chooser(self, chooser: "Part") -> None:
        """Raise StudyError unless `chooser` chooses for all that this part crosses."""
        if chooser.chosen_by is not None or None not in chooser.examples or None not in chooser.sizes:
            raise StudyError(
                f"part {self.name}: {chooser.name} chooses nothing for all examples at each contender's own size."
            )
        for name in ("tasks", "models", "contenders"):
            if missing := [one for one in getattr(self, name) if one not in getattr(chooser, name)]:
                raise StudyError(
                    f"part {self.name}: {chooser.name}, which chooses, has no {missing[0]!r} among its {name}."
                )


@dataclass(frozen=True)
class Run:
    """One training: everything that it is told."""

    stage: str
    part: str
    task: str
    model: str
    contender: str
    examples: int | None
    size: str | None
    seed: int
    trial: int

    @property
    def group(self) -> Group:
        """The runs among which dev chooses have it in common."""
        return (self.part, self.task, self.model, self.contender, self.examples, self.size)

    def told(self) -> str:
        """In words, for a progress bar or an error."""
        sizes = [f"{self.examples} examples" if self.examples else "", self.size or ""]
        what = f"trial {self.trial + 1}" if self.stage == SWEEP else f"seed {self.seed}"
        return ", ".join(filter(None, [self.part, self.task, self.model, self.contender, *sizes, what]))


@dataclass(frozen=True)
class Study:
    """The whole protocol. Raises StudyError where it is not one, or is not fair."""

    name: str
    parts: tuple[Part, ...]
    contenders: Mapping[str, Contender]
    steps: int = 300
    batch_size: int = 32
    eval_every: int = 100
    sweep_seed: int = 0
    dtype: str = "float32"
    told_inputs: int | None = None
    """For how many test inputs of `e2e` text is written, the same for all; None: for all of them."""
    sources: Mapping[str, Source] = field(default_factory=dict)
    """Tasks of a person's own, by name."""
    models: Mapping[str, str] = field(default_factory=dict)
    """Folders of models that do not ship, by name."""

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise StudyError(f"dtype is {self.dtype!r}; it can be float32, bfloat16 or float16.")
        for name, least in (("steps", 1), ("batch_size", 1), ("eval_every", 1), ("sweep_seed", 0)):
            if getattr(self, name) < least:
                raise StudyError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if self.told_inputs is not None and self.told_inputs < 1:
            raise StudyError(f"told_inputs must be at least 1, got {self.told_inputs}.")
        names = [part.name for part in self.parts]
        if not names or len(set(names)) < len(names):
            raise StudyError("a study needs at least one part, and no two of the same name.")
        for number, part in enumerate(self.parts):
            trials = {name: len(self.contenders[name].trials) for name in part.contenders}
            if len(set(trials.values()) - {0}) > 1:
                told = ", ".join(f"{name} {count}" for name, count in trials.items() if count)
                raise StudyError(f"part {part.name}: every contender must have as many trials, but there are {told}.")
            if part.chosen_by is not None and part.chosen_by not in names[:number]:
                raise StudyError(f"part {part.name}: chosen_by is {part.chosen_by!r}, which is no part before it.")
            if part.chosen_by is not None:
                part.check_chooser(self.part(part.chosen_by))
            if part.timed_by is not None and part.timed_by not in names:
                raise StudyError(f"part {part.name}: timed_by is {part.timed_by!r}, which is no part of the study.")
            if self.sweep_seed in part.seeds:
                raise StudyError(f"part {part.name}: seed {self.sweep_seed} is the sweep's; finals need fresh ones.")

    @property
    def tasks(self) -> list[str]:
        """Every task of any part, once."""
        return list(dict.fromkeys(task for part in self.parts for task in part.tasks))

    def part(self, name: str) -> Part:
        """The part of this name."""
        return next(part for part in self.parts if part.name == name)

    def is_told(self, task: str) -> bool:
        """Whether a task's texts are scored by their overlap with what people wrote."""
        return task == TOLD and task not in self.sources

    def is_steered(self, task: str) -> bool:
        """Whether a task's texts are drawn, and a judge says what they are."""
        return task in STEERED and task not in self.sources

    def steps_of(self, part: Part) -> int:
        """Optimizer steps of every run of a part."""
        return part.steps or self.steps

    def sweep(self, part: Part) -> Iterator[Run]:
        """All trials of a part; none where another part's choices are taken over."""
        for task, model, name, examples, size in [] if part.chosen_by else crossed(part):
            for trial in range(len(self.contenders[name].trials)):
                yield Run(SWEEP, part.name, task, model, name, examples, size, self.sweep_seed, trial)

    def finals(self, part: Part, chosen: Mapping[Group, int]) -> Iterator[Run]:
        """The runs of a part that see test, with the trials that were chosen."""
        for task, model, name, examples, size in self.tested(part):
            bare = not self.contenders[name].trials
            trial = 0 if bare else chosen.get(self.chooser(part, task, model, name, examples, size))
            for seed in self.seeds_of(part, task, name):
                if trial is not None:
                    yield Run(FINAL, part.name, task, model, name, examples, size, seed, trial)

    def tested(self, part: Part) -> Iterator[tuple[str, str, str, int | None, str | None]]:
        """Task, model, contender, examples and size of all that a part tests itself; see `is_borrowed`."""
        yield from (one for one in crossed(part) if not self.is_borrowed(part, one[3]))

    def is_borrowed(self, part: Part, examples: int | None) -> bool:
        """Whether the end of a part's curve over examples, all of them, is what its chooser tested already."""
        if part.chosen_by is None or len(part.examples) == 1 or examples is not None:
            return False
        chooser = self.part(part.chosen_by)
        return set(part.seeds) <= set(chooser.seeds) and self.steps_of(part) == self.steps_of(chooser)

    def seeds_of(self, part: Part, task: str, contender: str) -> tuple[int, ...]:
        """With which seeds a contender is tested: an untrained one with the first, but where its texts are drawn."""
        drawn = bool(self.contenders[contender].trials) or self.is_steered(task)
        return part.seeds if drawn else part.seeds[:1]

    def chooser(self, part: Part, *crossed: Any) -> Group:
        """The group whose choice the runs of a part take; of another part that with all examples, and its own size."""
        task, model, name, examples, size = crossed
        if part.chosen_by is None:
            return (part.name, task, model, name, examples, size)
        return (part.chosen_by, task, model, name, None, None)

    def key(self, run: Run) -> str:
        """The same for a run of the same settings, whatever else of the study changes."""
        part, contender = self.part(run.part), self.contenders[run.contender]
        told = {
            **asdict(run),
            "method": contender.method,
            "settings": dict(contender.settings),
            "trial": dict(contender.trials[run.trial]) if contender.trials else {},
            "training": [self.steps_of(part), self.batch_size, self.eval_every, self.dtype],
            "source": asdict(self.sources[run.task]) if run.task in self.sources else None,
        }
        if self.told_inputs is not None and self.is_told(run.task):
            told["told_inputs"] = self.told_inputs
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def crossed(part: Part) -> Iterator[tuple[str, str, str, int | None, str | None]]:
    for task in part.tasks:
        for model in part.models:
            for name in part.contenders:
                for examples in part.examples:
                    for size in part.sizes:
                        yield task, model, name, examples, size
