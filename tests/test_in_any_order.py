"""Whatever is done to adapters on one base, in whatever order: the base stays as it is, and each does what it did."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch import Tensor

import minipeft as mp
from tests.models import farthest, random_model, random_tokens
from tests.tuning import TINY_METHODS, train_steps

EXACT = 1e-5
"""fp32 sums in another order, on logits of about 1."""
TOKENS = random_tokens(2, 7)
MERGED = ("LoRA", "LoRA on q and v", "IA3", "BitFit", "full", "last block")
COMPILED = ("soft prompt", "prefix", "prefix by MLP", "P-tuning by LSTM", "P-tuning by MLP")
anyone = st.integers(min_value=0, max_value=10**6)


@dataclass
class Adapter:
    """An attached adapter, of what kind it is, and what it last wrote."""

    tuned: mp.Tuned
    kind: str
    logits: Tensor


class OneBase(RuleBasedStateMachine):
    """One base, the adapters on it, and the folders they were saved to."""

    def __init__(self) -> None:
        super().__init__()
        self.base = random_model()
        self.base.h[0].requires_grad_(False)  # so that all coming back trainable would be wrong
        self.before = {name: (p.detach().clone(), p.requires_grad) for name, p in self.base.named_parameters()}
        self.plain = self.base(TOKENS).detach()
        self.attached: list[Adapter] = []
        self.saved: list[tuple[Path, str, Tensor]] = []
        self.folder = tempfile.TemporaryDirectory()

    def teardown(self) -> None:
        self.folder.cleanup()

    def take(self, number: int) -> Adapter:
        return self.attached[number % len(self.attached)]

    def keep(self, tuned: mp.Tuned, kind: str, expected: Tensor | None = None) -> None:
        logits = tuned.eval()(TOKENS).detach()
        assert expected is None or farthest(logits, expected) < EXACT
        self.attached.append(Adapter(tuned, kind, logits))

    @rule(kind=st.sampled_from(list(TINY_METHODS)), seed=st.integers(0, 9))
    def attach(self, kind: str, seed: int) -> None:
        self.keep(mp.attach(self.base, TINY_METHODS[kind], seed), kind)

    @precondition(lambda self: self.attached)
    @rule(number=anyone, steps=st.integers(1, 3))
    def train(self, number: int, steps: int) -> None:
        one = self.take(number)
        train_steps(one.tuned.train(), steps, lr=0.05)
        moved = one.tuned.eval()(TOKENS).detach()
        # A compiled or loaded one, too, goes on learning; no step is without effect.
        assert not torch.equal(moved, one.logits)
        one.logits = moved

    @precondition(lambda self: self.attached)
    @rule(number=anyone)
    def save(self, number: int) -> None:
        one, folder = self.take(number), Path(self.folder.name) / str(number % 3)  # some write over others
        one.tuned.save(folder)
        self.saved = [entry for entry in self.saved if entry[0] != folder] + [(folder, one.kind, one.logits)]

    @precondition(lambda self: self.saved)
    @rule(number=anyone)
    def load(self, number: int) -> None:
        folder, kind, logits = self.saved[number % len(self.saved)]
        self.keep(mp.load(folder, self.base), kind, logits)

    @precondition(lambda self: self.attached)
    @rule(number=anyone, other=anyone)
    def disable(self, number: int, other: int) -> None:
        one, second = self.take(number), self.take(other)
        with one.tuned.disabled():
            assert torch.equal(one.tuned(TOKENS), self.plain)
            assert torch.equal(second.tuned(TOKENS), self.plain if second is one else second.logits)

    @precondition(lambda self: self.attached)
    @rule(number=anyone)
    def compile(self, number: int) -> None:
        one = self.take(number)
        if one.kind in COMPILED:
            self.keep(one.tuned.compile(), "prefix", one.logits)

    @precondition(lambda self: self.attached)
    @rule(number=anyone)
    def merge(self, number: int) -> None:
        one = self.take(number)
        if one.kind in MERGED:
            assert farthest(one.tuned.merge()(TOKENS), one.logits) < EXACT

    @precondition(lambda self: self.attached)
    @rule(number=anyone)
    def generate(self, number: int) -> None:
        one = self.take(number)
        row = TOKENS[0].tolist()
        # Two tokens as likely as each other may change places in sums of another order.
        best = one.logits[0, -1].topk(2).values
        if float(best[0] - best[1]) > EXACT:
            assert one.tuned.generate(row, 1)[len(row) :] in ([int(one.logits[0, -1].argmax())], [])

    @precondition(lambda self: self.attached)
    @rule(number=anyone)
    def detach(self, number: int) -> None:
        one = self.take(number)
        assert one.tuned.detach() is self.base
        self.attached.remove(one)

    @invariant()
    def the_base_is_the_same_to_the_bit(self) -> None:
        for name, parameter in self.base.named_parameters():
            value, trainable = self.before[name]
            assert torch.equal(parameter, value)
            assert parameter.grad is None
            assert parameter.requires_grad == (trainable and not self.attached)
        assert torch.equal(self.base(TOKENS), self.plain)

    @invariant()
    def every_adapter_writes_what_it_wrote(self) -> None:
        for one in self.attached:
            assert torch.equal(one.tuned(TOKENS), one.logits)


TestOneBase = OneBase.TestCase
TestOneBase.settings = settings(
    max_examples=25,
    stateful_step_count=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
