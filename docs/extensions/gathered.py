"""Brings into the site what lies elsewhere: the lessons, as they ran, the cards of what ships, and the command line.

These pages are written into this folder before Sphinx looks; git ignores them. A link from one file of the repository
to another becomes a link between their pages; where the other has no page, the link's text stays alone.
"""

import json
import posixpath
import re
from pathlib import Path
from typing import Any

import typer

from minipeft.checks import EXERCISES
from minipeft.cli import app as command_line
from minipeft.course.notebooks import for_learners, read_lessons

ROOT = Path(__file__).parents[2]
LINK = re.compile(
    r"(?<!`)\[(?P<text>(?:!\[[^\]]*\]\([^)]*\)|[^\[\]])*)\]\((?![a-z]+:)(?P<target>[^)#\s]+)(?P<place>#[^)\s]*)?\)"
)
CALL = re.compile(r'check\(\s*"(\w+)"')


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("config-inited", lambda app, config: gather(Path(app.srcdir)))
    app.connect("source-read", _read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def gather(docs: Path) -> None:
    """Write all pages that are made of something else, and remove those whose source is gone."""
    made = {docs / "command_line.md": commands()}
    for source, page in pages().items():
        if source.endswith(".md"):
            made[docs / f"{page}.md"] = linked((ROOT / source).read_text(encoding="utf-8"), source, page)
    lessons = read_lessons(ROOT / "lessons" / "src")
    ran = [lesson for lesson in lessons if (ROOT / "lessons" / "solutions" / f"{lesson.name}.ipynb").exists()]
    for lesson in ran:
        made[docs / "lessons" / f"{lesson.name}.ipynb"] = notebook(lesson)
    names = "\n".join(f"{lesson.number} {lesson.title} <{lesson.name}>" for lesson in ran)
    made[docs / "lessons" / "index.md"] += f"\n```{{toctree}}\n:hidden:\n\n{names}\n```\n"
    for folder in (docs / "lessons", docs / "cards"):
        folder.mkdir(exist_ok=True)
        for old in set(folder.iterdir()) - set(made):
            old.unlink()
    for path, text in made.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """Files outside of this folder -> the page that each becomes."""
    cards = sorted((ROOT / "minipeft" / "assets").glob("*/README.md"))
    solved = sorted((ROOT / "lessons" / "solutions").glob("[0-9][0-9]_*.ipynb"))
    return {
        "CONTRIBUTING.md": "contributing",
        "lessons/README.md": "lessons/index",
        **{card.relative_to(ROOT).as_posix(): f"cards/{card.parent.name}" for card in cards},
        **{f"lessons/{path.name}": f"lessons/{path.stem}" for path in solved},
        **{f"lessons/solutions/{path.name}": f"lessons/{path.stem}" for path in solved},
    }


def linked(text: str, source: str, page: str) -> str:
    """The text of a file of the repository, with its links as they must be on a page of the site."""
    here, known = posixpath.dirname(page) or ".", {**pages(), "README.md": "index"}

    def to_page(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link["target"]))
        text = LINK.sub(to_page, link["text"])  # a picture may be a link
        if (ROOT / target).is_dir():
            return text
        if target in known:
            target = f"docs/{known[target]}{posixpath.splitext(target)[1]}"
        return f"[{text}]({posixpath.relpath(target, posixpath.join('docs', here))}{link['place'] or ''})"

    return LINK.sub(to_page, text)


def notebook(lesson: Any) -> str:
    """A lesson as it ran; before each solution, which is folded, stand its gap and its hints."""
    ran = json.loads((ROOT / "lessons" / "solutions" / f"{lesson.name}.ipynb").read_text(encoding="utf-8"))
    gaps = iter([cell.source for cell in for_learners(lesson).cells if "exercise" in cell.metadata.get("tags", [])])
    judged = iter([find[1] for cell in ran["cells"] if "check" in _tags(cell) and (find := CALL.search(_text(cell)))])
    cells = []
    for cell in ran["cells"]:
        if "exercise" in _tags(cell):
            cells.append(_gap(next(gaps), next(judged), cell["id"]))
            fold = {"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
            cell["metadata"] |= {"tags": [*_tags(cell), "hide-input"], "mystnb": fold}
        elif cell["cell_type"] == "code":
            cell["metadata"]["mystnb"] = {"image": {"alt": "The figure that the code above draws."}}
        cells.append(cell)
    cells[0]["source"] = _text(cells[0]) + (
        "\n\n```{admonition} Do it yourself\nThis page shows the lesson solved. `make lab` opens it with gaps to fill: "
        f"`{lesson.name}.ipynb`. `minipeft check {lesson.number}` says whether you are right.\n```\n"
    )
    return json.dumps({**ran, "cells": cells}, ensure_ascii=False)


def commands() -> str:
    """Every command with its examples and options, as `--help` tells them."""
    lines = ["# The command line", "", "What `minipeft COMMAND --help` tells, on one page.", ""]
    for name, command in typer.main.get_command(command_line).commands.items():
        lines += _command(f"minipeft {name}", command)
        for part, inner in getattr(command, "commands", {}).items():
            lines += _command(f"minipeft {name} {part}", inner, "###")
    return "\n".join(lines) + "\n"


def _command(name: str, command: Any, heading: str = "##") -> list[str]:
    told, _, examples = command.help.partition("Examples:")
    shown = re.findall(r"`([^`]+)`", examples.partition("\n\nA line")[0])
    lines = [f"{heading} {name}", "", told.strip(), "", "```", *shown, "```", ""]
    rows = [_option(option) for option in command.params if option.name != "help"]
    if rows:
        lines += ["| option | what it does | default |", "|---|---|---|", *rows, ""]
    return lines if shown else [line for line in lines if line != "```"]


def _option(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    default = option.show_default if isinstance(option.show_default, str) else option.default
    untold = default is None or default is False or default in ((), []) or callable(default)
    shown = "" if untold else f"`{getattr(default, 'value', default)}`"
    needed = "needed" if option.required else shown
    return f"| {names} | {(option.help or '').replace('|', chr(92) + '|')} | {needed} |"


def _gap(source: str, exercise: str, solution: str) -> dict[str, Any]:
    """What a learner finds in place of a solution, and the hints, folded."""
    hints = EXERCISES[exercise].hints
    folded = [f"```{{dropdown}} Hint {n} of {len(hints)}\n{hint}\n```" for n, hint in enumerate(hints, start=1)]
    text = "\n\n".join([f"```python\n{source}\n```", *folded])
    return {"cell_type": "markdown", "id": f"{solution}-gap", "metadata": {}, "source": text}


def _read(app: Any, page: str, source: list[str]) -> None:
    """The pages that are written in this folder link to files of the repository, too."""
    if Path(app.env.doc2path(page)).suffix == ".ipynb":
        return
    source[0] = linked(source[0], f"docs/{page}.md", page)


def _tags(cell: dict[str, Any]) -> list[str]:
    return list(cell["metadata"].get("tags", []))


def _text(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])
