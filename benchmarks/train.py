"""Steps of tuning: time and memory of minipeft against `transformers` with `peft`, same batches, same start.

    python benchmarks/train.py                                  # the ragged batch of 8, all methods, both types
    python benchmarks/train.py --cases e2e-8,e2e-16 --methods prefix,lora --out runs/bench

    python benchmarks/train.py --cases length-64,length-256,length-1004 --methods prefix --out runs/bench

Every measurement is a process of its own. Seconds are medians of the steps after the warm-up; memory is the highest
resident set from the first step on, less what the process held before it had a model. `losses apart` is the largest
difference of any step's loss. Ratios above 1 are in our favour. `of peak` is the share of the matrix rate, measured in
the same run, that the model's own products make up (model FLOPs utilisation, Chowdhery et al. 2022, appendix B): per
token k · 24 L D² operations, per label k · 2 V D, where k is 1 for the forward pass, 1 for the backward pass and, where
all weights are trained, 1 more. With --out a table and two pictures of all that was ever measured into that folder are
drawn as well.
"""

import argparse
import csv
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

from resident import resident
from steps import beside, measured

METHODS = ("soft_prompt", "prefix", "prefix_mlp", "lora", "full")
CASES = ("ragged-8", "e2e-8", "e2e-16", "length-64 … length-1004")
TOKENS = 1024
"""Of a step of the cases by length."""
DTYPES = ("float32", "bfloat16")
SHAPES = {"small": {}, "medium": {"n_layer": 24, "n_head": 16, "n_embd": 1024}}
PROMPT, MLP, RANK = 20, 512, 8
EOT = 50256
E2E = Path(__file__).parents[2] / "shared" / "data" / "e2e_nlg" / "e2e-dataset.zip"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="ragged-8", help=", ".join(CASES))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--switches",
        default="all",
        help="all, or some of chunked, packing, split, mixed, compile; none: the plain code",
    )
    parser.add_argument("--e2e", type=Path, default=E2E, help="e2e-dataset.zip")
    parser.add_argument("--out", type=Path, help="append each row to OUT/train.jsonl")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(matrix_peak(options.peak))
        return
    if options.one:
        print(json.dumps(measure(**json.loads(options.one))))
        return
    rows = []
    peaks = {
        dtype: float(subprocess.check_output([sys.executable, __file__, "--peak", dtype]))
        for dtype in options.dtypes.split(",")
    }
    with tempfile.TemporaryDirectory() as folder:
        for case in options.cases.split(","):
            write_batches(Path(folder), case, options)
            for method in options.methods.split(","):
                for dtype in options.dtypes.split(","):
                    rows.append(compare(folder, case, method, dtype, options))
                    rows[-1]["peak"] = peaks[dtype]
                    rows[-1]["of_peak"] = work_of(rows[-1]) / rows[-1]["ours"]["seconds"] / peaks[dtype]
                    print(shown(rows[-1]), flush=True)
                    if options.out:
                        options.out.mkdir(parents=True, exist_ok=True)
                        with open(options.out / "train.jsonl", "a") as file:
                            file.write(json.dumps(rows[-1]) + "\n")
    if options.out:
        draw(options.out)


def compare(folder: str, case: str, method: str, dtype: str, options: argparse.Namespace) -> dict[str, Any]:
    """Both on the same steps; peft goes first, since it writes the start that we read."""
    work = {"case": case, "shape": options.shape, "method": method, "dtype": dtype, "switches": options.switches}
    ours, compared = beside(__file__, folder=folder, steps=options.steps, **work)
    rate = {"tokens_per_second": ours["tokens"] / ours["seconds"]}
    return {**work, "tokens": ours["tokens"], "labels": ours["labels"], **rate, **compared}


def shown(row: dict[str, Any]) -> str:
    seconds = f"{row['theirs']['seconds']:.2f} s -> {row['ours']['seconds']:.2f} s"
    rate = f"{row['tokens_per_second']:,.0f} tokens a second, {row['of_peak']:.2f} of peak"
    memory = f"{row['theirs']['memory'] / 1e9:.2f} GB -> {row['ours']['memory'] / 1e9:.2f} GB"
    return (
        f"{row['case']:9} {row['method']:11} {row['dtype']:8} {row['faster']:5.2f} x as fast ({seconds}), "
        f"{row['memory_ratio']:.2f} of the memory ({memory}), losses apart {row['losses_apart']:.0e}, {rate}"
    )


