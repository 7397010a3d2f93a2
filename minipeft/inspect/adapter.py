"""What is in an adapter, as tables: its tensors, and what they do to the model."""

import math
import re
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from minipeft.gpt2 import GPT2
from minipeft.methods.bottleneck import Bottleneck
from minipeft.methods.llama_adapter import GatedAttention
from minipeft.tuned import Tuned

NEAREST = 5
THEIR_PREFIX = "base_model.model.transformer."
"""What PEFT puts before every name."""


def adapter_tables(tuned: Tuned, every: bool = False) -> list[Table]:
    """The adapter's tensors, one row for what all blocks have alike or, with `every`, one for each; then what they do:

    the tokens nearest to a prompt's vectors, the lengths of a prefix's keys and values, how far weights are moved, how
    far gates are open, what an adapter adds.
    """
    tables = [_tensors(tuned, every)]
    with torch.no_grad():
        doors = tuned.doors()
        if doors.prompt is not None:
            tables.append(_nearest(tuned, doors.prompt[0]))
        if doors.memory is not None:
            tables.append(_lengths(doors.memory.keys[:, 0], doors.memory.values[:, 0]))
        tables += _moved(tuned)
        tables += _gates(tuned.model)
        tables += _added(tuned.model)
    return tables


@torch.no_grad()
def nearest_tokens(tuned: Tuned, count: int = NEAREST) -> list[list[tuple[str, float]]]:
    """For each vector of a prompt the `count` tokens whose embeddings have the highest cosine with it.

    Raises ValueError if the method has no prompt.
    """
    prompt = tuned.doors().prompt
    if prompt is None:
        raise ValueError(f"{tuned.method.name} has no vectors before the text that tokens could be near to.")
    vectors = F.normalize(prompt[0].float(), dim=-1)
    tokens = F.normalize(tuned.base.wte.weight.float(), dim=-1)
    cosines, ids = (vectors @ tokens.T).topk(count)
    tokenizer = tuned.base.tokenizer
    rows = zip(ids.tolist(), cosines.tolist(), strict=True)
    return [[(tokenizer.decode([i]), cosine) for i, cosine in zip(*row, strict=True)] for row in rows]


def _tensors(tuned: Tuned, every: bool) -> Table:
    groups: dict[tuple[str, ...], list[Tensor]] = {}
    for name, tensor in tuned.attachment.adapter_tensors().items():
        bare = name.replace(THEIR_PREFIX, "")
        shown = bare if every else re.sub(r"\bh\.\d+\.", "h.*.", bare)
        groups.setdefault((shown, str(tuple(tensor.shape))), []).append(tensor.detach().float().flatten())
    kind = tuned.method.peft_config(tuned.base).get("peft_type", tuned.method.peft_type)
    table = Table(title=f"{tuned.method.name} ({kind}), {tuned.num_kept():,} numbers")
    for column in ("tensor", "", "shape", "mean", "standard deviation"):
        table.add_column(column, justify="left" if column == "tensor" else "right", overflow="fold")
    for (name, shape), tensors in groups.items():
        values = torch.cat(tensors)
        deviation = float(values.std()) if len(values) > 1 else 0.0
        table.add_row(escape(name), f"{len(tensors)} ×", shape, f"{values.mean():.4f}", f"{deviation:.4f}")
    return table


def _nearest(tuned: Tuned, prompt: Float[Tensor, "P D"]) -> Table:
    usual = float(tuned.base.wte.weight.float().norm(dim=-1).mean())
    table = Table(title=f"nearest tokens (cosine); a token's embedding has the length {usual:.2f} on average")
    table.add_column("vector", justify="right")
    table.add_column("length", justify="right")
    table.add_column("tokens")
    lengths = prompt.norm(dim=-1).tolist()
    for number, (length, near) in enumerate(zip(lengths, nearest_tokens(tuned), strict=True), start=1):
        tokens = "  ".join(f"{token!r} {cosine:.2f}" for token, cosine in near)
        table.add_row(str(number), f"{length:.2f}", escape(tokens))  # a token may look like rich's markup
    return table


def _lengths(keys: Float[Tensor, "L H P Dh"], values: Float[Tensor, "L H P Dh"]) -> Table:
    rows = [
        [f"h.{layer}", f"{k.norm(dim=-1).mean():.2f}", f"{v.norm(dim=-1).mean():.2f}"]
        for layer, (k, v) in enumerate(zip(keys.float(), values.float(), strict=True))
    ]
    return _table("mean length of a head's keys and values", ["layer", "keys", "values"], rows)


def _moved(tuned: Tuned) -> Iterator[Table]:
    """How far each weight is from the base's: ‖W' − W‖ / ‖W‖, for methods that are a change of weights."""
    if tuned.attachment.unmergeable():
        return
    merged = tuned.merge()
    changes: dict[str, dict[str, float]] = {}
    for (name, before), after in zip(tuned.base.named_parameters(), merged.parameters(), strict=True):
        one = re.match(r"(h\.\d+)\.(.+)", name)
        place, weight = (one[1], f"h.*.{one[2]}") if one else ("", name)
        changes.setdefault(weight, {})[place] = _relative(before.float(), after.float())
    rows = []
    for weight, moved in changes.items():
        least, most = min(moved, key=lambda place: moved[place]), max(moved, key=lambda place: moved[place])
        if moved[most]:
            mean = sum(moved.values()) / len(moved)
            rows.append([weight, f"{mean:.1%}", f"{moved[least]:.1%} {least}", f"{moved[most]:.1%} {most}"])
    if rows:
        yield _table("how far weights are moved, of their own length", ["weight", "mean", "least", "most"], rows)


def _relative(before: Tensor, after: Tensor) -> float:
    moved, length = float((after - before).norm()), float(before.norm())
    return moved / length if length else math.inf if moved else 0.0


def _gates(model: GPT2) -> Iterator[Table]:
    rows = []
    for layer, block in enumerate(model.blocks):
        if isinstance(block.attn, GatedAttention):
            gates = block.attn.gate if block.attn.after else block.attn.gate.tanh()
            rows.append([f"h.{layer}", *(f"{found:.3f}" for found in (gates.mean(), gates.min(), gates.max()))])
    if rows:
        yield _table("how far gates are open (closed: 0)", ["layer", "mean", "least", "most"], rows)


def _added(model: GPT2) -> Iterator[Table]:
    rows = [
        [re.sub(r"\.adapter$|(?<=c_proj)\.1$", "", name), f"{adapter.W1.norm():.2f}", f"{adapter.W2.norm():.2f}"]
        for name, adapter in model.named_modules()
        if isinstance(adapter, Bottleneck)
    ]
    if rows:
        yield _table("adapters; with W₂ = 0 one adds nothing", ["behind", "length of W₁", "length of W₂"], rows)


def _table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    table = Table(title=title)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    for row in rows:
        table.add_row(*row)
    return table
