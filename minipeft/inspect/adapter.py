"""What is in an adapter, as tables."""

import torch
import torch.nn.functional as F
from rich.markup import escape
from rich.table import Table

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
