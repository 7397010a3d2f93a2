"""`torch.compile` around any tuned model: the same numbers, the same gradients, in one graph.

It runs in a process of its own, since it cannot look through the run-time checks of shapes that these tests switch on.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import minipeft as mp
from tests.models import farthest, ragged, random_model, shake
from tests.tuning import TINY_METHODS, labelled_batch

EXACT = 1e-5
"""fp32 sums in another order, on losses, logits and gradients of at most about 1."""
TO_MACHINE_CODE = ["soft prompt", "prefix by MLP", "LoRA"]
"""One that works on tokens, one on keys, one on weights: each takes twenty seconds of a C++ compiler."""
VARIANTS = [
    *("prefix", "P-tuning by MLP", "LoRA on q and v", "adapters of Lin", "LLaMA-Adapter of PEFT", "full"),
    "soft prompt on a LoRA",
]
"""What has code in common with another kind; a test that takes long looks at these, too."""
ONE_GRAPH = [kind for kind in TINY_METHODS if "LSTM" not in kind]  # torch leaves LSTMs out of its graphs
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler for TorchInductor: g++")


def differences(kind: str, backend: str) -> dict[str, float]:
    """How far compiled and plain are apart in the loss, its gradients, and the logits of a padded batch.

    Compiled to machine code once as a whole, and once block by block, as `minipeft tune --compile` does.
    """
    torch._dynamo.reset()
    tuned = mp.attach(random_model(), TINY_METHODS[kind])
    shake(tuned.attachment, seed=3)
    losses, gradients = [], []
    for loss in (tuned.loss, torch.compile(tuned.loss, backend=backend)):
        losses.append(loss(*labelled_batch()))
        gradients.append(torch.autograd.grad(losses[-1], list(tuned.trainable_parameters().values())))
    batch = ragged([9, 3, 6], "left")
    compiled = torch.compile(tuned.eval(), backend=backend, fullgraph=kind in ONE_GRAPH)
    logits = farthest(compiled(batch.tokens, batch.mask), tuned(batch.tokens, batch.mask))
    if backend == "inductor":
        tuned.train().model.use_compile()
        losses.append(tuned.loss(*labelled_batch()))
        gradients.append(torch.autograd.grad(losses[-1], list(tuned.trainable_parameters().values())))
    return {
        "loss": max(farthest(losses[0], other) for other in losses),
        "gradients": max(farthest(*pair) for others in gradients for pair in zip(gradients[0], others, strict=True)),
        "least gradient": min(float(plain.abs().max()) for plain in gradients[0]),
        "logits": logits,
    }


def difference_of_wide_blocks() -> float:
    """The same without a gradient, of a block whose products are large enough for oneDNN where that is quicker."""
    model = mp.GPT2(mp.GPT2Config(vocab_size=300, n_positions=16, n_embd=256, n_layer=1, n_head=4), seed=0).eval()
    tokens = torch.arange(2 * 9).view(2, 9)
    with torch.no_grad():
        plain = model.use_kernels()(tokens)
        return farthest(model.use_compile()(tokens), plain)


def measured(backend: str, kinds: list[str]) -> dict[str, Any]:
    """What `differences` finds, by kind; of "wide" what `difference_of_wide_blocks` does."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.test_torch_compile", backend, *kinds]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize(
    ("backend", "kinds"),
    [
        pytest.param("aot_eager", [kind for kind in TINY_METHODS if kind not in VARIANTS], id="traced"),
        pytest.param("aot_eager", VARIANTS, id="traced, variants", marks=pytest.mark.long),
        pytest.param("inductor", TO_MACHINE_CODE, id="inductor", marks=[needs_compiler, pytest.mark.long]),
    ],
)
def test_compiled_by_torch_it_computes_the_same(backend: str, kinds: list[str]) -> None:
    found_by_kind = measured(backend, kinds)
    assert list(found_by_kind) == kinds
    for kind, found in found_by_kind.items():
        assert found["loss"] < EXACT, kind
        assert found["gradients"] < EXACT < found["least gradient"], kind
        assert found["logits"] < EXACT, kind


@needs_compiler
@pytest.mark.long
def test_wide_blocks_compute_the_same() -> None:
    assert measured("wide", [])["logits"] < EXACT


if __name__ == "__main__":
    torch.manual_seed(0)
    if sys.argv[1] == "wide":
        print(json.dumps({"logits": difference_of_wide_blocks()}))
        sys.exit()
    print(json.dumps({kind: differences(kind, sys.argv[1]) for kind in sys.argv[2:]}))
