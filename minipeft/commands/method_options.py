"""Methods as the command line names them: one, or several with a + between, with their settings."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from minipeft.methods import Method

Length = Annotated[int | None, typer.Option(help="Vectors of a soft prompt (20) or prefix (10).")]
Reparam = Annotated[int, typer.Option(help="Width of the MLP that makes a prefix while training; 0: none.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Another setting of the method, such as rank=4 (of several, lora.rank=4); repeatable."),
]


def choose_methods(names: str, given: dict[str, Any], settings: list[str]) -> "Method":
    """One method, or a stack of those that a + joins, with the options that were given.

    Raises ValueError for an option that none of them has, or more than one.
    """
    from minipeft.methods import METHODS, Stack

    each = names.split("+")
    if wrong := [name for name in each if name not in METHODS]:
        raise ValueError(f"there is no method {wrong[0]!r}; there are {', '.join(METHODS)}.")
    declared = {name: {field.name: str(field.type) for field in fields(METHODS[name])} for name in each}
    options: dict[str, dict[str, Any]] = {name: {"reparam": None} if name == "prefix" else {} for name in each}
    for option, value in given.items():
        if value is not None:
            if not any(option in own for own in declared.values()):
                raise ValueError(f"{names} has no --{option}.")
            options[_owner(f"--{option}", option, declared)][option] = value
    for setting in settings:
        option, equals, value = setting.partition("=")
        name, dot, own = option.rpartition(".")
        among = {name: declared[name]} if dot and name in declared else declared
        owner = _owner(f"--set {setting}", own if equals else "", among)
        options[owner][own] = _value(setting, value, declared[owner][own])
    made = tuple(METHODS[name](**options[name]) for name in each)
    return made[0] if len(made) == 1 else Stack(made)


def _owner(written: str, option: str, declared: dict[str, dict[str, str]]) -> str:
    """The one method that declares an option."""
    owners = [name for name, own in declared.items() if option in own]
    if len(owners) == 1:
        return owners[0]
    if owners:
        choices = " or ".join(f"--set {name}.{option}=VALUE" for name in owners)
        raise ValueError(f"{written}: {' and '.join(owners)} both have it; write {choices}.")
    names = ", ".join(f"the names of {name} are {', '.join(own) or 'none'}" for name, own in declared.items())
    raise ValueError(f"{written}: write NAME=VALUE; {names}.")


def _value(setting: str, text: str, kind: str) -> Any:
    """A setting's value, of the kind that its method declares."""
    if text == "none" and "None" in kind:
        return None
    if "tuple" in kind:
        return tuple(filter(None, text.split(",")))
    if "bool" in kind and text in ("true", "false"):
        return text == "true"
    numbers: dict[str, Callable[[str], Any]] = {"int": int, "float": float}
    for name, read in numbers.items():
        if name in kind:
            with suppress(ValueError):
                return read(text)
    if "str" in kind:
        return text
    raise ValueError(f"--set {setting}: {text!r} is not of the kind that {setting.partition('=')[0]} needs.")
