"""A study as a file: read from TOML and checked, and kept as JSON beside its results to say how they came about."""

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from minipeft.compare.contenders import USUAL, check_contender
from minipeft.compare.study import Contender, Part, Source, Study, StudyError
from minipeft.corpus import read_text
from minipeft.files import read_json

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ALL = "all"
"""Of the examples, in a file; TOML has no null."""
NONE = "none"
"""For the same reason: no MLP is `reparam = "none"`."""
SIZE = re.compile(r"(length|numbers)=[1-9]\d*")


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value)


ELEMENTS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "tasks": (_is_name, "names"),
    "models": (_is_name, "names"),
    "contenders": (_is_name, "names"),
    "examples": (lambda one: one is None or _is_whole(one, 2), f'whole numbers from 2 on, or "{ALL}"'),
    "sizes": (lambda one: one is None or (_is_name(one) and bool(SIZE.fullmatch(one))), '"length=N" or "numbers=N"'),
    "seeds": (lambda one: _is_whole(one, 0), "whole numbers from 0 on"),
}
"""What stands in the lists of a part."""


def read_study(path: str | Path) -> Study:
    """The study in a .toml file, or in the .json that was kept of one.

    Raises StudyError with one sentence that names the file, and what is wrong in it.
    """
    try:
        return study_of(read_json(path) if Path(path).suffix == ".json" else tomllib.loads(read_text(Path(path))))
    except tomllib.TOMLDecodeError as error:
        raise StudyError(f"{path} is no TOML file: {error}.") from None
    except StudyError as error:
        raise StudyError(f"{path}: {error}") from None


def study_of(told: Mapping[str, Any]) -> Study:
    """The study that a table of settings describes. The usual contenders need not be told. Raises StudyError."""
    told = dict(told)
    parts = [_part(one) for one in _tables("parts", told.pop("parts", []))]
    sources = {name: Source(**_checked(Source, f"task {name}", one)) for name, one in _named(told, "tasks").items()}
    own = {name: _contender(name, one) for name, one in _named(told, "contenders").items()}
    models = told.get("models", {})
    if not isinstance(models, dict) or not all(isinstance(place, str) for place in models.values()):
        raise StudyError("models must be a table, [models], of names and folders.")
    wanted = {name: part for part in parts for name in part.contenders}
    known = {**USUAL, **own}
    if unknown := [name for name in wanted if name not in known]:
        told_part, there = wanted[unknown[0]].name, ", ".join(known)
        raise StudyError(f"part {told_part}: there is no contender {unknown[0]!r}; there are {there}.")
    contenders = {name: one for name, one in known.items() if name in wanted}
    for contender in contenders.values():
        check_contender(contender)
    kept = _checked(Study, "the study", {**told, "parts": (), "contenders": {}})
    return Study(**{**kept, "parts": tuple(parts), "contenders": contenders, "sources": sources})


def told_of(study: Study) -> dict[str, Any]:
    """The table of settings that `study_of` makes the same study of."""
    plain = asdict(study)
    contenders = {
        name: {"method": one.method, **one.settings, "trials": list(one.trials)}
        for name, one in study.contenders.items()
    }
    parts = [
        {name: value for name, value in one.items() if value is not None}
        | {"examples": [ALL if number is None else number for number in one["examples"]]}
        for one in plain["parts"]
    ]
    sources = {name: {key: v for key, v in one.items() if v is not None} for name, one in plain.pop("sources").items()}
    plain = {name: value for name, value in plain.items() if value is not None}
    return {**plain, "parts": parts, "models": dict(study.models), "contenders": contenders, "tasks": sources}


def _named(told: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
    """A table of tables, taken out of what is told."""
    value = told.pop(name, {})
    if not isinstance(value, dict) or not all(isinstance(one, dict) for one in value.values()):
        raise StudyError(f"{name} must be tables, such as [{name}.NAME].")
    return value


def _tables(name: str, value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise StudyError(f"{name} must be tables, [[{name}]].")
    return value


def _part(told: dict[str, Any]) -> Part:
    where = f"part {told.get('name', '')}".strip()
    found = _checked(Part, where, told)
    found["examples"] = tuple(None if number == ALL else number for number in found.get("examples", (ALL,)))
    for name, (right, wanted) in ELEMENTS.items():
        if wrong := [value for value in found.get(name, ()) if not right(value)]:
            raise StudyError(f"{where}: {name} are {wanted}; one is {wrong[0]!r}.")
    return Part(**found)


def _contender(name: str, told: dict[str, Any]) -> Contender:
    told = dict(told)
    method, trials = told.pop("method", name), _tables("trials", told.pop("trials", []))
    settings, *trials = (
        {key: None if value == NONE else value for key, value in one.items()} for one in (told, *trials)
    )
    return Contender(name, method, settings, tuple(trials))


def _checked(kind: Any, where: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a dataclass, lists as tuples. Raises StudyError for one unknown, missing or of a wrong type."""
    known = {one.name: one.type.__name__ if isinstance(one.type, type) else str(one.type) for one in fields(kind)}
    found: dict[str, Any] = {}
    for name, value in told.items():
        if name not in known:
            raise StudyError(f"{where} has no setting {name!r}; it has {', '.join(known)}.")
        many, declared = known[name].startswith("tuple"), known[name]
        right = {"str": isinstance(value, str), "int": isinstance(value, int) and not isinstance(value, bool)}
        if many != isinstance(value, list | tuple) or not right.get(declared.split(" | ")[0], True):
            what = (
                "a list" if many else {"str": "text", "int": "a whole number"}.get(declared.split(" | ")[0], declared)
            )
            raise StudyError(f"{where}: {name} must be {what}, got {value!r}.")
        found[name] = tuple(value) if many else value
    needed = [one.name for one in fields(kind) if one.default is one.default_factory]  # both are MISSING
    if missing := [name for name in needed if name not in found]:
        raise StudyError(f"{where} lacks {missing[0]!r}.")
    return found
