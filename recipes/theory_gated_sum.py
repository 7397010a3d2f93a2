"""Attention with a prefix is a gated sum of two attentions: checked in every layer and head of the nano model.

    python recipes/theory_gated_sum.py        # seconds; writes docs/results/theory_gated_sum.json and a picture

    softmax(q [P_k; K]ᵀ) [P_v; V] = (1 − λ) · softmax(q Kᵀ) V + λ · softmax(q P_kᵀ) P_v

λ is the share of the softmax that falls on the prefix; every score is divided by √Dh. The left side is what the model
computes; the right side is made here, out of the queries, keys and values alone.

Source: He et al. 2022, eq. 5 to 7.
"""

import argparse
from pathlib import Path

import torch
from attended import Attended, attended, causal_scores
from jaxtyping import Float, Int
from reading import beginnings
from theory_pictures import draw_gated_sum
from torch import Tensor

import minipeft as mp
from minipeft.files import write_json
from minipeft.inspect.attention import EXAMPLE
from minipeft.tuned import find_adapter

TEXTS, LENGTH = 64, 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = mp.GPT2.from_pretrained("nano")
    shown = model.tokenizer.encode(EXAMPLE)
    tokens = beginnings(model, "test", TEXTS, LENGTH)
    found = {"texts": TEXTS, "tokens_each": LENGTH, "prefixes": {}}
    for name, tuned in prefixes(model).items():
        errors, gates = zip(*gated_sums(tuned, tokens), strict=True)
        found["prefixes"][name] = {
            "length": tuned.base.config.n_positions - tuned.room,
            "largest_error_by_layer": [float(error.abs().max()) for error in errors],
            "mean_lambda_by_layer": [round(float(gate.mean()), 4) for gate in gates],
            "lambda_of_heads": [[round(float(head), 4) for head in gate.mean(dim=(0, 2))] for gate in gates],
        }
    write_json(options.out / "results" / "theory_gated_sum.json", found)
    tuned = prefixes(model)["shakespeare"]
    gates = torch.cat([gate[0] for _, gate in gated_sums(tuned, torch.tensor([shown]))])  # [L H, T]
    words = [model.tokenizer.decode([token]) for token in shown]
    draw_gated_sum(gates, words, model.config.n_head, found, options.out / "theory_gated_sum.png")


def prefixes(model: mp.GPT2) -> dict[str, mp.Tuned]:
    """The three that ship, and one that nobody trained: numbers as large as keys and values of text have."""
    found = {name: mp.load(find_adapter(name), model).eval() for name in ("positive", "negative", "shakespeare")}
    found["random"] = mp.attach(model, mp.Prefix(length=10, reparam=None)).eval()
    with torch.no_grad():
        for parameter in found["random"].trainable_parameters().values():
            parameter.mul_(50)  # drawn with a standard deviation of 0.02
    return found


@torch.no_grad()
def gated_sums(tuned: mp.Tuned, tokens: Int[Tensor, "B T"]) -> list[tuple[Tensor, Tensor]]:
    """By layer: the model's heads minus the gated sum [B, H, T, Dh], and λ [B, H, T]."""
    memory = tuned.doors().memory
    if memory is None:
        raise ValueError(f"{tuned.method.name} is no prefix.")
    with attended(tuned.model) as layers:
        tuned(tokens)
    found = []
    for number, layer in enumerate(layers):
        prefix_k, prefix_v = (part.expand(len(tokens), -1, -1, -1) for part in memory.of(number))
        gate = mass_on_prefix(layer, prefix_k)
        of_prefix = (layer.q @ prefix_k.mT / layer.q.shape[-1] ** 0.5).softmax(dim=-1) @ prefix_v
        of_text = causal_scores(layer.q, layer.k).softmax(dim=-1) @ layer.v
        gated = (1 - gate[..., None]) * of_text + gate[..., None] * of_prefix
        found.append((layer.heads - gated, gate))
    return found


def mass_on_prefix(layer: Attended, prefix_k: Float[Tensor, "B H P Dh"]) -> Float[Tensor, "B H T"]:
    """λ = Σ exp(q P_kᵀ) / (Σ exp(q P_kᵀ) + Σ exp(q Kᵀ)), as the sigmoid of a difference of logarithms."""
    on_prefix = (layer.q @ prefix_k.mT / layer.q.shape[-1] ** 0.5).logsumexp(dim=-1)
    on_text = causal_scores(layer.q, layer.k).logsumexp(dim=-1)
    return torch.sigmoid(on_prefix - on_text)


if __name__ == "__main__":
    main()
