"""What each method makes of a frozen ResNet on new digits: `python recipes/vision.py`, about ten minutes of one core.

Writes docs/results/vision.json. Ten bases learn the digits 0 to 4, from seeds of their own, and are adapted to 5 to 9.
Five choose: each method is trained at every rate of its grid, and the rate is that of the best mean accuracy on the dev
split. The other five are trained at that rate, and only they see the test images, once. What was measured before is
read from --runs.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import torch

from minipeft.files import write_atomically
from minipeft.vision import (
    FIRST,
    SECOND,
    ConvLoRA,
    Full,
    NormAndBias,
    Probe,
    ResidualAdapter,
    ResNet,
    Split,
    Tuned,
    VisualPrompt,
    accuracy,
    digits,
    fit,
    matched,
)

TEST_SEEDS, DEV_SEEDS = range(5), range(5, 10)
STEPS, BASE_RATE = 200, 3e-3
METHODS: dict[str, tuple[Probe, tuple[float, ...]]] = {
    "border, no new head": (VisualPrompt(), (0.03, 0.1, 0.3, 1.0)),
    "linear probe": (Probe(), (0.03, 0.1, 0.3, 1.0)),
    "border and head": (VisualPrompt(), (0.01, 0.03, 0.1, 0.3)),
    "BatchNorm and head": (NormAndBias(), (0.01, 0.03, 0.1, 0.3)),
    "LoRA and head": (ConvLoRA(rank=1), (0.003, 0.01, 0.03, 0.1)),
    "residual adapters and head": (ResidualAdapter(), (0.001, 0.003, 0.01, 0.03)),
    "everything": (Full(), (0.0003, 0.001, 0.003, 0.01)),
}
OLD_HEAD = "border, no new head"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results/vision.json"))
    parser.add_argument("--runs", type=Path, default=Path("runs/vision.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.runs.parent.mkdir(parents=True, exist_ok=True)
    lines = options.runs.read_text(encoding="utf-8").splitlines() if options.runs.exists() else []
    done = {tuple(key): score for *key, score in map(json.loads, lines)}
    old, new = digits(FIRST), digits(SECOND)
    bases = {seed: ResNet(seed=seed) for seed in (*TEST_SEEDS, *DEV_SEEDS)}
    for seed, base in bases.items():
        fit(base, old["train"], STEPS, BASE_RATE, seed=seed)

    def score(split: str, name: str, rate: float, seed: int) -> float:
        """The accuracy after training, which happens once: what was measured is read."""
        if (split, name, rate, seed) not in done:
            tuned = attached(bases[seed], name, new["train"], seed)
            fit(tuned, new["train"], STEPS, rate, seed=seed)
            done[split, name, rate, seed] = round(accuracy(tuned, new[split]), 4)
            with options.runs.open("a", encoding="utf-8") as file:
                file.write(json.dumps([split, name, rate, seed, done[split, name, rate, seed]]) + "\n")
            print(split, name, rate, seed, done[split, name, rate, seed], flush=True)
        return done[split, name, rate, seed]

    rows = []
    for name, (_, rates) in METHODS.items():
        dev = {rate: [score("dev", name, rate, seed) for seed in DEV_SEEDS] for rate in rates}
        best = max(rates, key=lambda rate: sum(dev[rate]))
        test = [score("test", name, best, seed) for seed in TEST_SEEDS]
        trained = attached(bases[0], name, new["train"], 0).num_trainable()
        rows.append({"method": name, "trained": trained, "rate": best, "dev": dev, "test": test})
    tested = [bases[seed] for seed in TEST_SEEDS]
    labels = Counter(new["train"][1].tolist())
    often = labels.most_common(1)[0][0]
    found = {
        "dev_seeds": list(DEV_SEEDS),
        "test_seeds": list(TEST_SEEDS),
        "steps": STEPS,
        "base_rate": BASE_RATE,
        "base_numbers": sum(parameter.numel() for parameter in bases[0].parameters()),
        "base_on_old_test": [round(accuracy(base, old["test"]), 4) for base in tested],
        "majority": round(float((new["test"][1] == often).float().mean()), 4),
        "matched_only": [
            round(accuracy(Tuned(base, Probe(), matched(base, new["train"])), new["test"]), 4) for base in tested
        ],
        "methods": rows,
    }
    write_atomically(options.out, (json.dumps(found, indent=1) + "\n").encode())


def attached(base: ResNet, name: str, train: Split, seed: int) -> Tuned:
    """The method of this name on a base, with a new head or with outputs matched on the training images."""
    return Tuned(base, METHODS[name][0], matched(base, train) if name == OLD_HEAD else len(SECOND), seed=seed)


if __name__ == "__main__":
    main()
