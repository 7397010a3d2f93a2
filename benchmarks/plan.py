"""What `minipeft plan` predicts of a step, beside what the step then takes: memory, and time.

    python benchmarks/plan.py                    # 32 combinations, about eight minutes
    python benchmarks/plan.py --out docs/results

Every measurement is a process of its own: four steps of tuning a random GPT-2 that was written to disk before, rows
all of one length. Memory is the highest resident set, less what the process held before it had a model.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resident import resident

SHAPES = {
    "nano": {"n_layer": 6, "n_head": 4, "n_embd": 256, "n_positions": 256, "vocab_size": 8257},
    "small": {},
    "medium": {"n_layer": 24, "n_head": 16, "n_embd": 1024},
}


@dataclass(frozen=True)
class Case:
    """One combination; `text` is how a person reads it."""

    shape: str
    method: str
    dtype: str
    rows: int
    length: int
    checkpointing: bool = False

    @property
    def text(self) -> str:
        again = ", checkpointing" if self.checkpointing else ""
        return f"{self.shape} {self.method} {self.dtype} {self.rows} × {self.length}{again}"


CASES = [
    *(
        Case("small", method, dtype, 8, 108)
        for method in ("soft_prompt", "prefix", "prefix_mlp", "lora", "adapter", "llama_adapter", "bitfit", "full")
        for dtype in ("float32", "bfloat16")
    ),
    Case("small", "prefix", "float32", 2, 64),
    Case("small", "prefix", "float32", 4, 512),
    Case("small", "lora", "bfloat16", 2, 900),
    Case("small", "prefix", "float32", 16, 256, checkpointing=True),
    Case("small", "full", "float32", 2, 64),
    Case("small", "full", "bfloat16", 8, 256, checkpointing=True),
    Case("small", "ia3", "float32", 32, 48),
    Case("nano", "full", "float32", 16, 200),
    Case("nano", "prefix", "float32", 16, 200),
    Case("medium", "lora", "float32", 4, 128),
    Case("medium", "prefix", "bfloat16", 4, 128),
    # The two constants of `minipeft.plan` were fitted to those above, and not to these.
    Case("small", "p_tuning", "float32", 8, 108),
    Case("small", "prefix", "bfloat16", 8, 400),
    Case("small", "lora", "float32", 24, 64),
    Case("small", "adapter", "float32", 4, 300, checkpointing=True),
    Case("medium", "full", "float32", 2, 64),
]
STEPS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose text holds this")
    parser.add_argument("--out", type=Path, help="write OUT/plan.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        folder, *of_case = json.loads(options.one)
        print(json.dumps(measure(Path(folder), Case(*of_case))))
        return
    import minipeft as mp

    rows = []
    cases = [case for case in CASES if options.only in case.text]
    print("| model, method, type, batch | predicted | measured | ratio | predicted step | measured | ratio |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for shape in {case.shape for case in cases}:
            mp.GPT2(mp.GPT2Config(**SHAPES[shape]), seed=0).save_pretrained(Path(folder) / shape)
        for case in cases:
            one = [folder, case.shape, case.method, case.dtype, case.rows, case.length, case.checkpointing]
            command = [sys.executable, "-W", "ignore", __file__, "--one", json.dumps(one)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            rows.append({"case": case.text, **json.loads(done.stdout.splitlines()[-1])})
            print(shown(rows[-1]), flush=True)
    ratios = [row["predicted_bytes"] / row["bytes"] for row in rows]
    within = sum(abs(ratio - 1) <= 0.15 for ratio in ratios)
    print(f"\nmemory within 15 %: {within} of {len(rows)}; ratios from {min(ratios):.2f} to {max(ratios):.2f}")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "plan.json").write_text(json.dumps(rows, indent=1) + "\n")


def shown(row: dict[str, Any]) -> str:
    memory, seconds = row["predicted_bytes"] / row["bytes"], row["predicted_seconds"] / row["seconds"]
    return (
        f"| {row['case']} | {row['predicted_bytes'] / 1e6:,.0f} MB | {row['bytes'] / 1e6:,.0f} MB | {memory:.2f} "
        f"| {row['predicted_seconds']:.2f} s | {row['seconds']:.2f} s | {seconds:.2f} |"
    )


def measure(folder: Path, case: Case) -> dict[str, Any]:
    """Prediction and measurement; the step is made as `minipeft tune` makes it."""
    import torch

    import minipeft as mp
    from minipeft.kernels.allocator import keep_freed_memory
    from minipeft.methods import METHODS
    from minipeft.plan import fit, measure_rates
    from minipeft.rehearsal import Work

    kind = getattr(torch, case.dtype)
    config = mp.GPT2Config(**SHAPES[case.shape])
    known: dict[str, Any] = {"soft_prompt": mp.SoftPrompt(20, init="random"), "prefix": mp.Prefix(20, None)}
    method = {**known, "prefix_mlp": mp.Prefix(20, 512)}.get(case.method) or METHODS[case.method]()
    work = Work(config, method, case.rows, case.length, case.length // 2, kind, case.checkpointing)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident set counts from here
    keep_freed_memory()
    full = case.method == "full"
    base = mp.GPT2.from_pretrained(folder / case.shape, dtype=torch.float32 if full else kind)
    if full and kind != torch.float32:
        base.use_activations(kind)
    tuned = mp.attach(base.use_kernels().use_checkpointing(case.checkpointing), method).train()
    optimizer = torch.optim.AdamW(tuned.trainable_parameters().values(), lr=1e-4, fused=True)
    taken = []
    for step in range(STEPS):
        start = time.perf_counter()
        tokens = torch.randint(8000, (case.rows, case.length), generator=torch.Generator().manual_seed(step))
        labels = tokens.masked_fill(torch.arange(case.length) < case.length - case.length // 2, -100)
        tuned.loss(tokens, labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        taken.append(time.perf_counter() - start)
    found = {"bytes": resident("VmHWM") - before, "seconds": statistics.median(taken[1:])}
    planned = fit(work, 10**12)
    seconds = measure_rates(config, kind, torch.device("cpu")).seconds(planned)
    return {**found, "predicted_bytes": planned.needed, "predicted_seconds": seconds}


if __name__ == "__main__":
    main()
