"""`minipeft compare`: methods side by side on the same terms, and the report of what was found."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from minipeft.commands.options import Data, Device, Input, Kind, Target, TaskName

METHODS = "zero_shot,calibrated_prompt,soft_prompt,prefix,lora,full"
OWN = "data"
"""What a person's own file is called as a task."""


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
    methods: Annotated[str, typer.Option(help="Which contenders, with commas between.")] = METHODS,
    model: Annotated[str, typer.Option(help="Models, with commas between: those that ship, or folders.")] = "nano",
    seeds: Annotated[int, typer.Option(help="Runs of each chosen setting on the test split.", min=1)] = 3,
    steps: Annotated[int, typer.Option(help="Training steps of every run.", min=1)] = 400,
    batch_size: Annotated[int, typer.Option(help="Examples a step.", min=1)] = 16,
    sizes: Annotated[
        str, typer.Option(help="Sizes for every contender, such as length=5,length=20 or numbers=3072,numbers=15360.")
    ] = "",
    examples: Annotated[str, typer.Option(help="Amounts of training examples, such as 50,200,all.")] = "all",
    workers: Annotated[
        int | None, typer.Option(help="Runs at once, each in a process of its own; default: one for each core.", min=1)
    ] = None,
    device: Device = "auto",
) -> None:
    """Compare methods on the same terms: as many steps, examples and trials for each, chosen on dev, then tested.

    Results are a line a run in OUT/results.jsonl; stopped, the same command goes on. Then the report is written.

    Examples:

    `minipeft compare --task movie --methods full,lora,prefix,soft_prompt --seeds 3 --out runs/compare`

    `minipeft compare --data tickets.csv --input message --target team --model pico,nano --out runs/tickets`

    `minipeft compare --task movie --methods prefix,soft_prompt --sizes length=1,length=5,length=20 --out runs/lengths`

    `minipeft compare --study recipes/head_to_head.toml --out runs/head_to_head`

    `minipeft compare --report runs/head_to_head`
    """
    from minipeft.compare import compete, read_study, study_of
    from minipeft.compare.compete import STUDY_FILE
    from minipeft.compare.report import write_report
    from minipeft.devices import choose_device

    if report is not None:
        if not (report / STUDY_FILE).exists():
            raise FileNotFoundError(f"there is no study in {report}: minipeft compare --out {report} makes one.")
        _told(write_report(read_study(report / STUDY_FILE), report))
        return
    if out is None:
        raise ValueError("say where the results go: --out DIR (or --report DIR for those that are there).")
    if study is None:
        source = {"data": str(data), "input": input_column, "target": target, "kind": kind} if data else None
        crossed = {"sizes": _listed(sizes), "examples": _listed(examples), "models": _listed(model)}
        what = _study(task, source, _listed(methods), crossed, seeds)
        wanted = study_of({**what, "steps": steps, "batch_size": batch_size, "eval_every": max(1, steps // 2)})
    else:
        wanted = read_study(study)
    try:
        compete(wanted, out, workers=workers, device=str(choose_device(device)))
    except KeyboardInterrupt:
        print(f"minipeft: stopped; what was finished is kept. The same command goes on in {out}.", file=sys.stderr)
        sys.exit(130)
    _told(write_report(wanted, out))


def _study(
    task: str | None, source: dict[str, Any] | None, methods: list[str], crossed: dict[str, list[str]], seeds: int
) -> dict[str, Any]:
    """The settings of a study of one part."""
    if (task is None) == (source is None):
        raise ValueError("say what to compare on: --task NAME (several with commas), --data FILE, or --study FILE.")
    part: dict[str, Any] = {"name": "main", "tasks": _listed(task) if task else [OWN], "models": crossed["models"]}
    part |= {"contenders": methods, "seeds": list(range(1, seeds + 1))}
    part["examples"] = [int(number) if number.isdecimal() else number for number in crossed["examples"]]
    if crossed["sizes"]:
        part["sizes"] = crossed["sizes"]
    told: dict[str, Any] = {"name": "compare", "parts": [part]}
    if source:
        told["tasks"] = {OWN: {name: value for name, value in source.items() if value is not None}}
    return told


def _listed(text: str) -> list[str]:
    return [one.strip() for one in text.split(",") if one.strip()]


def _told(paths: list[Path]) -> None:
    console = Console()
    console.print(paths[0].read_text(encoding="utf-8"), highlight=False, markup=False)
    console.print("Written: " + ", ".join(str(path) for path in paths), highlight=False, markup=False)
