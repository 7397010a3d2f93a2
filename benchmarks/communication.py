"""What the processes of a run send each other in a step of each method: bytes counted, and what follows for more.

    python benchmarks/communication.py

GPT-2 small, random weights, two processes with Gloo on this machine. What is counted are the bytes of the tensors that
collectives work on; they depend neither on the batch nor, in the whole, on how many processes there are. The tables of
sent bytes and of seconds are computed from them: see `docs/scaling.md` for the formula and the assumptions.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PROMPT, MLP, RANK, WIDTH = 20, 512, 8, 64
ROWS, LENGTH = 2, 8
DDP, SHARDED = "full (DDP)", "full, sharded (FSDP2)"

# A projection's assumptions: one A100 for each process, eight in a machine.
TOKENS = 8 * 1024
"""Of a step, in each process."""
FLOPS = 0.4 * 312e12
"""Operations a second: two fifths of the bfloat16 peak that NVIDIA's data sheet names."""
LINKS = (
    (8, "NVLink in one machine", 0.7 * 300e9),
    (64, "InfiniBand, 8 × 200 Gb/s for each machine", 0.7 * 8 * 25e9),
    (64, "Ethernet, 10 Gb/s for each machine", 0.7 * 1.25e9),
)
"""GPUs, the narrowest link of the ring, and seven tenths of the bytes that it is sold to carry in a second.

A ring enters and leaves a machine once; where it has several network cards, as many rings carry a part each.
"""


def main() -> None:
    if "RANK" in os.environ:
        measure_all(Path(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*command, f"{folder}/found.json"], env=environment, check=True)
        found = json.loads((Path(folder) / "found.json").read_text())
    print_bytes(found)
    for name in (DDP, SHARDED):
        for what, expected in bytes_of_full("gpt2", name == SHARDED).items():
            assert 0 <= found[name]["bytes"][what] - expected < 1e-4 * expected, (name, what)  # shards of one size
    print_projection(found)


def methods() -> dict[str, Any]:
    import minipeft as mp

    return {
        f"soft prompt of {PROMPT}": mp.SoftPrompt(length=PROMPT, init="random"),
        f"prefix of {PROMPT}": mp.Prefix(length=PROMPT, reparam=None),
        f"prefix of {PROMPT} by an MLP of {MLP}": mp.Prefix(length=PROMPT, reparam=MLP),
        f"LoRA of rank {RANK}": mp.LoRA(rank=RANK),
        f"adapters of width {WIDTH}": mp.BottleneckAdapter(width=WIDTH),
        "BitFit": mp.BitFit(),
        DDP: mp.FullFinetuning(),
        SHARDED: mp.FullFinetuning(),
    }


def measure_all(path: Path) -> None:
    """In each of the processes; the writer's counts are kept."""
    import torch

    import minipeft as mp
    from minipeft.distributed import joined

    torch.set_num_threads(1)
    with joined("cpu") as team:
        base = mp.GPT2(mp.GPT2Config(), seed=0)
        found = {name: measure(base, method, team, name == SHARDED) for name, method in methods().items()}
        if team.is_writer:
            path.write_text(json.dumps(found))


def measure(base: Any, method: Any, team: Any, sharded: bool) -> dict[str, Any]:
    """The third step's traffic: from the first two DistributedDataParallel learns in which order gradients come."""
    import torch

    import minipeft as mp
    from minipeft.sharding import shard_tuned
    from minipeft.traffic import Traffic

    tuned = mp.attach(base, method).train()
    tuned.model.use_kernels()
    trained = tuned.num_trainable()
    if sharded:
        shard_tuned(tuned, team)
    loss = team.loss_of(tuned.loss, tuned.trainable_parameters().values())
    tokens = torch.randint(1000, (ROWS, LENGTH), generator=torch.Generator().manual_seed(team.rank))
    for _ in range(3):
        with Traffic() as traffic:
            loss(tokens, tokens).backward()
    tuned.detach()
    return {"trained": trained, "bytes": dict(traffic.bytes)}


def print_bytes(found: dict[str, Any]) -> None:
    from minipeft.traffic import sent_in_a_ring

    operations = ["all-reduce", "all-gather", "reduce-scatter"]
    print(f"| method | trained numbers | {' | '.join(operations)} | sent by each of 2 | of 8 | of 64 |")
    print("|---|" + "---:|" * (4 + len(operations)))
    for name, one in found.items():
        assert set(one["bytes"]) <= set(operations), one
        counted = [shown(one["bytes"][what]) if what in one["bytes"] else "–" for what in operations]
        sent = [shown(sent_in_a_ring(one["bytes"], size)) for size in (2, 8, 64)]
        print(f"| {name} | {one['trained']:,} | {' | '.join(counted + sent)} |")


def bytes_of_full(model: str, sharded: bool) -> dict[str, int]:
    """What full finetuning of a public shape sends: 4 bytes a number, a block's gathered twice."""
    whole, blocks = parameters_of(model)
    if not sharded:
        return {"all-reduce": 4 * whole}
    return {"all-gather": 4 * (whole + blocks), "reduce-scatter": 4 * whole}


def parameters_of(model: str) -> tuple[int, int]:
    """How many numbers a public shape has, and how many of them in blocks."""
    import torch

    import minipeft as mp
    from minipeft.pretrain import CONFIGS

    with torch.device("meta"):
        whole = mp.GPT2(CONFIGS[model])
    return whole.num_parameters(), sum(parameter.numel() for parameter in whole.h.parameters())


def print_projection(found: dict[str, Any]) -> None:
    """Seconds of computing and of sending in a step, one after the other; nothing of it was measured."""
    from minipeft.traffic import sent_in_a_ring

    rows = [("gpt2", name, one["bytes"]) for name, one in found.items()]
    rows += [("gpt2-xl", name, bytes_of_full("gpt2-xl", name == SHARDED)) for name in (DDP, SHARDED)]
    print("\n| method | computing | " + " | ".join(f"{size} GPUs, {name}" for size, name, _ in LINKS) + " |")
    print("|---|" + "---:|" * (1 + len(LINKS)))
    for model, name, bytes_ in rows:
        passes = 3 if name.startswith("full") else 2  # a frozen weight needs no gradient of its own
        computing = passes * 2 * parameters_of(model)[0] * TOKENS / FLOPS
        sending = [sent_in_a_ring(bytes_, size) / speed for size, _, speed in LINKS]
        print(f"| {model}, {name} | {' | '.join(map(seconds, [computing, *sending]))} |")


def shown(count: float) -> str:
    return (
        f"{count / 1e3:,.0f} kB"
        if count < 1e6
        else f"{count / 1e6:,.3g} MB"
        if count < 1e9
        else f"{count / 1e9:.3g} GB"
    )


def seconds(count: float) -> str:
    return "below 0.1 ms" if count < 1e-4 else f"{1e3 * count:.2g} ms" if count < 0.0995 else f"{count:.2g} s"


if __name__ == "__main__":
    main()
