"""Docstrings as this project writes them, which is nearly Markdown, for Sphinx, which reads reStructuredText.

`code` stays as it is (`default_role` makes links of it), an indented block becomes a block of code, and a sign that has
a meaning in reStructuredText alone, such as the bars of |S|, loses it.
"""

import re
from typing import Any

from docutils import nodes
from sphinx import addnodes

import minipeft


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _process_docstring)
    app.connect("autodoc-process-signature", _process_signature)
    app.connect("autodoc-skip-member", lambda app, what, name, *rest: True if name.isupper() else None)  # constants
    app.connect("doctree-read", _mend_signatures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _process_docstring(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    lines[:] = as_rst(lines)


def _process_signature(
    app: Any, what: str, name: str, thing: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """A dataclass's `<factory>` is no Python, and Sphinx would show the whole signature as one text."""
    return signature and signature.replace("<factory>", "..."), returns


def as_rst(lines: list[str]) -> list[str]:
    """The lines of a docstring as reStructuredText."""
    rst: list[str] = []
    code = False
    for line in lines:
        after_gap = not rst or not rst[-1].strip()
        if line.startswith("    ") and after_gap and not code:
            rst += [".. code-block:: text", ""]
            code = True
        elif line.strip() and not line.startswith(" "):
            code = False
        rst.append(line if code else _escaped(line))
    return rst


def _escaped(line: str) -> str:
    """`code` untouched, and everything else plain."""
    parts = re.split(r"(`[^`]+`)", line)
    for number, part in enumerate(parts):
        if number % 2 == 0:
            parts[number] = re.sub(r"(?<!^)([*|_\\])", r"\\\1", part)
        elif not re.fullmatch(r"`[\w.]+`", part):  # no name: literal
            parts[number] = f"`{part}`"
    return "".join(parts)


def _mend_signatures(app: Any, page: nodes.document) -> None:
    """`Float[Tensor, "B T D"]` as it stands in the source, where Sphinx writes single quotes; and a second anchor.

    From the source of a module viewcode leads back by one prefix for all names: `minipeft.` if one of them is public.
    """
    with_public = {getattr(minipeft, name).__module__ for name in minipeft.__all__}
    for signature in page.findall(addnodes.desc_signature):
        if signature.get("module") in with_public:
            signature["ids"].append(f"minipeft.{signature['fullname']}")
        for text in list(signature.findall(nodes.Text)):
            if re.fullmatch("'[^'\"]*'", text):
                text.parent.replace(text, nodes.Text(f'"{text[1:-1]}"'))
