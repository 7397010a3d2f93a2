"""`minipeft compare`: methods side by side on the same terms, and the report of what was found."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from minipeft.commands.console import plain_console
from minipeft.commands.options import Data, Device, Input, Kind, Target, TaskName

LABELS = ["zero_shot", "calibrated_prompt", "soft_prompt", "prefix", "lora", "full"]
TEXT = ["zero_shot", "soft_prompt", "prefix", "lora", "full"]
SIZED = {"length": ["soft_prompt", "prefix"], "numbers": ["soft_prompt", "prefix", "lora"]}
"""What is compared where nobody says which methods: on labels, on text, at several sizes."""
OWN = "data"
"""What a person's own file is called as a task."""
CONTENDERS = (
    "majority, zero_shot, best_prompt, calibrated_prompt, linear_probe, soft_prompt, soft_prompt_labels, "
    "p_tuning, prefix, prefix_mlp, deep_prompt_text, lora, ia3, adapter, llama_adapter, bitfit, top2, full"
)


def compare(
    out: Annotated[
        Path | None, typer.Option(help="The folder for results; an interrupted study goes on there.")
    ] = None,
    study: Annotated[
        Path | None, typer.Option(help="The whole protocol, a .toml file; else the options below.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Only write the report of the results in this folder.")] = None,
    task: TaskName = None,
    data: Data = None,
    input_column: Input = None,
    target: Target = None,
    kind: Kind = "auto",
    methods: Annotated[str | None, typer.Option(help=f"Which of {CONTENDERS}; commas between.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Models, with commas between: those that ship (default: nano), public ones, or folders."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Runs of each chosen setting on the test split (3).", min=1)] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps of every run (400).", min=1)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples a step (16).", min=1)] = None,
    sizes: Annotated[
        str | None,
        typer.Option(help="Sizes of every method: length=5,length=20 or numbers=6144,numbers=18432."),
    ] = None,
    examples: Annotated[str | None, typer.Option(help="Amounts of training examples, such as 50,200,all.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Runs at once, each in a process of its own; default: one for each core.", min=1)
    ] = None,
    device: Device = "auto",
) -> None:
    """Compare methods on the same terms: as many steps, examples and trials for each, chosen on dev, then tested.

    Results are a line a run in OUT/results.jsonl; stopped, the same command goes on. Then the report is written.

    Examples:

    `minipeft compare --task movie --methods full,lora,prefix,soft_prompt --seeds 3 --out runs/compare`

    `minipeft compare --data tickets.csv --input message --target team --model pico,nano --out runs/compare_tickets`

    `minipeft compare --task movie --methods prefix,soft_prompt --sizes length=1,length=5,length=20 --out runs/lengths`

    `minipeft compare --study recipes/head_to_head.toml --out runs/head_to_head`

    `minipeft compare --report runs/head_to_head`
    """
    from minipeft.compare import compete, read_study, study_of
    from minipeft.compare.compete import STUDY_FILE
    from minipeft.compare.pages import write_report
    from minipeft.devices import choose_device

    if report is not None:
        if not (report / STUDY_FILE).exists():
            raise FileNotFoundError(f"there is no study in {report}: minipeft compare --out {report} makes one.")
        _show(write_report(read_study(report / STUDY_FILE), report))
        return
    if out is None:
        raise ValueError("say where the results go: --out DIR (or --report DIR for those that are there).")
    chosen: dict[str, Any] = {
        "methods": methods,
        "model": model,
        "seeds": seeds,
        "steps": steps,
        "batch_size": batch_size,
    }
    chosen |= {"sizes": sizes, "examples": examples, "task": task, "data": data}
    if study is None:
        source = {"data": str(data), "input": input_column, "target": target, "kind": kind} if data else None
        wanted = study_of(_settings(source, {name: value for name, value in chosen.items() if value is not None}))
    elif given := [name for name, value in chosen.items() if value is not None]:
        raise ValueError(f"--{given[0].replace('_', '-')} and --study: {study} says it all already; give one of them.")
    else:
        wanted = read_study(study)
    try:
        compete(wanted, out, workers=workers, device=str(choose_device(device)))
    except KeyboardInterrupt:
        print(f"minipeft: stopped; what was finished is kept. The same command goes on in {out}.", file=sys.stderr)
        sys.exit(130)
    _show(write_report(wanted, out))


def _settings(source: dict[str, Any] | None, given: dict[str, Any]) -> dict[str, Any]:
    """The settings of a study of one part, by the options that were given."""
    if ("task" in given) != (source is None):
        raise ValueError("say what to compare on: --task NAME (several with commas), --data FILE, or --study FILE.")
    part = _part(_listed(given["task"]) if "task" in given else [OWN], given)
    steps = given.get("steps", 400)
    told: dict[str, Any] = {"name": "compare", "parts": [part], "steps": steps, "eval_every": max(1, steps // 2)}
    told |= {"batch_size": given.get("batch_size", 16)}
    if source:
        told["tasks"] = {OWN: {name: value for name, value in source.items() if value is not None}}
    if "methods" not in given:
        part["contenders"] = _usual(told, part)
    return told


def _part(tasks: list[str], given: dict[str, Any]) -> dict[str, Any]:
    examples = [int(one) if one.isdecimal() else one for one in _listed(given.get("examples", "all"))]
    part = {"name": "main", "tasks": tasks, "models": _listed(given.get("model", "nano")), "examples": examples}
    part |= {"contenders": _listed(given.get("methods", "full")), "seeds": list(range(1, given.get("seeds", 3) + 1))}
    return part | ({"sizes": _listed(given["sizes"])} if "sizes" in given else {})


def _usual(told: dict[str, Any], part: dict[str, Any]) -> list[str]:
    """What is compared where nobody says which methods."""
    from minipeft.compare import study_of
    from minipeft.compare.inputs import sealed_task

    if "sizes" in part:
        return SIZED["numbers" if part["sizes"][0].startswith("numbers") else "length"]
    study = study_of(told)
    return LABELS if all(sealed_task(study, name).open.labels for name in part["tasks"]) else TEXT


def _listed(text: str) -> list[str]:
    return [one.strip() for one in text.split(",") if one.strip()]


def _show(paths: list[Path]) -> None:
    console = plain_console()
    console.print(paths[0].read_text(encoding="utf-8"), highlight=False, soft_wrap=True)
    console.print("Written: " + ", ".join(str(path) for path in paths), highlight=False, soft_wrap=True)
