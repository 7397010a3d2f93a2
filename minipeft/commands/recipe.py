"""Recipes: the options of a command in a TOML file, `minipeft pretrain --recipe FILE`; options beside it count more."""

import sys
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

from minipeft.corpus import read_text

OPTION = "--recipe"


class RecipeError(ValueError):
    """A recipe that cannot be followed; the message names the file and the key."""


def with_recipe(words: Sequence[str], command: Callable[..., Any], name: str) -> list[str]:
    """The words of a command line with a recipe's options in front of a person's own, which then count.

    A switch of the recipe is turned off by `--no-` before its name. Without `--recipe`, or of another command than the
    one of this name, they are as they were.
    Raises RecipeError, or FileNotFoundError as `read_text` does.
    """
    words = list(words)
    at = next((number for number, word in enumerate(words) if word.split("=")[0] == OPTION), None)
    if not words or words[0] != name or at is None:
        return words
    path, own = _cut_out(words, at)
    given = {word.split("=")[0] for word in own}
    if OPTION in given:
        raise RecipeError(f"{OPTION} is there twice; put the options of both into one file.")
    recipe = read_recipe(path, command)
    off = {_option(f"no_{key}"): key for key, value in recipe.items() if isinstance(value, bool)}
    left_out = given | {_option(key) for word, key in off.items() if word in given}
    lines = (_words(key, value) for key, value in recipe.items() if _option(key) not in left_out)
    return [name, *(word for line in lines for word in line), *(word for word in own[1:] if word not in off)]


def read_recipe(path: Path, command: Callable[..., Any]) -> dict[str, Any]:
    """The keys and values of a recipe, each an option of `command` and of its type."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        recipe = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path} is no TOML file: {error}.") from None
    kinds = {name: kind for name, kind in get_type_hints(command).items() if name not in ("return", "recipe")}
    for key, value in recipe.items():
        if key not in kinds:
            raise RecipeError(f"{path}: there is no option {key!r}; there are {', '.join(sorted(kinds))}.")
        _check(path, key, value, kinds[key])
    return recipe


def _cut_out(words: list[str], at: int) -> tuple[Path, list[str]]:
    """The file that `--recipe` names, and the words without both."""
    _, equals, path = words[at].partition("=")
    if equals:
        return Path(path), words[:at] + words[at + 1 :]
    if at + 1 == len(words):
        raise RecipeError(f"{OPTION} needs a file, such as recipes/tinyshakespeare.toml.")
    return Path(words[at + 1]), words[:at] + words[at + 2 :]


def _check(path: Path, key: str, value: object, kind: Any) -> None:
    """Raise RecipeError unless a value is what the option takes."""
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    wanted = next(each for each in kinds if each is not type(None))
    many = getattr(wanted, "__origin__", None) is list
    if many and isinstance(value, str):
        value = [value]
    what, right = {
        bool: ("true or false", isinstance(value, bool)),
        int: ("a whole number", isinstance(value, int) and not isinstance(value, bool)),
        float: ("a number", isinstance(value, int | float) and not isinstance(value, bool)),
    }.get(wanted, ("text in quotation marks", isinstance(value, str)))
    if many:
        what, right = "a list of texts", isinstance(value, list) and all(isinstance(each, str) for each in value)
    elif isinstance(wanted, type) and issubclass(wanted, Enum):
        names = [each.value for each in wanted]
        what, right = f"one of {', '.join(names)}", value in names
    if not right:
        raise RecipeError(f"{path}: {key} must be {what}, got {value!r}.")


def _words(key: str, value: object) -> Iterator[str]:
    """An option as it is typed."""
    if isinstance(value, bool):
        yield from [_option(key)] if value else []
    else:
        for each in value if isinstance(value, list) else [value]:
            yield from (_option(key), str(each))


def _option(key: str) -> str:
    return "--" + key.replace("_", "-")
