"""The demonstration: movie reviews, the small GPT-2 that ships, and what steering it with a prompt costs and brings."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from minipeft.evaluate import Score, evaluate, majority
from minipeft.files import write_json
from minipeft.generate import Sampling
from minipeft.gpt2 import GPT2
from minipeft.methods import FullFinetuning, HardPrompt, Method, Prefix, SoftPrompt
from minipeft.plots import accuracy_bars
from minipeft.tasks import TASKS, Task
from minipeft.tune import TuneConfig, encoder_for, tune
from minipeft.tuned import SHIPPED_ADAPTERS, WEIGHTS_FILE, Tuned, attach, load

OPENING = "The film"
STEERING = ("positive", "negative", "shakespeare")
TUNED: tuple[tuple[str, Method, TuneConfig], ...] = (
    ("soft prompt", SoftPrompt(length=20, init="labels"), TuneConfig(steps=600, batch_size=32)),
    ("prefix", Prefix(length=10, reparam=None, init="vocab"), TuneConfig(steps=600, batch_size=32)),
    ("full finetuning", FullFinetuning(), TuneConfig(steps=400, batch_size=8)),
)


@dataclass(frozen=True)
class Row:
    """One line of the demo's table. `bytes`: of the file that one more task costs; `seconds`: of training."""

    method: str
    trainable: int
    bytes: int
    seconds: float
    dev: float
    test: float
    error: float
    examples: int


def run(out: Path, console: Console, seed: int = 0) -> list[Row]:
    """Measure, tune, print the table and three steered texts; write `table.json`, `accuracy.png` and the adapters."""
    model, task = GPT2.from_pretrained("nano"), TASKS["movie"]()
    examples = {split: len(rows) for split, rows in task.splits.items()}
    console.print(
        f"A GPT-2 of {model.num_parameters():,} parameters reads movie reviews: positive or negative? "
        f"{examples['train']:,} to learn from, {examples['dev']:,} to choose on, {examples['test']:,} to test on.",
        highlight=False,
    )
    rows = [_majority_row(task), _hard_prompt_row(model, task, console)]
    for label, method, config in TUNED:
        console.print(f"Tuning: {label}, {config.steps} steps of {config.batch_size} reviews …", highlight=False)
        rows.append(_tuned_row(label, method, model, task, config, seed, out / method.name))
    texts = _steered(model)
    console.print(_table(rows))
    _print_steered(texts, console)

    accuracy_bars([asdict(row) for row in rows], _finding(rows), out / "accuracy.png")
    write_json(out / "table.json", {"rows": [asdict(row) for row in rows], "opening": OPENING, "texts": texts})
    console.print(f"Saved: {out}/table.json, {out}/accuracy.png, and the adapters beside them.", highlight=False)
    return rows


def best_hard_prompt(model: GPT2, task: Task) -> tuple[HardPrompt, Score]:
    """The template that does best on dev, among those that the task offers."""
    measured = []
    for template in task.hard_prompts:
        tuned = attach(model, HardPrompt(template))
        measured.append((HardPrompt(template), evaluate(tuned, encoder_for(tuned, task), task.splits["dev"])))
    return max(measured, key=lambda pair: pair[1].score)


def _majority_row(task: Task) -> Row:
    dev, test = majority(task, "dev"), majority(task, "test")
    return Row("majority class", 0, 0, 0.0, dev.accuracy, test.accuracy, test.standard_error, test.examples)


def _hard_prompt_row(model: GPT2, task: Task, console: Console) -> Row:
    console.print(f"Trying {len(task.hard_prompts)} hard prompts on the dev reviews …", highlight=False)
    method, dev = best_hard_prompt(model, task)
    tuned = attach(model, method)
    test = evaluate(tuned, encoder_for(tuned, task), task.splits["test"])
    console.print(f"The best of them: {method.template!r}", highlight=False, markup=False)
    size = len(method.template.encode("utf-8"))
    return Row("hard prompt", 0, size, 0.0, dev.accuracy, test.accuracy, test.standard_error, test.examples)


def _tuned_row(label: str, method: Method, model: GPT2, task: Task, config: TuneConfig, seed: int, out: Path) -> Row:
    started = time.monotonic()
    tuned, _ = tune(model, method, task, TuneConfig(**{**asdict(config), "seed": seed}), out)
    seconds = time.monotonic() - started
    encoder = encoder_for(tuned, task)
    dev, test = (evaluate(tuned, encoder, task.splits[split]) for split in ("dev", "test"))
    size = (out / WEIGHTS_FILE).stat().st_size
    trainable, error = tuned.num_trainable(), test.standard_error
    tuned.detach()
    return Row(label, trainable, size, round(seconds, 1), dev.accuracy, test.accuracy, error, test.examples)


def _steered(model: GPT2) -> dict[str, str]:
    """The same opening continued by the bare model and behind each prompt that ships."""
    sampling = Sampling(max_new_tokens=40, temperature=0.7, top_k=40, seed=1)
    bare = attach(model, HardPrompt())
    writers: Sequence[tuple[str, Callable[[], Tuned]]] = [
        ("no prompt", lambda: bare),
        *((name, lambda name=name: load(SHIPPED_ADAPTERS / name, model)) for name in STEERING),
    ]
    return {name: make().generate_with(OPENING, sampling) for name, make in writers}


def _print_steered(texts: dict[str, str], console: Console) -> None:
    table = Table(title=f'The same opening, "{OPENING} …", behind different prompts', show_lines=True)
    table.add_column("prompt")
    table.add_column("text")
    for name, text in texts.items():
        table.add_row(name, " ".join(text.split()))
    console.print(table)


def _table(rows: Sequence[Row]) -> Table:
    table = Table(title=f"Movie reviews, positive or negative ({rows[0].examples:,} test examples)")
    table.add_column("method")
    for column in ("trainable", "bytes on disk", "seconds", "dev", "test"):
        table.add_column(column, justify="right")
    for row in rows:
        seconds = f"{row.seconds:.0f}" if row.seconds else ""
        test = f"{row.test:.1%} ± {row.error:.1%}"
        table.add_row(row.method, f"{row.trainable:,}", f"{row.bytes:,}", seconds, f"{row.dev:.1%}", test)
    return table


def _finding(rows: Sequence[Row]) -> str:
    """What the plot shows, in words that follow from the numbers."""
    by_method = {row.method: row for row in rows}
    prompt, full = by_method["soft prompt"], by_method["full finetuning"]
    share = full.trainable / prompt.trainable
    return (
        f"{prompt.trainable:,} trained numbers reach {prompt.test:.0%}; "
        f"{share:,.0f} times as many reach {full.test:.0%}"
    )
