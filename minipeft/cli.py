"""The command line: every error of a person or a file is one sentence and exit code 2."""

import sys
from collections.abc import Callable
from typing import NoReturn

import typer

from minipeft.commands.bank import bank
from minipeft.commands.check import check
from minipeft.commands.compare import compare
from minipeft.commands.demo import demo
from minipeft.commands.download import download
from minipeft.commands.evaluate import evaluate
from minipeft.commands.generate import generate
from minipeft.commands.inspect import inspect
from minipeft.commands.lessons import lessons
from minipeft.commands.methods import methods
from minipeft.commands.plan import plan
from minipeft.commands.prepare import prepare
from minipeft.commands.pretrain import pretrain
from minipeft.commands.recipe import with_recipe
from minipeft.commands.tune import tune

app = typer.Typer(
    help="GPT-2 to read in an evening, and the ways to adapt it with few parameters.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(generate)
app.add_typer(bank, name="bank")
app.command()(tune)
app.command("eval")(evaluate)
app.command()(compare)
app.command()(prepare)
app.command()(pretrain)
app.command()(plan)
app.command()(inspect)
app.command()(methods)
app.command()(download)
app.command()(demo)
app.command()(lessons)
app.command()(check)


def main() -> None:
    """The entry point of `minipeft`."""
    _in_one_sentence(lambda: app(args=with_recipe(sys.argv[1:], pretrain, "pretrain")), "minipeft")


def run_download() -> None:
    """The entry point of `weights_download.py`."""
    alone = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode="markdown", add_completion=False)
    alone.command()(download)
    _in_one_sentence(alone, "weights_download.py")


def _in_one_sentence(commands: Callable[[], object], name: str) -> None:
    """What a person or a file did wrong ends in one sentence and exit code 2."""
    try:
        commands()
    except (ValueError, OSError) as error:
        message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        if isinstance(error, OSError) and error.filename and str(error.filename) not in message:
            message = f"{error.filename}: {message}"
        _end(name, message)
    except RuntimeError as error:
        sentence = _of_torch(error)
        if sentence is None:
            raise
        _end(name, sentence)


def _end(name: str, message: str) -> NoReturn:
    print(f"{name}: {message}", file=sys.stderr)
    sys.exit(2)


def _of_torch(error: RuntimeError) -> str | None:
    """What PyTorch did not manage on this machine, as a person can mend it; None: something else went wrong."""
    from minipeft.kernels.allocator import first_sentence, ran_out_of_memory

    first = first_sentence(error)
    if ran_out_of_memory(error):
        return f"there is not enough memory ({first}); take fewer rows, shorter texts, or a smaller model or --dtype."
    if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
        return f"--compile does not work here ({first}); on a CPU it needs a C++ compiler. Leave it out."
    return None


if __name__ == "__main__":
    main()
