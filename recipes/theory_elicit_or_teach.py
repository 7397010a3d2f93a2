"""Can a prefix teach a task that the model has never seen? Descending order, for small GPT-2s that can sort upwards.

    python recipes/theory_elicit_or_teach.py --runs runs/theory            # about 16 minutes of one core
    python recipes/theory_elicit_or_teach.py --runs runs/quick --quick     # under a minute: shorter, one seed

One model has descending order among the tasks it was pretrained on, the others lack it; then prefix, soft prompt and
LoRA of equally many numbers are tuned to it. Learning rates are chosen on dev texts, scores are of test texts. `RUNS`
keeps every run, so that what was interrupted goes on; `OUT` gets results/theory_elicit_or_teach.json and a picture.

Source: Petrov et al. 2024, §4 and §5.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from attended import among_text
from digit_tasks import TEST_ROWS, TEST_SEED, Pretraining, Tuning, pretrain, right, texts, tune
from theory_pictures import draw_elicit_or_teach
from torch import Tensor

import minipeft as mp
from minipeft.files import write_json
from minipeft.methods import Method
from minipeft.metrics import read_metrics
from minipeft.train_config import TrainConfig

NEW = "descending"
SAME = ("prefix", "soft prompt", "LoRA")
"""What trains equally many numbers."""
LONG = "prefix, 8 times the numbers"
UPWARDS = ("ascending",)
CASES = {
    "seen": (("ascending", NEW, "plus one", "plus two"), 1, SAME),
    "unseen": (UPWARDS, 1, (*SAME, LONG)),
    "unseen, two layers": (UPWARDS, 2, ("prefix", "LoRA")),
}
QUICK_CASES = {"seen": ((*UPWARDS, NEW), 1, SAME), "unseen": (UPWARDS, 1, SAME)}
PRETRAINING, TUNING = TrainConfig(3000, 3e-3, 128, weight_decay=0.01), TrainConfig(2000, 0.1, 32, eval_every=200)


def methods(layers: int) -> dict[str, tuple[Method, tuple[float, ...]]]:
    """Each with its learning rates, the likeliest first; those of `SAME` train 16 · layers · 64 numbers."""
    everywhere = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    return {
        "prefix": (mp.Prefix(8, reparam=None, init="vocab"), (0.1, 0.3, 1.0)),
        "soft prompt": (mp.SoftPrompt(16 * layers), (0.1, 0.3, 1.0)),
        "LoRA": (mp.LoRA(rank=1, alpha=1, targets=everywhere), (0.03, 0.01, 0.1)),
        LONG: (mp.Prefix(64, reparam=None, init="vocab"), (0.1, 0.3, 1.0)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = measure_quickly(options.runs) if options.quick else measure(options.runs)
    name = "theory_elicit_or_teach" + "_quick" * options.quick
    write_json(options.out / "results" / f"{name}.json", found)
    if options.quick:
        assert_outcome(found)
    draw_elicit_or_teach(found, options.out / f"{name}.png")


def measure(runs: Path) -> dict[str, Any]:
    """All cases and methods: three learning rates, then three seeds with the best of them."""
    return {name: case(*what, 8, PRETRAINING, TUNING, 3, runs) for name, what in CASES.items()}


def measure_quickly(runs: Path) -> dict[str, Any]:
    """One layer, six digits, fewer tasks and steps, each method with its likeliest learning rate and one seed."""
    pretraining = replace(PRETRAINING, steps=700, lr=5e-3, batch_size=64)
    tuning = replace(TUNING, steps=400)
    return {name: case(*what, 6, pretraining, tuning, 1, runs) for name, what in QUICK_CASES.items()}


def case(
    tasks: tuple[str, ...],
    layers: int,
    names: tuple[str, ...],
    digits: int,
    pretraining: TrainConfig,
    tuning: TrainConfig,
    many: int,
    runs: Path,
) -> dict[str, Any]:
    """One pretrained model: what it does by itself, and what methods make of it with `many` rates and seeds."""
    stem = runs / f"{layers}_{'_'.join(tasks)}".replace(" ", "_")
    model = pretrain(Pretraining(tasks, layers, digits, (0, 8, 16 * layers, 64), pretraining), stem / "base")
    alone = {
        task: right(model, texts((task,), TEST_ROWS, digits, TEST_SEED))[0] for task in dict.fromkeys((*tasks, NEW))
    }
    found: dict[str, Any] = {"tasks": tasks, "layers": layers, "digits": digits, "by_itself": alone, "methods": {}}
    for name in names:
        method, rates = methods(layers)[name]

        def run(lr: float, seed: int, name: str = name, method: Method = method) -> Tuning:
            out = stem / f"{name}_{lr}_{seed}".replace(" ", "_")
            return tune(model, method, NEW, digits, replace(tuning, lr=lr, seed=seed), out)

        dev = {lr: run(lr, 0).dev for lr in rates[:many]}
        best = max(dev, key=lambda lr: dev[lr])
        seeds = [run(best, seed) for seed in range(many)]
        shares = among_text(seeds[0].tuned, texts((NEW,), 50, digits, TEST_SEED))
        found["methods"][name] = {
            "trained": seeds[0].tuned.num_trainable(),
            "dev_digits_of_rates": {lr: round(digits_right, 4) for lr, digits_right in dev.items()},
            "lr": best,
            "exact": [round(one.exact, 4) for one in seeds],
            "digits": [[round(place, 4) for place in one.by_place] for one in seeds],
            "share_moved_by_layer": [float((after - before).abs().max()) for before, after in shares],
            "shares_of_first_layer": [_some(part[0, :, digits:]) for part in shares[0]],
        }
        print(stem.name, name, found["methods"][name]["exact"], flush=True)
    seconds = [read_metrics(run)[-1]["seconds"] for run in stem.iterdir()]
    return {**found, "seconds": round(sum(seconds))}


def _some(shares: Tensor) -> list[float]:
    """What queries of the answer give to a fifth of all tokens: enough for a picture."""
    return [round(share, 5) for share in shares.flatten()[::5].tolist()]


def assert_outcome(found: dict[str, Any]) -> None:
    """What the theory says, with room for chance."""
    seen, unseen = found["seen"]["methods"], found["unseen"]["methods"]
    assert min(row["exact"][0] for row in seen.values()) > 0.8, "every method should elicit what was in pretraining"
    assert max(unseen[name]["exact"][0] for name in ("prefix", "soft prompt")) < 0.1, "neither can teach"
    assert unseen["LoRA"]["exact"][0] > 0.3, "LoRA of as many numbers can"
    assert unseen["prefix"]["share_moved_by_layer"][0] < 1e-5 < 0.1 < unseen["LoRA"]["share_moved_by_layer"][0]


if __name__ == "__main__":
    main()
