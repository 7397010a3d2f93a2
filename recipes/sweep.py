"""Find each method's learning rate and initialisation on the development split; the test split is never read.

    python recipes/sweep.py --task movie --out runs/sweep --processes 2
    python recipes/sweep.py --grid soft_prompt --out runs/soft_prompt   # learning rate x initialisation x length

Every run is a row of `OUT/sweep.jsonl`; a run that is there already is not repeated, so the sweep can be interrupted.
`--report` writes the table of what is there.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

METHODS: tuple[dict[str, Any], ...] = (
    *({"method": "soft_prompt", "length": 20, "init": init, "lr": 0.01} for init in ("labels", "vocab", "random")),
    *({"method": "prefix", "length": 10, "reparam": None, "init": "vocab", "lr": lr} for lr in (0.01, 0.03)),
    *({"method": "prefix_mlp", "length": 10, "reparam": 512, "lr": lr} for lr in (1e-4, 3e-4)),
    {"method": "prefix", "length": 10, "reparam": None, "init": "random", "lr": 0.01},
    *({"method": "soft_prompt", "length": 20, "init": "labels", "lr": lr} for lr in (0.03, 0.003)),
    *({"method": "full", "lr": lr} for lr in (3e-4, 1e-3)),
    {"method": "prefix", "length": 10, "reparam": None, "init": "vocab", "lr": 0.003},
    *(
        {"method": "soft_prompt", "length": 20, "init": i, "lr": lr}
        for i in ("vocab", "random")
        for lr in (0.003, 0.03)
    ),
    *({"method": "prefix", "length": 10, "reparam": None, "init": "random", "lr": lr} for lr in (0.003, 0.03)),
    {"method": "prefix_mlp", "length": 10, "reparam": 512, "lr": 1e-3},
)
"""The middle of every range first, so that a sweep that is cut short has still seen every method."""

SOFT_PROMPT: tuple[dict[str, Any], ...] = tuple(
    {"method": "soft_prompt", "length": length, "init": init, "lr": lr}
    for length in (20, 5, 1)
    for lr in (0.01, 1e-4, 0.1, 1e-3)
    for init in ("random", "vocab", "labels")
)
"""Learning rate x initialisation x length, as lesson 08 shows it."""

EQUAL_NUMBERS: tuple[dict[str, Any], ...] = tuple(
    run
    for lr in (0.1, 0.03)
    for length in (2, 1, 4)
    for run in (
        {"method": "prefix", "length": length, "reparam": None, "init": "vocab", "lr": lr},
        {"method": "soft_prompt", "length": 12 * length, "init": "vocab", "lr": lr},
    )
)
"""Prefixes beside soft prompts of as many numbers, as lesson 09 shows them: nano has 6 layers, 2 * 6 = 12 vectors."""

WEIGHTS: tuple[dict[str, Any], ...] = (
    *(
        {"method": method, "lr": rates[place]}
        for place in (1, 0, 2)
        for method, rates in {
            "lora": (1e-3, 3e-3, 1e-2),
            "adapter": (3e-4, 1e-3, 3e-3),
            "bitfit": (1e-3, 3e-3, 1e-2),
            "ia3": (1e-2, 3e-2, 0.1),
            "llama_adapter": (3e-3, 1e-2, 3e-2),
            "p_tuning": (3e-4, 1e-3, 3e-3),
        }.items()
    ),
    # Where the best lay at the edge, one further; and P-tuning, which did badly, with its other network.
    {"method": "ia3", "lr": 0.3},
    {"method": "adapter", "lr": 1e-2},
    *({"method": "p_tuning", "encoder": "mlp", "lr": lr} for lr in (1e-3, 3e-4, 3e-3, 1e-2)),
)
"""The methods that change weights, and P-tuning, each with its own defaults; the middle rate first."""

GRIDS = {"weights": WEIGHTS, "methods": METHODS, "soft_prompt": SOFT_PROMPT, "equal_numbers": EQUAL_NUMBERS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", choices=GRIDS, default="methods")
    parser.add_argument("--task", default="movie")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--report", action="store_true", help="print the table and stop")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(json.loads(options.one))))
    elif options.report:
        print(report(read(options.out)))
    else:
        sweep(options)


def sweep(options: argparse.Namespace) -> None:
    """Run what is missing, a few at a time, one thread each."""
    options.out.mkdir(parents=True, exist_ok=True)
    done = {json.dumps(row["run"], sort_keys=True) for row in read(options.out)}
    waiting = [run for run in runs(options) if json.dumps(run, sort_keys=True) not in done]
    running: list[subprocess.Popen[str]] = []
    while waiting or running:
        while waiting and len(running) < options.processes:
            command = [sys.executable, __file__, "--out", str(options.out), "--one", json.dumps(waiting.pop(0))]
            running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        for process in [process for process in running if process.poll() is not None]:
            running.remove(process)
            assert process.stdout is not None
            line = process.stdout.read().strip().splitlines()[-1]
            with open(options.out / "sweep.jsonl", "a", encoding="utf-8") as file:
                file.write(line + "\n")
            print(line, flush=True)
        time.sleep(0.5)


def runs(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for seed in range(options.seeds):
        for setting in GRIDS[options.grid]:
            common = {"task": options.task, "model": options.model, "seed": seed}
            yield {**setting, **common, "steps": options.steps, "batch_size": options.batch_size}


def measure(run: dict[str, Any]) -> dict[str, Any]:
    """Tune once; the best dev accuracy of the run and its curve."""
    import torch

    import minipeft as mp
    from minipeft import methods
    from minipeft.tasks import TASKS
    from minipeft.training_state import METRICS_FILE
    from minipeft.tune import TuneConfig, tune

    torch.set_num_threads(1)
    method = methods.METHODS[run["method"].removesuffix("_mlp")]
    settings = {key: run[key] for key in ("length", "init", "reparam", "encoder") if key in run}
    config = TuneConfig(run["steps"], run["batch_size"], run["lr"], eval_every=run["steps"] // 4, seed=run["seed"])
    with tempfile.TemporaryDirectory() as out:
        _, result = tune(mp.GPT2.from_pretrained(run["model"]), method(**settings), TASKS[run["task"]](), config, out)
        rows = [json.loads(line) for line in (Path(out) / METRICS_FILE).read_text().splitlines()]
    curve = [[row["step"], round(row["dev_accuracy"], 4), round(row["dev_loss"], 4)] for row in rows if "score" in row]
    return {
        "run": run,
        "dev_accuracy": round(result.best_measured["dev_accuracy"], 4),
        "best_step": result.best_step,
        "seconds": round(result.seconds, 1),
        "dev_curve": curve,
    }


def read(out: Path) -> list[dict[str, Any]]:
    path = out / "sweep.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def report(rows: list[dict[str, Any]]) -> str:
    """A Markdown table of the best dev accuracy: a row per method and initialisation, a column per learning rate."""
    rates = sorted({row["run"]["lr"] for row in rows})
    lines = [
        "| method | init or encoder | " + " | ".join(f"{rate:g}" for rate in rates) + " |",
        "|---|---|" + "---:|" * len(rates),
    ]
    kinds = list(dict.fromkeys(_kind(row["run"]) for row in rows))
    for kind in kinds:
        cells = []
        for rate in rates:
            found = [row["dev_accuracy"] for row in rows if _kind(row["run"]) == kind and row["run"]["lr"] == rate]
            cells.append(f"{sum(found) / len(found):.1%}" if found else "")
        lines.append(f"| {kind[0]} | {kind[1]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _kind(run: dict[str, Any]) -> tuple[str, str]:
    return run["method"], run.get("init", run.get("encoder", ""))


if __name__ == "__main__":
    main()
