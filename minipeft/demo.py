"""The demonstration: movie reviews, the small GPT-2 that ships, and what steering it with a prompt costs and brings."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from minipeft.asked import Asked
from minipeft.evaluate import evaluate, label_log_likelihoods, majority
from minipeft.files import write_json
from minipeft.gpt2 import GPT2
from minipeft.methods import FullFinetuning, HardPrompt, Method, Prefix, SoftPrompt
from minipeft.plots import accuracy_bars
from minipeft.sampling import Sampling
from minipeft.tasks import TASKS, Example, Task
from minipeft.tune import TuneConfig, encoder_for, tune
from minipeft.tuned import SHIPPED_ADAPTERS, WEIGHTS_FILE, Tuned, attach, load

OPENING = "It is a"
JUDGED = 100
STEERING = ("positive", "negative", "shakespeare")
TUNED: tuple[tuple[str, Method, TuneConfig], ...] = (
    ("soft prompt", SoftPrompt(length=20, init="labels"), TuneConfig(steps=600, batch_size=32, eval_every=300)),
    ("prefix", Prefix(length=10, reparam=512), TuneConfig(steps=500, batch_size=32, eval_every=250)),
    ("full finetuning", FullFinetuning(), TuneConfig(steps=400, batch_size=8, eval_every=200)),
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


@dataclass(frozen=True)
class Steered:
    """What a prompt writes after the opening, and the share of its texts that a classifier calls positive."""

    prompt: str
    text: str
    positive: float


def run(out: Path, console: Console, seed: int = 0) -> list[Row]:
    """Measure, tune, print the table and three steered texts; write `table.json`, `accuracy.png` and the adapters."""
    model, task = GPT2.from_pretrained("nano"), TASKS["movie"]()
    examples = {split: len(rows) for split, rows in task.splits.items()}
    console.print(
        f"A GPT-2 of {model.num_parameters():,} parameters reads movie reviews: positive or negative? "
        f"{examples['train']:,} to learn from, {examples['dev']:,} to choose on, {examples['test']:,} to test on.",
        highlight=False,
    )
    rows = [_majority_row(task), *hard_prompt_rows(model, task, console)]
    for label, method, config in TUNED:
        console.print(f"Tuning: {label}, {config.steps} steps of {config.batch_size} reviews …", highlight=False)
        rows.append(_tuned_row(label, method, model, task, config, seed, out / method.name))
    steered = _steered(model, load(out / FullFinetuning.name, model), task)
    console.print(_table(rows))
    _print_steered(steered, console)

    accuracy_bars([asdict(row) for row in rows], _finding(rows), out / "accuracy.png")
    table = {"rows": [asdict(row) for row in rows], "opening": OPENING, "steered": [asdict(row) for row in steered]}
    write_json(out / "table.json", table)
    console.print(f"Saved: {out}/table.json, {out}/accuracy.png, and the adapters beside them.", highlight=False)
    return rows


def hard_prompt_rows(model: GPT2, task: Task, console: Console) -> list[Row]:
    """The best of the task's templates on dev, as it is and calibrated; nothing is trained."""
    console.print(f"Trying {len(task.hard_prompts)} hard prompts on the dev reviews …", highlight=False)
    dev, test = task.splits["dev"], task.splits["test"]
    tried = [Asked(model, task, template) for template in task.hard_prompts]
    rows = []
    for label, calibrated in (("hard prompt", False), ("hard prompt, calibrated", True)):
        best = max(tried, key=lambda asked: asked.score(dev, calibrated).score)
        console.print(f"The best {label}: {best.template!r}", highlight=False, markup=False)
        on_dev, on_test = best.score(dev, calibrated), best.score(test, calibrated)
        error, examples = on_test.standard_error, on_test.examples
        size = best.nbytes(calibrated)
        rows.append(Row(label, 0, size, 0.0, on_dev.accuracy, on_test.accuracy, error, examples))
    return rows


def _majority_row(task: Task) -> Row:
    dev, test = majority(task, "dev"), majority(task, "test")
    return Row("majority class", 0, 0, 0.0, dev.accuracy, test.accuracy, test.standard_error, test.examples)


def _tuned_row(label: str, method: Method, model: GPT2, task: Task, config: TuneConfig, seed: int, out: Path) -> Row:
    started = time.monotonic()
    tuned, result = tune(model, method, task, replace(config, seed=seed), out)
    seconds = time.monotonic() - started
    dev, test = result.best_measured["dev_accuracy"], evaluate(tuned, encoder_for(tuned, task), task.splits["test"])
    size = (out / WEIGHTS_FILE).stat().st_size
    trainable, error = tuned.num_trainable(), test.standard_error
    tuned.detach()
    return Row(label, trainable, size, round(seconds, 1), dev, test.accuracy, error, test.examples)


def _steered(model: GPT2, judge: Tuned, task: Task) -> list[Steered]:
    """The same opening continued by the bare model and behind each prompt that ships."""
    sampling = Sampling(max_new_tokens=30, temperature=0.7, top_k=40, seed=3)
    encoder = encoder_for(judge, task, truncate=True)
    positive = list(encoder.label_ids).index("positive")
    found = []
    for name in ("no prompt", *STEERING):
        writer = attach(model, HardPrompt()) if name == "no prompt" else load(SHIPPED_ADAPTERS / name, model)
        texts = writer.generate_with([OPENING] * JUDGED, sampling)
        likelihoods = label_log_likelihoods(judge, encoder, [Example(str(text), "positive") for text in texts])
        share = float((likelihoods.argmax(dim=1) == positive).float().mean())
        found.append(Steered(name, " ".join(str(texts[0]).split()), share))
        writer.detach()
    return found


def _print_steered(steered: Sequence[Steered], console: Console) -> None:
    table = Table(title=f'The same opening, "{OPENING} …", behind different prompts', show_lines=True)
    table.add_column("prompt")
    table.add_column("the first text it writes")
    table.add_column(f"positive, of {JUDGED}", justify="right")
    for row in steered:
        table.add_row(row.prompt, row.text, f"{row.positive:.0%}")
    console.print(table)
    console.print("Positive is what the finetuned model of the table above calls so.", highlight=False)


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
