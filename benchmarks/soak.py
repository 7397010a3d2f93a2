"""Two thousand requests to a bank whose prompts come and go: no row is wrong, and memory does not grow.

    python benchmarks/soak.py                  # about ten minutes
    python benchmarks/soak.py --requests 200

Requests have one to eight rows of random tasks, texts, lengths, seeds and stops; now and then a prompt is added,
removed, renamed, or the whole bank is saved and loaded again. Every tenth request is written again row by row, each
behind its own prompt alone, and must be the same. The resident set is looked at after every hundred: it may be 5 %
above what it was after the first two hundred.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from resident import resident

import minipeft as mp

MOST_GROWTH = 0.05
PROMPTS = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model, draw = mp.GPT2.from_pretrained(options.model), random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(model, draw, Path(folder))
        sizes, started = [], time.monotonic()
        for number in range(1, options.requests + 1):
            soak.change()
            soak.request(checked=number % 10 == 0)
            if number % 100 == 0:
                sizes.append(resident("VmRSS"))
                growth = sizes[-1] / sizes[min(1, len(sizes) - 1)] - 1
                told = f"{number} requests, {soak.rows} rows, {soak.compared} compared, {len(soak.bank)} prompts"
                print(
                    f"{told}; {sizes[-1] / 1e6:.0f} MB ({growth:+.1%}), {time.monotonic() - started:.0f} s", flush=True
                )
    growth = max(sizes[1:]) / sizes[1] - 1 if len(sizes) > 2 else 0.0
    print(f"grown by {growth:.1%} at most; no wrong row among {soak.compared}")
    sys.exit(growth > MOST_GROWTH)


class Soak:
    """A bank, and what each of its prompts is by itself."""

    def __init__(self, model: mp.GPT2, draw: random.Random, folder: Path) -> None:
        self.model, self.draw, self.folder = model, draw, folder
        self.bank, self.alone = mp.PromptBank(model), dict[str, mp.Tuned]()
        self.made = self.rows = self.compared = 0
        while len(self.bank) < PROMPTS:
            self._add()

    def change(self) -> None:
        """Now and then another prompt, one fewer, another name, or the bank read from its file again."""
        what = self.draw.random()
        if what < 0.05 and len(self.bank) < 2 * PROMPTS:
            self._add()
        elif what < 0.10 and len(self.bank) > PROMPTS // 2:
            gone = self.draw.choice(list(self.bank))
            self.bank.remove(gone)
            self.alone.pop(gone)
        elif what < 0.12:
            old = self.draw.choice(list(self.bank))
            self.made += 1
            self.bank.rename(old, f"renamed {self.made}")
            self.alone[f"renamed {self.made}"] = self.alone.pop(old)
        elif what < 0.13:
            self.bank.save(self.folder)
            self.bank = mp.PromptBank.load(self.folder, self.model)

    def request(self, checked: bool) -> None:
        """Write some rows; if `checked`, each of them again by itself."""
        number = self.draw.randint(1, 8)
        tasks = [self.draw.choice([None, *self.bank]) for _ in range(number)]
        openings = ("The film", "It is", "Once upon a time", "I")
        texts = [self.draw.choice(openings) + " and" * self.draw.randint(0, 30) for _ in range(number)]
        samplings = [
            mp.Sampling(
                self.draw.randint(1, 40),
                temperature=self.draw.choice([0.0, 0.8]),
                top_k=50,
                seed=self.draw.randrange(2**31),
                stop=self.draw.choice([(), (".",), ("\n", " the ")]),
            )
            for _ in range(number)
        ]
        found = self.bank.generate(texts, tasks, sampling=samplings)
        self.rows += number
        if not checked:
            return
        for text, task, sampling, written in zip(texts, tasks, samplings, found, strict=True):
            expected = (
                mp.generate(self.model, text, sampling)
                if task is None
                else self.alone[task].generate_with(text, sampling)
            )
            if written != expected:
                sys.exit(f"a wrong row: {task!r} wrote {written!r}, alone it writes {expected!r}")
            self.compared += 1

    def _add(self) -> None:
        self.made += 1
        kinds = (mp.SoftPrompt(self.draw.randint(1, 40), "vocab"), mp.Prefix(self.draw.randint(1, 40), None, "vocab"))
        name = f"task {self.made}"
        self.alone[name] = mp.attach(self.model, self.draw.choice(kinds), seed=self.made)
        self.bank.add(name, self.alone[name])


if __name__ == "__main__":
    main()
