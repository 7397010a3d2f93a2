"""Steps of pretraining the GPT-2 small shape: minipeft against `transformers`, same weights, same batches.

    python benchmarks/pretrain.py                     # four windows of 256 and of 1,024 tokens, bfloat16 activations
    python benchmarks/pretrain.py --windows 256 --dtypes float32,bfloat16 --out docs/results

Both train fp32 weights with AdamW (fused) and clip the gradient's norm at 1; theirs computes under autocast. Random
tokens, every one but the first of a window learned. Every measurement is a process of its own; seconds are medians of
the steps after the warm-up, memory is the highest resident set less what the process held before it had a model.
Ratios above 1 are in our favour. `of peak` is the share of the matrix rate of the same run: see benchmarks/train.py.
"""

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from resident import resident
from steps import beside, measured
from train import matrix_peak

ROWS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", default="256,1024")
    parser.add_argument("--dtypes", default="bfloat16")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--compile", action="store_true", help="ours with compiled blocks")
    parser.add_argument("--out", type=Path, help="write OUT/pretrain.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(**json.loads(options.one))))
        return
    import minipeft as mp

    rows = []
    print("| tokens a step | type | seconds, transformers | ours | tokens/s, ours | faster ", end="")
    print("| memory, transformers | ours | ratio | of peak | losses apart |\n|---|---|" + "---:|" * 9, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        mp.GPT2(mp.GPT2Config(), seed=0).save_pretrained(Path(folder) / "base")  # in no process that is measured
        for window in map(int, options.windows.split(",")):
            for dtype in options.dtypes.split(","):
                rows.append(compare(folder, window, dtype, options))
                print(shown(rows[-1]), flush=True)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "pretrain.json").write_text(json.dumps(rows, indent=1) + "\n")


def compare(folder: str, window: int, dtype: str, options: argparse.Namespace) -> dict[str, Any]:
    """Both on the same steps, from the same weights."""
    work = {"window": window, "dtype": dtype}
    ours, compared = beside(__file__, folder=folder, steps=options.steps, compiled=options.compile, **work)
    return {**work, **compared, "of_peak": ours["flops"] / ours["seconds"] / matrix_peak(dtype)}


def shown(row: dict[str, Any]) -> str:
    ours, theirs = row["ours"], row["theirs"]
    memory = f"{theirs['memory'] / 1e9:.2f} GB | {ours['memory'] / 1e9:.2f} GB | {row['memory_ratio']:.2f}"
    return (
        f"| {ROWS} × {row['window']} | {row['dtype']} | {theirs['seconds']:.2f} | {ours['seconds']:.2f} "
        f"| {ROWS * row['window'] / ours['seconds']:,.0f} | {row['faster']:.2f} × | {memory} "
        f"| {row['of_peak']:.2f} | {row['losses_apart']:.0e} |"
    )


def measure(who: str, folder: str, window: int, dtype: str, steps: int, compiled: bool) -> dict[str, Any]:
    """Seconds of a step, memory in bytes, and every loss."""
    import torch
    import transformers

    import minipeft as mp
    from minipeft.kernels.allocator import keep_freed_memory
    from minipeft.plan import model_flops

    base, kind = Path(folder) / "base", getattr(torch, dtype)
    draw = torch.Generator().manual_seed(0)
    batches = [torch.randint(50257, (ROWS, window), generator=draw) for _ in range(steps)]
    before = resident("VmRSS")
    if who == "theirs":
        config = transformers.GPT2Config(attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0)
        model = transformers.GPT2LMHeadModel.from_pretrained(base, config=config).train()

        def loss_of(tokens: Any) -> Any:
            with torch.autocast("cpu", dtype=kind, enabled=kind != torch.float32):
                return model(input_ids=tokens, labels=tokens).loss
    else:
        keep_freed_memory()
        model = mp.GPT2.from_pretrained(base).train()
        model.use_activations(None if kind == torch.float32 else kind).use_kernels()
        if compiled:
            model.use_compile()

        def loss_of(tokens: Any) -> Any:
            return model.loss(tokens, tokens)

    steps_taken = measured([partial(loss_of, tokens) for tokens in batches], list(model.parameters()), before, clip=1.0)
    return {**steps_taken, "flops": model_flops(mp.GPT2Config(), ROWS * window, ROWS * (window - 1))}


if __name__ == "__main__":
    main()
