"""Controls of a lesson: sliders, lists and text fields where the notebook is live; elsewhere the same picture alone."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

STILL, EVERY_END = "MINIPEFT_LESSONS_STILL", "every end"
"""Set to anything, it means that nobody is there to move a slider: notebooks are being built or tested.

Set to `EVERY_END`, every control is moved to its two ends once, and a text emptied, as somebody might.
"""


@dataclass(frozen=True)
class Slider:
    """A number from `low` to `high` that starts at `start`; whole numbers if `step` is one."""

    start: int | float
    low: int | float
    high: int | float
    step: int | float


@dataclass(frozen=True)
class Choice:
    """One of some texts, `start` at first."""

    start: str
    among: tuple[str, ...]


def explore(show: Callable[..., None], **controls: Slider | Choice | str) -> None:
    """Call `show` with a value for each control: now, and in a live notebook again whenever one is moved.

    A `Slider` is a number, a `Choice` a text to be picked from a list, a `str` a text that can be changed.
    """
    if _is_live():
        import ipywidgets  # type: ignore[import-untyped]

        widgets = {name: _widget(ipywidgets, name, control) for name, control in controls.items()}
        ipywidgets.interact(show, **widgets)
        return
    start = {name: control if isinstance(control, str) else control.start for name, control in controls.items()}
    show(**start)
    if os.environ.get(STILL) == EVERY_END:
        for name, control in controls.items():
            for end in _ends(control):
                show(**start | {name: end})
    names = " and ".join(name.replace("_", " ") for name in controls)
    print(f"(Open this notebook in JupyterLab to change {names} and see what happens.)")


def _ends(control: Slider | Choice | str) -> tuple[Any, ...]:
    """What somebody may move it to: the first and last of a list, the ends of a slider, no text at all."""
    if isinstance(control, str):
        return ("",)
    if isinstance(control, Choice):
        return tuple(one for one in (control.among[0], control.among[-1]) if one != control.start)
    return control.low, control.high


def _is_live() -> bool:
    """Whether this is a notebook in which somebody works."""
    if STILL in os.environ or "IPython" not in sys.modules:
        return False
    shell = sys.modules["IPython"].get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def _widget(ipywidgets: Any, name: str, control: Slider | Choice | str) -> Any:
    """`continuous_update=False`: `show` is called when the hand lets go, not at every step on the way."""
    common: dict[str, Any] = {
        "description": name.replace("_", " "),
        "continuous_update": False,
        "style": {"description_width": "initial"},
        "layout": {"width": "32em"},
    }
    if isinstance(control, str):
        return ipywidgets.Text(value=control, **common)
    if isinstance(control, Choice):
        del common["continuous_update"]  # a list has no such thing
        return ipywidgets.Dropdown(options=control.among, value=control.start, **common)
    kind = ipywidgets.IntSlider if isinstance(control.step, int) else ipywidgets.FloatSlider
    return kind(value=control.start, min=control.low, max=control.high, step=control.step, **common)
