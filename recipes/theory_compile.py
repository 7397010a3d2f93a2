"""A soft prompt compiles to a prefix exactly; a prefix cannot be turned into a soft prompt. Both are tried on nano.

    python recipes/theory_compile.py --runs runs/compile        # about 12 minutes of one core

A soft prompt of p vectors is p·D numbers, a prefix of p is 2·L·p·D: for nano 12 times as many. So soft prompts are
fitted to prefixes by gradient, to give the same distribution of the next token: one as long, and one of 2·L times the
length, which has as many numbers. Two controls show that it is not the fitting that fails: a prefix that *is* a
compiled soft prompt, for which an answer is known to exist, and a prefix that is fitted in place of a soft prompt.
`RUNS` keeps every fit, so that what was interrupted goes on; `OUT` gets results/theory_compile.json and a picture.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from reading import beginnings, states_from
from theory_pictures import draw_compile
from torch import Tensor

import minipeft as mp
from minipeft.attention import FixedMemory
from minipeft.files import fingerprint, write_json
from minipeft.methods import Method
from minipeft.metrics import read_metrics
from minipeft.train import train
from minipeft.train_config import TrainConfig
from minipeft.tuned import find_adapter

P, LENGTH, TRAINING, HELD_OUT = 10, 16, 400, 64
FITTING, RATES = TrainConfig(300, 0.1, 8, eval_every=50), (0.1, 0.03)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = mp.GPT2.from_pretrained("nano").use_kernels()
    many = {"train": TRAINING, "dev": HELD_OUT, "test": HELD_OUT}
    splits = {split: beginnings(model, split, rows, LENGTH) for split, rows in many.items()}
    memories = targets(model)
    found: dict[str, Any] = {
        "exact": exact_direction(model, splits["test"]),
        "first_layer_missing": {name: first_layer_missing(model, memory) for name, memory in memories.items()},
        "targets": {},
    }
    for target, memory in memories.items():
        found["targets"][target] = {
            name: best_fit(model, method, memory, splits, options.runs / target / name)
            for name, method in students(model.config.n_layer).items()
        }
    found["seconds"] = round(sum(read_metrics(run)[-1]["seconds"] for run in options.runs.glob("*/*/*")))
    write_json(options.out / "results" / "theory_compile.json", found)
    draw_compile(found, options.out / "theory_compile.png")


@torch.no_grad()
def exact_direction(model: mp.GPT2, tokens: Int[Tensor, "B T"]) -> dict[str, float]:
    """How far a soft prompt and the prefix that it compiles to are apart."""
    tuned = mp.attach(model, mp.SoftPrompt(P), seed=1).eval()
    before, after = tuned(tokens), tuned.compile()(tokens)
    apart = {"logits": float((before - after).abs().max()), "kl": float(kl(before.double(), after.double()))}
    return {"largest_logit": float(before.abs().max()), **apart}


@torch.no_grad()
def targets(model: mp.GPT2) -> dict[str, FixedMemory]:
    """Three prefixes: a soft prompt compiled, one that was trained, and one of random numbers of the usual size."""
    compiled = mp.attach(model, mp.SoftPrompt(P), seed=1).compile()
    random = mp.attach(model, mp.Prefix(P, reparam=None), seed=1)
    for parameter in random.trainable_parameters().values():
        parameter.mul_(50)  # drawn with a standard deviation of 0.02
    found = {"compiled": compiled, "trained": mp.load(find_adapter("shakespeare"), model), "random": random}
    return {name: tuned.doors().memory for name, tuned in found.items()}


@torch.no_grad()
def first_layer_missing(model: mp.GPT2, memory: FixedMemory) -> float:
    """What share of the first layer's keys and values no soft prompt has, at best, by least squares: no fitting here.

    There they are W n + b of one normalised vector n a position: D numbers can be chosen, 2·D are wanted.
    """
    linear, D = model.blocks[0].attn.c_attn, model.config.n_embd
    wanted = torch.cat([part[0].transpose(0, 1).flatten(1) for part in memory.of(0)], dim=1)  # [P, 2·D]
    W, b = linear.weight[D:].double(), linear.bias[D:].double()
    best = torch.linalg.lstsq(W, (wanted - b).double().T).solution
    return float((W @ best - (wanted - b).T).norm() / (wanted - b).norm())


def students(layers: int) -> dict[str, Method]:
    """What is fitted: the first has the least numbers, the others 2·L times as many."""
    return {
        "soft_prompt": mp.SoftPrompt(P),
        "long_soft_prompt": mp.SoftPrompt(2 * layers * P),
        "prefix": mp.Prefix(P, reparam=None, init="vocab"),
    }


def kl(wanted: Float[Tensor, "B T V"], found: Float[Tensor, "B T V"]) -> Float[Tensor, ""]:
    """Mean over tokens of KL(wanted ‖ found) in nats, both given as logits."""
    wanted, found = wanted.log_softmax(dim=-1), found.log_softmax(dim=-1)
    return (wanted.exp() * (wanted - found)).sum(dim=-1).mean()


def best_fit(
    model: mp.GPT2, method: Method, memory: FixedMemory, splits: dict[str, Tensor], out: Path
) -> dict[str, Any]:
    """The fit of the better learning rate, by dev texts, and what remains of the target's effect on test texts."""
    fits = {lr: fit(model, method, memory, splits, replace(FITTING, lr=lr), out / str(lr)) for lr in RATES}
    lr = min(fits, key=lambda rate: fits[rate][1])
    tuned, dev = fits[lr]
    first, test = model.config.n_positions - tuned.room, splits["test"]
    with torch.no_grad():
        wanted = model.logits(states_from(model, test, first, memory))
        found, bare = tuned(test), model.logits(states_from(model, test, first, None))
    curve = [[row["step"], row["kl"]] for row in read_metrics(out / str(lr)) if "kl" in row]
    result = {"trained": tuned.num_trainable(), "lr": lr, "dev_kl": dev, "kl": float(kl(wanted, found))}
    result |= {"kl_of_bare_model": float(kl(wanted, bare)), "logits": float((wanted - found).abs().max())}
    print(out.parent.name, out.name, result, flush=True)
    return {**result, "curve": curve}


def fit(
    model: mp.GPT2, method: Method, memory: FixedMemory, splits: dict[str, Tensor], config: TrainConfig, out: Path
) -> tuple[mp.Tuned, float]:
    """`method` fitted to give the target's next-token distributions on the training texts, and its KL on dev texts."""
    tuned = mp.attach(model, method)
    first = model.config.n_positions - tuned.room  # the target's texts stand where the student's do
    states = {split: states_from(model, tokens, first, memory) for split, tokens in splits.items()}

    def loss_at(step: int) -> Tensor:
        rows = torch.randint(TRAINING, (config.batch_size,))
        return kl(model.logits(states["train"][rows]), tuned(splits["train"][rows]))

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        left = float(kl(model.logits(states["dev"]), tuned(splits["dev"])))
        return {"score": -left, "kl": left}

    about = {"method": str(method), "target": fingerprint(memory.keys, memory.values)}
    result = train(tuned.trainable_parameters(), loss_at, config, out, evaluate=evaluate, resume=True, setting=about)
    return tuned.eval(), -result.best_score


if __name__ == "__main__":
    main()
