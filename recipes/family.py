"""What the runs of the family came to: rows for `docs/results/family.jsonl`, then tables and a picture of them.

    python recipes/family.py runs/pico runs/nano runs/micro --out docs   # adds what is new, then draws
    python recipes/family.py --out docs                                  # draws what is there

A row is one evaluation of one run, or one run's report. Compute is counted, not measured: `minipeft.plan.model_flops`.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from marked import between

from minipeft.config import GPT2Config
from minipeft.files import read_json, write_atomically
from minipeft.metrics import read_metrics
from minipeft.plan import model_flops
from minipeft.plots import BLUE, GREEN, GREY, ORANGE, figures, write_figure
from minipeft.pretrain import REPORT_FILE

NAMES = {"pico": BLUE, "nano": ORANGE, "micro": GREEN}
BEGIN, END = "<!-- family: made by recipes/family.py -->", "<!-- end of family -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="folders of runs, each named like its size")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    results = options.out / "results" / "family.jsonl"
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    for run in options.runs:
        rows = [row for row in rows if row["model"] != run.name] + rows_of(run)
    rows.sort(key=lambda row: (list(NAMES).index(row["model"]), row["step"]))
    write_atomically(results, "".join(json.dumps(row) + "\n" for row in rows).encode())
    page = options.out / "pretraining.md"
    table = tables({row["model"]: row for row in rows if "report" in row})
    write_atomically(page, between(page.read_text(encoding="utf-8"), BEGIN, END, table).encode())
    draw(rows, options.out / "family.png")


def rows_of(run: Path) -> list[dict[str, Any]]:
    """The evaluations of a run, with the mean of the training losses since the one before, and its report last."""
    report = read_json(run / REPORT_FILE)
    settings = report["settings"]
    tokens_a_step = settings["batch_size"] * settings["window"]
    config = GPT2Config(**settings["model"])
    found, losses = [], []
    for row in read_metrics(run):
        if row["loss"] is not None:
            losses.append(row["loss"])
        if "perplexity" not in row:
            continue
        tokens = row["step"] * tokens_a_step
        found.append(
            {
                "model": run.name,
                "step": row["step"],
                "tokens": tokens,
                "flops": model_flops(config, tokens, tokens * (1 - 1 / settings["window"])),
                "seconds": row["seconds"],
                "training_loss": sum(losses) / len(losses),
                "held_out_loss": math.log(row["perplexity"]),
                "sample": row.get("sample"),
            }
        )
        losses = []
    found[-1]["report"] = report
    return found


def tables(last: Mapping[str, Mapping[str, Any]]) -> str:
    """Sizes and budgets, then the perplexity of each source, in Markdown."""
    what = {
        "numbers": lambda row: f"{row['report']['parameters']:,}",
        "layers × heads × width": lambda row: "{n_layer} × {n_head} × {n_embd}".format(
            **row["report"]["settings"]["model"]
        ),
        "peak learning rate": lambda row: f"{row['report']['settings']['lr']:g}",
        "tokens": lambda row: f"{row['tokens']:,}",
        "operations": lambda row: f"{row['flops'] / 1e15:.1f} PFLOP",
        "seconds": lambda row: f"{row['report']['seconds']:,}",
        "**held-out perplexity**": lambda row: f"**{row['report']['perplexity']['overall']:.1f}**",
    }
    head = f"| | {' | '.join(last)} |\n|---|{'---:|' * len(last)}\n"
    sizes = head + "".join(f"| {name} | {' | '.join(map(of, last.values()))} |\n" for name, of in what.items())
    found = {name: row["report"]["perplexity"]["by_source"] for name, row in last.items()}
    sources = sorted(next(iter(found.values())), key=lambda source: next(reversed(found.values()))[source])
    rows = (
        f"| {source} | {' | '.join(f'{by_source[source]:.1f}' for by_source in found.values())} |\n"
        for source in sources
    )
    return f"{sizes}\nHeld-out perplexity of each source:\n\n{head}{''.join(rows)}"


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Held-out loss against compute, one line a size; and the perplexity of each source."""
    pyplot = figures()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 5), width_ratios=(5, 4), layout="constrained")
    names = [name for name in NAMES if any(row["model"] == name for row in rows)]
    for name in names:
        own = [row for row in rows if row["model"] == name]
        compute = [row["flops"] / 1e15 for row in own]
        label = f"{name}, {own[-1]['report']['parameters'] / 1e6:.1f} million numbers"
        left.plot(compute, [row["held_out_loss"] for row in own], "o-", color=NAMES[name], markersize=4, label=label)
    left.set_xscale("log")
    _plain_ticks(left, [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5])
    left.legend(frameon=False, fontsize=10)
    left.set_xlabel("operations of the model so far, in 10¹⁵", fontsize=10)
    left.set_ylabel("held-out loss in nats a token", fontsize=10)
    left.set_title("Loss against compute", fontsize=12, loc="left")
    reports = {name: next(row["report"] for row in rows if row["model"] == name and "report" in row) for name in names}
    order = sorted(reports[names[-1]]["perplexity"]["by_source"].items(), key=lambda pair: pair[1], reverse=True)
    for place, (source, _) in enumerate(order):
        values = [report["perplexity"]["by_source"][source] for report in reports.values()]
        right.plot([min(values), max(values)], [place, place], color=GREY, linewidth=0.8, zorder=0)
        right.scatter(values, [place] * len(values), c=[NAMES[name] for name in names], s=28, zorder=3)
    right.set_xscale("log")
    right.set_yticks(range(len(order)), [source for source, _ in order], fontsize=9)
    _plain_ticks(right, [10, 20, 50, 100, 200, 500])
    right.set_xlabel("held-out perplexity a token", fontsize=10)
    right.set_title("Each source", fontsize=12, loc="left")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y" if axes is left else "x", color="#dddddd", linewidth=0.6)
    write_figure(figure, path)


def _plain_ticks(axes: Any, ticks: Sequence[float]) -> None:
    """Those of the ticks that the logarithmic axis reaches, as people write them."""
    low, high = axes.get_xlim()
    axes.set_xticks([tick for tick in ticks if low <= tick <= high], [f"{t:g}" for t in ticks if low <= t <= high])
    axes.minorticks_off()


if __name__ == "__main__":
    main()
