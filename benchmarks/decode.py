"""Writing 64 tokens with GPT-2 small behind prompts: minipeft against `transformers` with `peft`, same weights.

    python benchmarks/decode.py                        # the table, about ten minutes
    python benchmarks/decode.py --rows 16 --dtypes bfloat16 --products plain
    python benchmarks/decode.py --out docs/results     # writes docs/results/decode.json, and docs/decode.png

Random weights, texts of 32 tokens, prefixes of 20 vectors, greedy, nobody stops early. Ours has packed weights
(`model.use_products("packed")`), which it makes once, before the clock starts. Theirs is one adapter for all rows.
*16 tasks* is a bank's batch in which every row has a task of its own, beside the same batch of one task, and beside
peft, which has to switch adapters and write row by row. *first token* is the time until the first token of one row
behind a soft prompt of 100 vectors: peft reads the prompt again each time, ours is compiled to a prefix.
Every measurement is a process of its own; times are medians after a warm-up of five texts, by which time our packed
weights have moved to huge pages. With --rounds both sides are measured in turn, several times, and the median process
counts: on a shared machine the same work differs by a fifth from one minute to the next. *of the bandwidth* is what
must be read at least, all weights once a step, over the time of a step and what a sum over as many bytes reads a second
in this run.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TEXT, VECTORS, NEW, LONG = 32, 20, 64, 100
REPEATS = 5
WARM_UP = 5
"""Texts before the clock starts: 64 tokens each make more products than `SETTLED` of `minipeft.kernels`."""
EOT = 50256
HEAD = (
    "| case | rows | type | peft, ms | ours, ms | peft, tokens/s | ours | faster | |\n"
    + "|---|---:|---|---:|---:|---:|---:|---:|---|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1,16")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--products", default="packed", help="ours: plain or packed weights")
    parser.add_argument("--compile", action="store_true", help="ours by compiled steps")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--rounds", type=int, default=1, help="processes of each side, in turn")
    parser.add_argument("--out", type=Path, help="write OUT/decode.json, and the picture beside OUT")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(**json.loads(options.one))))
        return
    how = {"compiled": options.compile, "products": options.products}
    rows: list[dict[str, Any]] = []
    print(HEAD)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for dtype in options.dtypes.split(","):
            bandwidth = one(what="bandwidth", dtype=dtype, folder=folder, repeats=options.repeats)["bytes_a_second"]
            for number in map(int, options.rows.split(",")):
                work = {"dtype": dtype, "folder": folder, "repeats": options.repeats, "rows": number}
                theirs, ours = in_turn(options.rounds, {"what": "theirs", **work}, {"what": "ours", **how, **work})
                row = {"case": "one task", "rows": number, "dtype": dtype, "theirs": theirs, "ours": ours}
                row["of_bandwidth"] = ours["weights"] / ours["step"] / bandwidth
                rows.append(row)
                print(shown(row), flush=True)
            if "16" in options.rows.split(","):
                work = {"dtype": dtype, "folder": folder, "repeats": options.repeats, "rows": 16}
                mixed, switching = in_turn(
                    options.rounds, {"what": "mixed", **how, **work}, {"what": "switching", **work}
                )
                row = {"case": "16 tasks", "rows": 16, "dtype": dtype, "theirs": switching, "ours": mixed}
                row["over_one_task"] = mixed["seconds"] / rows[-1]["ours"]["seconds"]
                rows.append(row)
                print(shown(row), flush=True)
            work = {"dtype": dtype, "folder": folder, "repeats": options.repeats}
            theirs, ours = in_turn(
                options.rounds, {"what": "first, theirs", **work}, {"what": "first, ours", **how, **work}
            )
            row = {"case": "first token", "rows": 1, "dtype": dtype, "theirs": theirs, "ours": ours}
            rows.append(row)
            print(shown(row), flush=True)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "decode.json").write_text(json.dumps(rows, indent=1) + "\n")
        draw(rows, options.out.parent / "decode.png")


def in_turn(rounds: int, *works: dict[str, Any]) -> list[dict[str, Any]]:
    """The median measurement of each work."""
    found = [[one(**work) for work in works] for _ in range(rounds)]
    return [sorted(side, key=lambda row: row["seconds"])[rounds // 2] for side in zip(*found, strict=True)]


def one(**work: Any) -> dict[str, Any]:
    """One measurement, in a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, "--one", json.dumps(work)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def shown(row: dict[str, Any]) -> str:
    """A line of the table."""
    theirs, ours = row["theirs"]["seconds"], row["ours"]["seconds"]
    tokens = row["rows"] * (1 if row["case"] == "first token" else NEW)
    more = f"{row['of_bandwidth']:.2f} of the bandwidth" if "of_bandwidth" in row else ""
    more = f"{row['over_one_task']:.2f} of one task's time" if "over_one_task" in row else more
    return (
        f"| {row['case']} | {row['rows']} | {row['dtype']} | {1000 * theirs:,.0f} | {1000 * ours:,.0f} "
        f"| {tokens / theirs:,.0f} | {tokens / ours:,.0f} | {theirs / ours:.2f} × | {more} |"
    )


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Tokens a second, ours beside theirs."""
    from minipeft.plots import BLUE, GREY, figures, write_figure

    shown_rows = [row for row in rows if row["case"] != "first token"]
    names = [f"{row['case']}, {row['rows']} row{'s' * (row['rows'] > 1)}, {row['dtype']}" for row in shown_rows]
    figure, axes = figures().subplots(figsize=(8, 0.75 * len(names) + 1.2), layout="constrained")
    for offset, who, name, colour in ((0.2, "theirs", "transformers + peft", GREY), (-0.2, "ours", "minipeft", BLUE)):
        values = [row["rows"] * NEW / row[who]["seconds"] for row in shown_rows]
        places = [place - offset for place in range(len(names))]
        axes.barh(places, values, height=0.38, color=colour, label=name)
        for place, value in zip(places, values, strict=True):
            axes.text(value, place, f" {value:,.0f}", va="center", fontsize=10)
    axes.set_yticks(range(len(names)), names, fontsize=10)
    axes.invert_yaxis()
    axes.margins(x=0.08)  # room for the last number
    axes.set_xlabel("tokens a second, GPT-2 small, two CPU cores", fontsize=10)
    axes.legend(frameon=False, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    write_figure(figure, path)


# -- one measurement --------------------------------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    """The base, as `transformers` reads it, and 16 adapters, as peft does."""
    import torch

    import minipeft as mp

    model = mp.GPT2(mp.GPT2Config(), seed=0)
    model.save_pretrained(folder / "base")
    for number in range(16):
        prefix = mp.attach(model, mp.Prefix(VECTORS, None), seed=number)
        prefix.save(folder / f"prefix{number}")
    prompt = mp.attach(model, mp.SoftPrompt(LONG, "random"), seed=0)
    prompt.save(folder / "prompt")
    draw = torch.Generator().manual_seed(0)
    (folder / "texts.json").write_text(json.dumps(torch.randint(50000, (16, TEXT), generator=draw).tolist()))


def measure(
    what: str, folder: str, dtype: str, repeats: int, rows: int = 1, compiled: bool = False, products: str = "packed"
) -> dict[str, Any]:
    """Seconds of the whole work, the median after a warm-up."""
    import torch

    kind = getattr(torch, dtype)
    texts = torch.tensor(json.loads((Path(folder) / "texts.json").read_text())[:rows])
    if what == "bandwidth":
        table = torch.ones(500_000_000 // kind.itemsize, dtype=kind)
        return {"bytes_a_second": table.nbytes / median(lambda: table.sum(), repeats)}
    torch.set_grad_enabled(False)
    if what in ("theirs", "switching", "first, theirs"):
        warm_up = 1 if what == "switching" else WARM_UP  # the former is 16 texts, one after another
        return {"seconds": median(peft_work(what, Path(folder), kind, texts), repeats, warm_up)}
    work, model = our_work(what, Path(folder), kind, texts, compiled, products)
    found: dict[str, Any] = {"seconds": median(work, repeats)}
    found["step"] = found["seconds"] / NEW
    found["weights"] = sum(p.numel() * p.element_size() for n, p in model.named_parameters() if n != "wpe.weight")
    return found


def median(work: Callable[[], Any], repeats: int, warm_up: int = WARM_UP) -> float:
    seconds = []
    for _ in range(warm_up + repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[warm_up:])


def peft_work(what: str, folder: Path, kind: Any, texts: Any) -> Callable[[], Any]:
    import peft
    import torch
    import transformers

    base = transformers.GPT2LMHeadModel.from_pretrained(folder / "base", dtype=kind).eval()
    first = folder / ("prompt" if what == "first, theirs" else "prefix0")
    model = peft.PeftModel.from_pretrained(base, first, adapter_name="0").eval()
    new = 1 if what == "first, theirs" else NEW
    settings = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": EOT}

    def write(some: Any) -> Any:
        return model.generate(input_ids=some, attention_mask=torch.ones_like(some), **settings)

    if what != "switching":
        return lambda: write(texts)
    for number in range(1, len(texts)):
        model.load_adapter(folder / f"prefix{number}", adapter_name=str(number))

    def row_by_row() -> None:
        for number in range(len(texts)):
            model.set_adapter(str(number))
            write(texts[number : number + 1])

    return row_by_row


def our_work(
    what: str, folder: Path, kind: Any, texts: Any, compiled: bool, products: str
) -> tuple[Callable[[], Any], Any]:
    import minipeft as mp

    model = mp.GPT2.from_pretrained(folder / "base", dtype=kind)
    bank = mp.PromptBank(model)
    if what == "first, ours":
        bank.add("0", folder / "prompt")
    else:
        for number in range(len(texts)):
            bank.add(str(number), folder / f"prefix{number}")
    model.use_compiled_steps(compiled).use_products(products)
    tasks = [str(number) for number in range(len(texts))] if what == "mixed" else ["0"] * len(texts)
    new = 1 if what == "first, ours" else NEW

    def write() -> None:
        found = bank.generate(texts, tasks, new)
        assert found.shape[1] == TEXT + new, "a row stopped early"

    return write, model


if __name__ == "__main__":
    main()
