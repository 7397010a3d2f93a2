"""`minipeft generate`: continue a text."""

from typing import Annotated

import typer
from rich.console import Console

from minipeft.commands.options import Adapter, Device, Model, Seed, find_adapter, load_model


def generate(
    text: Annotated[str, typer.Argument(help="What to continue.")],
    model: Model = "nano",
    adapter: Adapter = None,
    max_new_tokens: Annotated[int, typer.Option(help="How many tokens to write at most.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token; higher is wilder.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Draw among this many likeliest tokens; 0: among all.")] = 50,
    top_p: Annotated[float, typer.Option(help="Draw among the likeliest tokens that reach this probability.")] = 1.0,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Continue a text, with or without an adapter.

    Examples:

    `minipeft generate "Once upon a time"`

    `minipeft generate "The film" --adapter positive --temperature 0.7`
    """
    from minipeft.generate import Sampling
    from minipeft.generate import generate as continue_text
    from minipeft.tuned import load

    sampling = Sampling(max_new_tokens, temperature, top_k or None, top_p, seed)
    base = load_model(model, device)
    if adapter is None:
        written = continue_text(base, text, sampling)
    else:
        written = load(find_adapter(adapter), base).generate_with(text, sampling)
    Console().print(written, markup=False, highlight=False, soft_wrap=True)
