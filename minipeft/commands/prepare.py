"""`minipeft prepare`: text to files of token ids, to pretrain on."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from minipeft.commands.options import Overwrite, shape_to_train, text_files


def prepare(
    texts: Annotated[list[Path], typer.Argument(help="Text files, or folders of them.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The folder for the tokens.")],
    config: Annotated[
        str | None, typer.Option(help="The model to be trained, which says the vocabulary.", show_default="nano")
    ] = None,
    vocab_size: Annotated[int | None, typer.Option(help="The vocabulary itself: 257 to 50257 tokens.")] = None,
    held_out: Annotated[float, typer.Option(help="Percent of the text to measure on, never to train on.")] = 1.0,
    overwrite: Overwrite = False,
) -> None:
    """Tokenise text of any size, once, into files that pretraining reads without filling the memory.

    Documents of a file are parted by lines that hold only `<|endoftext|>`. An interrupted preparation goes on
    where it stopped when the same is typed again; a finished one is not repeated.

    Examples:

    `minipeft prepare texts/ more.txt --out tokens/`

    `minipeft prepare texts/ --config gpt2 --held-out 0.5 --out tokens/`
    """
    from minipeft.token_files import prepare_tokens
    from minipeft.tokenizer import Tokenizer

    if config is not None and vocab_size is not None:
        raise ValueError("--config and --vocab-size both say the vocabulary; give one of them.")
    size = shape_to_train(config or "nano").vocab_size if vocab_size is None else vocab_size
    tokenizer = Tokenizer.for_vocab_size(size)
    try:
        tokens = prepare_tokens(text_files(texts), tokenizer, out, held_out, overwrite=overwrite, say=print)
    except KeyboardInterrupt:
        print("minipeft: stopped; what is done is kept, and the same command goes on from there.", file=sys.stderr)
        sys.exit(130)
    kept = sum(len(ids) for ids in tokens.held_out.values())
    print(f"{len(tokens.train):,} tokens to train on and {kept:,} held out are in {out}, of a vocabulary of {size:,}.")
