"""How a comparison is written: Markdown tables, names, and numbers as people read them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from textwrap import shorten
from typing import Any

from minipeft.compare.results import Row
from minipeft.compare.statistics import Mean

MOST_QUOTED = 160
"""Characters."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: int = 0) -> str:
    """A Markdown table whose last `right` columns are numbers."""
    rule = ["---"] * (len(head) - right) + ["---:"] * right
    return "\n".join([_line(head), f"|{'|'.join(rule)}|", *map(_line, rows)])


def called(contender: str) -> str:
    """A contender as people say it."""
    return NAMES.get(contender, contender.replace("_", " "))


NAMES = {
    "majority": "commonest label",
    "zero_shot": "zero-shot prompt",
    "best_prompt": "best hard prompt",
    "calibrated_prompt": "best hard prompt, calibrated",
    "soft_prompt_labels": "soft prompt from labels",
    "prefix": "prefix, no MLP",
    "prefix_mlp": "prefix by MLP",
    "deep_prompt_text": "prefix from a text",
    "p_tuning": "P-tuning",
    "lora": "LoRA",
    "ia3": "IA³",
    "adapter": "bottleneck adapter",
    "llama_adapter": "LLaMA-Adapter",
    "bitfit": "BitFit",
    "top2": "top two blocks",
    "full": "full finetuning",
}


def start_of(trial: Mapping[str, Any]) -> str:
    """What a trial chooses beside its learning rate, in a few words."""
    return ", ".join(_start(value) for name, value in trial.items() if name != "lr") or "usual"


def chosen(row: Row) -> str:
    """The learning rate and start of a run."""
    settings = row.get("settings")
    if not settings:
        return f"`{row['prompt']}`" if row.get("prompt") else ""
    start = settings.get("init") or settings.get("encoder") or settings.get("pool") or ""
    return f"{settings['lr']:g}" + (f", {_start(start)}" if start else "")


def mean_told(mean: Mean) -> str:
    """A mean with its interval, if it has one."""
    return f"{mean.value:.1f}" + (f" ± {mean.half:.1f}" if math.isfinite(mean.half) else "")


def axis_told(value: Any) -> str:
    """A size, or an amount of examples."""
    if value is None:
        return "all"
    return str(value).replace("=", " ") if isinstance(value, str) else f"{value:,}"


def dev_told(score: float | None) -> str:
    """A score on dev: an accuracy in percent, else minus a loss."""
    return "diverged" if score is None else f"{100 * score:.1f}" if score > 0 else f"{score:.3f}"


def quoted(text: str) -> str:
    """A text that was written, in one cell of a table; a long one by its first words."""
    return shorten(text, MOST_QUOTED, placeholder=" …").replace("|", "\\|")


def p_told(value: float) -> str:
    """A chance."""
    if math.isnan(value):
        return "not defined"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def plain(value: Any) -> str:
    """A field of a CSV."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _start(value: Any) -> str:
    """A start, a text by its first words."""
    text = str(value)
    return f"“{' '.join(text.removeprefix('text:').split()[:3])} …”" if text.startswith("text:") else text


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