# -- batches ----------------------------------------------------------------------------------------------------------


def write_batches(folder: Path, case: str, options: argparse.Namespace) -> None:
    """Token ids and labels of every step, as JSON: real rows, not padded yet."""
    import random

    draw = random.Random(0)
    if case == "ragged-8":
        steps = [[ragged_row(draw, length) for length in lengths(draw)] for _ in range(options.steps)]
    elif case.startswith("length-"):
        length = int(case.removeprefix("length-"))
        steps = [[ragged_row(draw, length) for _ in range(TOKENS // length)] for _ in range(options.steps)]
    else:
        rows = list(e2e_rows(options.e2e))
        steps = [draw.sample(rows, int(case.removeprefix("e2e-"))) for _ in range(options.steps)]
    (folder / f"{case}.json").write_text(json.dumps(steps))


def lengths(draw: Any) -> list[int]:
    """Eight lengths from 64 to 128, 862 tokens together."""
    while sum(found := [draw.randint(64, 128) for _ in range(8)]) != 862:
        pass
    return found


def ragged_row(draw: Any, length: int) -> dict[str, Any]:
    """Random tokens, of which the second half is learned."""
    return {"ids": [draw.randrange(50000) for _ in range(length)], "target_starts": length // 2}


def e2e_rows(path: Path) -> Any:
    """Meaning and text of the E2E training set, as GPT-2 tokens; the meaning is not learned."""
    from minipeft.tokenizer import Tokenizer

    tokenizer = Tokenizer.gpt2()
    with zipfile.ZipFile(path) as archive:
        table = csv.DictReader(io.StringIO(archive.read("e2e-dataset/trainset.csv").decode("utf-8")))
        for number, row in enumerate(table):
            if number % 20 == 0:
                source = [*tokenizer.encode(row["mr"] + " "), EOT]
                target = [*tokenizer.encode(" " + row["ref"] + " "), EOT]
                yield {"ids": source + target, "target_starts": len(source)}


# -- one measurement --------------------------------------------------------------------------------------------------


def measure(
    who: str, folder: str, case: str, method: str, dtype: str, shape: str, steps: int, switches: str
) -> dict[str, Any]:
    """Seconds of a step, memory in bytes, and every loss."""
    import peft  # noqa: F401, both have everything imported, so that memory is that of the work
    import torch
    import transformers  # noqa: F401

    from minipeft.tasks.base import Encoded, collate

    torch.manual_seed(0)
    steps_of_rows = json.loads((Path(folder) / f"{case}.json").read_text())
    batches = [collate([Encoded(**row) for row in rows], EOT) for rows in steps_of_rows]
    before = resident("VmRSS")
    make = theirs if who == "theirs" else ours
    parameters, loss_of = make(Path(folder), method, getattr(torch, dtype), SHAPES[shape], switches)
    losses = [partial(loss_of, batch.tokens, batch.labels, batch.attention_mask.long()) for batch in batches]
    return {
        **measured(losses, parameters, before),
        "tokens": statistics.mean(int(batch.attention_mask.sum()) for batch in batches),
        "labels": statistics.mean(int((batch.labels[:, 1:] != -100).sum()) for batch in batches),
    }


def matrix_peak(dtype: str) -> float:
    """Operations a second of the best of some large products, by either of PyTorch's libraries."""
    import torch

    from minipeft.kernels.machine import product

    best = 0.0
    for rows, wide, out in ((1024, 768, 3072), (1024, 3072, 768), (2048, 2048, 2048)):
        x, weight = (torch.randn(shape).to(getattr(torch, dtype)) for shape in ((rows, wide), (out, wide)))
        for multiply in (torch.nn.functional.linear, product):
            taken = []
            for _ in range(12):
                start = time.perf_counter()
                multiply(x, weight)
                taken.append(time.perf_counter() - start)
            best = max(best, 2 * rows * wide * out / statistics.median(taken[2:]))
    return best


def work_of(row: dict[str, Any]) -> float:
    """The model's own operations in a step: see `of peak` above."""
    from minipeft.config import GPT2Config
    from minipeft.plan import model_flops

    return model_flops(GPT2Config(**SHAPES[row["shape"]]), row["tokens"], row["labels"], row["method"] == "full")


# -- what people look at -----------------------------------------------------------------------------------------------


def draw(out: Path) -> None:
    """OUT/train.md and pictures, of every row that was ever appended to OUT/train.jsonl."""
    rows = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    head = "| case | method | type | seconds, peft | ours | faster | memory, peft | ours | ratio | of peak |"
    told = [f"{head} losses apart |", "|---|---|---|" + "---:|" * 8]
    for row in rows:
        ours, theirs = row["ours"], row["theirs"]
        case = row["case"] + (f", {row['shape']}" if row["shape"] != "small" else "")
        case += f", {row['switches']}" if row["switches"] != "all" else ""
        told.append(
            f"| {case} | {row['method']} | {row['dtype']} | {theirs['seconds']:.2f} | {ours['seconds']:.2f} "
            f"| {row['faster']:.2f} × | {theirs['memory'] / 1e9:.2f} GB | {ours['memory'] / 1e9:.2f} GB "
            f"| {row['memory_ratio']:.2f} | {row['of_peak']:.2f} | {row['losses_apart']:.0e} |"
        )
    (out / "train.md").write_text("\n".join(told) + "\n")
    usual = [row for row in rows if row["switches"] == "all" and row["shape"] == "small"]
    bars([row for row in usual if row["case"] == "ragged-8"], out / "train.png")
    lines([row for row in usual if row["case"].startswith("length-")], out / "train_lengths.png")


def bars(rows: list[dict[str, Any]], path: Path) -> None:
    """How many times as fast, and the share of the memory, by method and type."""
    if not rows:
        return
    from minipeft.plots import BLUE, GREY, ORANGE, figures, write_figure

    pyplot = figures()
    figure, both = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    methods = [method for method in METHODS if any(row["method"] == method for row in rows)]
    for axes, key, what in zip(
        both, ("faster", "memory_ratio"), ("times as fast as transformers + peft", "share of their memory"), strict=True
    ):
        for number, (dtype, colour) in enumerate(zip(DTYPES, (BLUE, ORANGE), strict=True)):
            found = {row["method"]: row[key] for row in rows if row["dtype"] == dtype}
            places = [place + 0.38 * number for place in range(len(methods))]
            axes.barh(places, [found.get(method, 0) for method in methods], 0.36, color=colour, label=dtype)
            for place, method in zip(places, methods, strict=True):
                axes.text(found.get(method, 0), place, f" {found.get(method, 0):.2f}", va="center", fontsize=10)
        axes.axvline(1, color=GREY, linestyle="--", linewidth=1)
        axes.set_yticks([place + 0.19 for place in range(len(methods))], methods, fontsize=10)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.15 * max(1, *(row[key] for row in rows)))
        axes.set_xlabel(f"{what} (dashed: the same)", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    both[1].legend(frameon=False, fontsize=10, loc=(0.58, 0.45))
    figure.suptitle("A tuning step of GPT-2 small, eight texts of 64 to 128 tokens", fontsize=12, x=0.02, ha="left")
    write_figure(figure, path)


def lines(rows: list[dict[str, Any]], path: Path) -> None:
    """Tokens a second against the length of the texts, ours and theirs."""
    if not rows:
        return
    from minipeft.plots import BLUE, ORANGE, figures, write_figure

    figure, axes = figures().subplots(figsize=(7, 4), layout="constrained")
    for dtype, colour in zip(DTYPES, (BLUE, ORANGE), strict=True):
        found = sorted(
            (
                int(row["case"].removeprefix("length-")),
                row["tokens"] / row["ours"]["seconds"],
                row["tokens"] / row["theirs"]["seconds"],
            )
            for row in rows
            if row["dtype"] == dtype
        )
        for which, style, who in ((1, "o-", "minipeft"), (2, "s--", "transformers + peft")):
            rates = [one[which] for one in found]
            axes.plot([one[0] for one in found], rates, style, color=colour, label=f"{who}, {dtype}")
    axes.set_xscale("log", base=2)
    axes.set_xticks([64, 128, 256, 512, 1004], ["64", "128", "256", "512", "1004"])
    axes.set_ylim(0)
    axes.set_xlabel("tokens of a text (about 1,024 a step)", fontsize=10)
    axes.set_ylabel("tokens a second", fontsize=10)
    axes.set_title("Tuning a prefix of GPT-2 small, by the length of the texts", fontsize=12, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=10)
    write_figure(figure, path)


def theirs(folder: Path, method: str, dtype: Any, shape: dict[str, int], _: str) -> Any:
    """`transformers` with `peft`, used as their documentation does."""
    import peft
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    base, start = folder / "base", folder / "start"
    if not base.exists():
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config(**shape)).save_pretrained(base)
    model = GPT2LMHeadModel.from_pretrained(base, dtype=torch.float32 if method == "full" else dtype)
    common = {"task_type": "CAUSAL_LM"}
    configs = {
        "soft_prompt": lambda: peft.PromptTuningConfig(**common, num_virtual_tokens=PROMPT),
        "prefix": lambda: peft.PrefixTuningConfig(**common, num_virtual_tokens=PROMPT),
        "prefix_mlp": lambda: peft.PrefixTuningConfig(
            **common, num_virtual_tokens=PROMPT, prefix_projection=True, encoder_hidden_size=MLP
        ),
        "lora": lambda: peft.LoraConfig(
            **common, r=RANK, lora_alpha=16, target_modules=["c_attn"], fan_in_fan_out=True
        ),
    }
    model.config.attn_pdrop = model.config.resid_pdrop = model.config.embd_pdrop = 0.0
    if method != "full":
        model = peft.get_peft_model(model, configs[method]())
        if method == "prefix_mlp":
            torch.save(model.prompt_encoder.state_dict(), start.with_suffix(".pt"))
        else:
            model.save_pretrained(start / method)
    for module in model.modules():  # no dropout, so that losses can be compared
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.train()
    context = torch.autocast("cpu", dtype=dtype, enabled=method == "full" and dtype != torch.float32)

    def loss_of(tokens: Any, labels: Any, mask: Any) -> Any:
        with context:
            return model(input_ids=tokens, attention_mask=mask, labels=labels).loss

    return [parameter for parameter in model.parameters() if parameter.requires_grad], loss_of


def ours(folder: Path, method: str, dtype: Any, shape: dict[str, int], switches: str) -> Any:
    """minipeft from the same start, with its switches."""
    import torch

    import minipeft as mp
    from minipeft.kernels.allocator import keep_freed_memory

    keep_freed_memory()
    mixed = method == "full" and dtype != torch.float32
    base = mp.GPT2.from_pretrained(folder / "base", dtype=torch.float32 if mixed else dtype)
    on = set(filter(None, switches.split(",")))
    if "all" in on:
        base.use_kernels()
    else:
        base.use_loss("chunked" if "chunked" in on else "plain").use_packing("packing" in on)
        base.use_attention("split" if "split" in on else "fused").use_products("mixed" if "mixed" in on else "plain")
    if mixed:
        base.use_activations(dtype)
    if method == "full":
        tuned = mp.attach(base, mp.FullFinetuning())
    elif method == "prefix_mlp":
        tuned = mp.attach(base, mp.Prefix(PROMPT, MLP))
        found = torch.load(folder / "start.pt", weights_only=True)
        state = {f"encoder.{name.removeprefix('default.')}": tensor for name, tensor in found.items()}
        tuned.attachment.load_state_dict(state)
    else:
        tuned = mp.load(folder / "start" / method, base)
    tuned.train()
    if "compile" in on:
        tuned.model.use_compile()
    return list(tuned.trainable_parameters().values()), tuned.loss


if __name__ == "__main__":
    main()
