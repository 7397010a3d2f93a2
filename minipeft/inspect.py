"""What is in an adapter or a checkpoint, as tables."""

import torch
import torch.nn.functional as F
from rich.markup import escape
from rich.table import Table

from minipeft.gpt2 import GPT2
from minipeft.methods.soft_prompt import LearnedPrompt
from minipeft.tuned import Tuned

NEAREST = 5


def adapter_tables(tuned: Tuned) -> list[Table]:
    """The adapter's tensors and, for a soft prompt, the tokens nearest to each of its vectors."""
    table = Table(title=f"{tuned.method.name} ({tuned.method.peft_type}), {tuned.num_kept():,} numbers")
    for column in ("tensor", "shape", "mean", "standard deviation"):
        table.add_column(column, justify="left" if column == "tensor" else "right")
    for name, tensor in tuned.attachment.adapter_tensors().items():
        values = tensor.detach().float()
        table.add_row(name, str(tuple(tensor.shape)), f"{values.mean():.4f}", f"{values.std():.4f}")
    tables = [table]
    if isinstance(tuned.attachment, LearnedPrompt):
        tables.append(_nearest_table(tuned))
    return tables


def checkpoint_table(model: GPT2) -> Table:
    """How many parameters each part of a model has."""
    c = model.config
    table = Table(title=f"GPT-2, {c.n_layer} layers, {c.n_head} heads, {c.n_embd} wide, {c.n_positions} positions")
    table.add_column("part")
    table.add_column("parameters", justify="right")
    parts = {
        "token embeddings (and the tied head)": model.wte,
        "position embeddings": model.wpe,
        "attention": torch.nn.ModuleList(block.attn for block in model.blocks),
        "MLPs": torch.nn.ModuleList(block.mlp for block in model.blocks),
        "layer norms": torch.nn.ModuleList([*(n for b in model.blocks for n in (b.ln_1, b.ln_2)), model.ln_f]),
    }
    for name, part in parts.items():
        table.add_row(name, f"{sum(p.numel() for p in part.parameters()):,}")
    table.add_section()
    table.add_row("all", f"{model.num_parameters():,}")
    return table


@torch.no_grad()
def nearest_tokens(tuned: Tuned, count: int = NEAREST) -> list[list[tuple[str, float]]]:
    """For each vector of a soft prompt the `count` tokens whose embeddings have the highest cosine with it."""
    assert isinstance(tuned.attachment, LearnedPrompt)
    vectors = F.normalize(tuned.attachment.prompt_embeddings.float(), dim=-1)
    tokens = F.normalize(tuned.base.wte.weight.float(), dim=-1)
    cosines, ids = (vectors @ tokens.T).topk(count)
    tokenizer = tuned.base.tokenizer
    rows = zip(ids.tolist(), cosines.tolist(), strict=True)
    return [[(tokenizer.decode([i]), cosine) for i, cosine in zip(*row, strict=True)] for row in rows]


def _nearest_table(tuned: Tuned) -> Table:
    assert isinstance(tuned.attachment, LearnedPrompt)
    table = Table(title="nearest tokens (cosine)")
    table.add_column("vector", justify="right")
    table.add_column("length", justify="right")
    table.add_column("tokens")
    lengths = tuned.attachment.prompt_embeddings.detach().norm(dim=-1).tolist()
    for number, (length, near) in enumerate(zip(lengths, nearest_tokens(tuned), strict=True), start=1):
        tokens = "  ".join(f"{token!r} {cosine:.2f}" for token, cosine in near)
        table.add_row(str(number), f"{length:.2f}", escape(tokens))  # a token may look like rich's markup
    return table
