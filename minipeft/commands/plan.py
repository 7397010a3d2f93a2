"""`minipeft plan`: what a step of training needs, whether it fits, and what to lower where it does not."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from minipeft.commands.console import plain_console
from minipeft.commands.method_options import Length, Reparam, Settings, choose_methods
from minipeft.commands.options import Checkpointing, Dtype, ModelShape, shape_of

if TYPE_CHECKING:
    from minipeft.methods import Method
    from minipeft.plan import Plan, Rates


def plan(
    model: ModelShape = "nano",
    method: Annotated[
        str | None,
        typer.Option(help="As `tune` takes it, several with a + between, or pretrain; without it all, one by one."),
    ] = None,
    length: Length = None,
    reparam: Reparam = 0,
    settings: Settings = None,
    gpu: Annotated[str | None, typer.Option(help="Plan for a GPU with so much memory, such as 6GB.")] = None,
    tflops: Annotated[
        float | None, typer.Option(help="What that GPU multiplies in practice, in 10¹² operations a second.")
    ] = None,
    memory: Annotated[str | None, typer.Option(help="Plan for so much memory here; without it, what is free.")] = None,
    batch_size: Annotated[int, typer.Option(help="Examples a step.")] = 8,
    tokens: Annotated[int, typer.Option(help="Tokens of an example.")] = 128,
    scored: Annotated[
        int | None, typer.Option(help="How many of them are learned; without it half, of pretraining all.")
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option(help="Type of the frozen base; of full finetuning: of its activations.")
    ] = Dtype.float32,
    gradient_checkpointing: Checkpointing = False,
) -> None:
    """Tell the memory and time of a training step before it is tried, and what to lower where it does not fit.

    No weights are needed: the step is rehearsed with tensors that have a shape and no numbers. On a CPU the memory is
    within 15 % of what is then measured; of GPUs none has been measured, and half a GB is set aside for the driver.

    Examples:

    `minipeft plan --model gpt2`

    `minipeft plan --model gpt2 --method prefix --gpu 6GB`

    `minipeft plan --model gpt2-medium --method full --dtype bfloat16 --batch-size 32 --tokens 512 --gpu 8GB`

    `minipeft plan --model gpt2 --method lora --set rank=16 --tokens 1024 --memory 4GB`
    """
    import torch

    from minipeft.devices import choose_device
    from minipeft.overview import size_told
    from minipeft.plan import available_memory, bytes_of, make_fit, measure_rates, needed_bytes
    from minipeft.progress import progress_bar
    from minipeft.rehearsal import Work, rehearse

    if gpu and memory:
        raise ValueError("--gpu plans for another machine's memory and --memory for this one's; give one of them.")
    if (tflops is not None and not tflops > 0) or (tflops and not gpu):
        raise ValueError("--tflops is a positive number, and of a --gpu.")
    config, kind = shape_of(model), getattr(torch, dtype.value)
    device = choose_device("auto")
    size = gpu or memory
    room = bytes_of(size) if size else available_memory(device)
    on_cpu = not gpu and device.type == "cpu"
    rates = None if gpu else measure_rates(config, kind, device)
    named = list(_named(method, length, reparam, settings or []))
    where = f"a GPU of {gpu}" if gpu else f"this machine, {size_told(room)} of memory"
    title = f"{model} on {where}: {batch_size} × {tokens} tokens a step, {dtype.value}"
    table, advice = Table(title=title, box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False), []
    for column in ("method", "weights", "trained", "activations", "needed", "fits", "a step"):
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    with progress_bar("plan", len(named)) as show:
        for name, each in named:
            learned = scored or (max(1, tokens - 1) if each is None else max(1, tokens // 2))
            work = Work(config, each, batch_size, tokens, learned, kind, gradient_checkpointing, on_cpu)
            try:
                need = rehearse(work)
                best = make_fit(work, room, need)
            except ValueError as error:
                if method is not None:
                    raise
                table.add_row(name, *"––––––")
                advice.append(f"{name}: {error}")
                continue
            sizes = map(size_told, (need.weights, need.trained, need.activations, needed_bytes(need, on_cpu)))
            table.add_row(name, *sizes, "no" if best is None or best.changed else "yes", _time(best, rates, tflops))
            if best is None:
                advice.append(f"{name} does not fit, whatever is lowered.")
            elif best.changed:
                advice.append(f"{name} fits with {' '.join(best.changed)}: {size_told(best.needed)}.")
            show("")
    console = plain_console()
    console.print(table)
    console.print(
        "\n".join([*advice, ""] if advice else [])
        + "trained: numbers, gradients and AdamW's two moments. needed: all of it, with the libraries and their "
        "buffers. a step: of what fits" + (", by rates measured just now." if rates else "."),
        highlight=False,
    )


def _named(
    method: str | None, length: int | None, reparam: int, settings: list[str]
) -> Iterator[tuple[str, "Method | None"]]:
    """The method that was asked for, or each of them as the tables show it."""
    from minipeft.methods import METHODS

    def chosen(name: str, reparam: int = 0) -> "Method":
        return choose_methods(name, {"length": length, "reparam": reparam or None}, settings)

    if method == "hard_prompt":
        raise ValueError("hard_prompt has nothing to train.")
    if method == "pretrain":
        if length is not None or reparam or settings:
            raise ValueError("pretrain has no --length, --reparam or --set.")
        yield method, None
    elif method is not None:
        yield method, chosen(method, reparam)
    elif length is not None or reparam or settings:
        raise ValueError("--length, --reparam and --set are settings of a --method; name it.")
    else:
        for name in (name for name in METHODS if name != "hard_prompt"):
            yield name, chosen(name)
            if name == "prefix":
                yield "prefix --reparam 512", chosen(name, 512)


def _time(best: "Plan | None", rates: "Rates | None", tflops: float | None) -> str:
    """Seconds of the step that fits; where no rate is known, its operations."""
    if best is None:
        return "–"
    if rates is not None:
        return f"{rates.seconds(best):.2g} s"
    flops = best.need.flops * best.work.batch_size / best.rows
    return f"≥ {flops / tflops / 1e12:.2g} s" if tflops else f"{flops / 1e12:.2g} TFLOP"
