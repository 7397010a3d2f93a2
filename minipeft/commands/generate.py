"""`minipeft generate`: continue a text, or every line of a file."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minipeft.commands.options import Adapter, Device, Dtype, Model, Overwrite, Resume, Seed, load_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minipeft.bank import PromptBank
    from minipeft.gpt2 import GPT2
    from minipeft.requests import Request
    from minipeft.sampling import Sampling

WILD = 0.8


def generate(
    text: Annotated[str | None, typer.Argument(help="What to continue.")] = None,
    model: Model = "nano",
    adapter: Adapter = None,
    bank: Annotated[Path | None, typer.Option(help="A bank of prompts: see `minipeft bank`.")] = None,
    task: Annotated[str | None, typer.Option(help="The prompt in the bank to write behind.")] = None,
    batch: Annotated[
        Path | None, typer.Option(help='A .jsonl file instead of a text: "prompt", "task", any setting, a line each.')
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The .jsonl file that --batch writes.")] = None,
    rows: Annotated[int, typer.Option(help="Lines of --batch at once.")] = 16,
    resume: Resume = False,
    overwrite: Overwrite = False,
    max_new_tokens: Annotated[int, typer.Option(help="How many tokens to write at most.")] = 64,
    temperature: Annotated[
        float | None, typer.Option(help="0 takes the likeliest token; higher is wilder.", show_default=str(WILD))
    ] = None,
    top_k: Annotated[int, typer.Option(help="Draw among this many likeliest tokens; 0: among all.")] = 50,
    top_p: Annotated[float, typer.Option(help="Draw among the likeliest tokens that reach this probability.")] = 1.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1: what is there already becomes less likely.")
    ] = 1.0,
    no_repeat_ngram: Annotated[int, typer.Option(help="No so many tokens in a row twice; 0: they may.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given several times.")] = None,
    beams: Annotated[int, typer.Option(help="From 2 on: beam search, which draws nothing.")] = 1,
    length_penalty: Annotated[float, typer.Option(help="Of beam search: above 0 longer texts gain.")] = 1.0,
    device: Device = "auto",
    dtype: Annotated[Dtype, typer.Option(help="The type of the weights.")] = Dtype.float32,
    packed: Annotated[
        bool, typer.Option(help="On a CPU hold the weights a second time, in its own order: up to twice as fast.")
    ] = True,
    seed: Seed = 0,
) -> None:
    """Continue a text, with or without an adapter; or many texts, each behind its own task's prompt.

    Examples:

    `minipeft generate "Once upon a time"`

    `minipeft generate "The film" --adapter positive --temperature 0.7`

    `minipeft generate "The film" --beams 5 --no-repeat-ngram 3 --stop "."`

    `minipeft generate "The film" --bank runs/bank --task good`

    `minipeft generate --batch in.jsonl --bank runs/bank --out out.jsonl`

    A line of such a file: `{"prompt": "The film", "task": "good", "max_new_tokens": 20}`
    """
    from minipeft.sampling import Sampling

    if (text is None) == (batch is None):
        raise ValueError("give either a text to continue, or a file of them with --batch.")
    if adapter is not None and bank is not None:
        raise ValueError("--adapter and --bank both say what to write behind; give one.")
    if task is not None and (bank is None or batch is not None):
        raise ValueError("--task names a prompt of --bank for one text; in a --batch file every line names its own.")
    sampling = Sampling(
        max_new_tokens,
        temperature=temperature if temperature is not None else WILD if beams == 1 else 0.0,
        top_k=top_k or None,
        top_p=top_p,
        seed=seed,
        repetition_penalty=repetition_penalty,
        no_repeat_ngram=no_repeat_ngram,
        stop=tuple(stop or ()),
        beams=beams,
        length_penalty=length_penalty,
    )
    base = load_model(model, device, dtype.value)
    if packed:
        base.use_products("packed")
    held = _bank(bank, base)
    if text is not None:
        _one(text, base, adapter, held, task, sampling)
    else:
        assert batch is not None
        _many(batch, out, base, adapter, held, sampling, rows, resume, overwrite)


def _bank(folder: Path | None, base: "GPT2") -> "PromptBank | None":
    from minipeft.bank import PromptBank

    return None if folder is None else PromptBank.load(folder, base)


def _one(
    text: str, base: "GPT2", adapter: str | None, bank: "PromptBank | None", task: str | None, sampling: "Sampling"
) -> None:
    """Write one text; on a terminal piece by piece."""
    from minipeft.generate import generate as continue_text
    from minipeft.generate import stream_text
    from minipeft.tuned import load

    memory = None if bank is None else bank.memory([task], 1)
    if adapter is not None:
        written = load(adapter, base).generate_with(text, sampling)
    elif sys.stdout.isatty() and sampling.beams == 1:
        sys.stdout.write(text)
        for piece in stream_text(base, text, sampling, memory=memory):
            sys.stdout.write(piece)
            sys.stdout.flush()
        print()
        return
    else:
        written = continue_text(base, text, sampling, memory=memory)
    print(written)


def _many(
    batch: Path,
    out: Path | None,
    base: "GPT2",
    adapter: str | None,
    bank: "PromptBank | None",
    sampling: "Sampling",
    rows: int,
    resume: bool,
    overwrite: bool,
) -> None:
    """Write every line of a file into another."""
    from minipeft.bank import PromptBank
    from minipeft.progress import progress_bar
    from minipeft.requests import answer, read_requests
    from minipeft.tuned import load

    if out is None:
        raise ValueError("--batch needs --out, the file to write.")
    if rows < 1:
        raise ValueError(f"rows must be at least 1, got {rows}.")
    if resume and overwrite:
        raise ValueError("--resume goes on with what is there and --overwrite forgets it; give one of them.")
    requests = read_requests(batch, sampling)
    held, tuned = bank or PromptBank(base), None if adapter is None else load(adapter, base)
    lengths = {one.task: one.length for one in held.list()}
    for request in requests:
        if request.task is not None and request.task not in held:
            raise ValueError(f"{batch}, line {request.line}: there is no prompt for {request.task!r}; see --bank.")
        room = tuned.room if tuned is not None else base.config.n_positions - lengths.get(request.task or "", 0)
        _check_room(request, room, base, f"{batch}, line {request.line}")
    if out.exists() and overwrite:
        out.unlink()
    elif out.exists() and not resume:
        raise ValueError(f"{out} is there already; --resume goes on with it, --overwrite starts anew.")

    def write(some: "Sequence[Request]") -> list[str]:
        texts, samplings = [request.prompt for request in some], [request.sampling for request in some]
        if tuned is not None:
            found = tuned.generate_with(texts, samplings)
        else:
            found = held.generate(texts, [request.task for request in some], sampling=samplings)
        return [str(whole).removeprefix(text) for whole, text in zip(found, texts, strict=True)]

    try:
        with progress_bar("generate", len(requests)) as told:
            answer(requests, write, out, rows, told)
    except KeyboardInterrupt:
        how = "the same command with --resume" + (" instead of --overwrite" if overwrite else "")
        print(f"Stopped; {how} goes on with {out}.", file=sys.stderr)
        sys.exit(130)
    print(f"{len(requests)} texts are in {out}.")


def _check_room(request: "Request", room: int, base: "GPT2", where: str) -> None:
    """Raise ValueError now, and not after an hour, if a line leaves no room for what it asks for."""
    tokens = len(base.tokenizer.encode(request.prompt))
    if tokens + request.sampling.max_new_tokens - 1 > room:
        raise ValueError(
            f"{where}: {tokens} tokens and {request.sampling.max_new_tokens} new ones do not fit into the {room} "
            "positions that there are; lower max_new_tokens or shorten the prompt."
        )
