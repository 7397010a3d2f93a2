"""Formulas as pictures that stand in the page itself: no script, no font and no network is needed to see them."""

import html
from typing import Any
from xml.etree import ElementTree

import ziamath
from docutils import nodes

POINTS = 16
"""The size that formulas are drawn at; in the page they are as large as the text around them."""


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    ziamath.config.svg2 = False  # no <symbol>, whose names would be the same in several formulas
    ziamath.config.math.color = "currentColor"  # the text's own, in light and dark
    app.add_html_math_renderer("svg", (_inline, None), (_display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _inline(page: Any, node: nodes.math) -> None:
    page.body.append(f'<span class="formula">{_svg(node.astext(), inline=True)}</span>')
    raise nodes.SkipNode


def _display(page: Any, node: nodes.math_block) -> None:
    page.body.append(f'<div class="formula">{_svg(node.astext(), inline=False)}</div>')
    raise nodes.SkipNode


def _svg(latex: str, inline: bool) -> str:
    """A formula as SVG, in units of the text's size, its base line on that of the text; read aloud it is its LaTeX."""
    drawn = ziamath.Latex(" ".join(latex.split()), size=POINTS, inline=inline)
    picture = drawn.svgxml()
    for side in ("width", "height"):
        picture.set(side, f"{float(picture.get(side)) / POINTS:.3f}em")
    picture.set("style", f"vertical-align: {drawn.getyofst() / POINTS:.3f}em")
    picture.set("role", "img")
    picture.set("aria-label", html.unescape(latex))
    return ElementTree.tostring(picture, encoding="unicode")
