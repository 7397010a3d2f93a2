"""What is in a checkpoint: which GPT-2 it is, the parameters of each part, its tensors."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace

from rich.markup import escape
from rich.table import Table

from minipeft.checkpoint import HEAD, MASK_BUFFER, PREFIX, SHIPPED
from minipeft.config import GPT2Config
from minipeft.downloads import PUBLIC
from minipeft.files import sha256_of
from minipeft.formats.hub import CONFIG_FILE, WEIGHTS_FILE, read_config
from minipeft.formats.stored import Stored, Weights

PARTS = {
    "token embeddings (and the tied head)": r"wte\.weight",
    "position embeddings": r"wpe\.weight",
    "attention": r"h\.\d+\.attn\..*",
    "MLPs": r"h\.\d+\.mlp\..*",
    "layer norms": r"(h\.\d+\.ln_\d|ln_f)\..*",
    "head of its own": r"lm_head\.weight",
}


def checkpoint_tables(weights: Weights, every: bool = False) -> list[Table]:
    """Parameters of each part, and tensors: one row for what all blocks have alike, or, with `every`, one for each."""
    weights = replace(weights, tensors={key: stored for key, stored in weights.tensors.items() if stored.in_file})
    return [_parts(weights), _tensors(weights.tensors, weights.config, every)]


def which_gpt2(weights: Weights) -> list[str]:
    """Lines: the shape, the known model that has it, whether it is the published file; then each file's SHA-256.

    Raises OSError if a file cannot be read.
    """
    c = weights.config
    hashes = {path: sha256_of(path) for path in weights.files}
    shape = f"GPT-2, {c.n_layer} layers, {c.n_head} heads, {c.n_embd} wide, {c.n_positions} positions"
    name = next((name for name, config in _known_shapes().items() if replace(c, dropout=0.0) == config), None)
    if name is None:
        shape += ": no known model's shape"
    elif _published_hash(name) in hashes.values():
        shape += f": {name}, the published file"
    else:
        shape += f": the shape of {name}"
    return [shape, *(f"{digest}  {path.name}  {path.stat().st_size:,} bytes" for path, digest in hashes.items())]


def _known_shapes() -> dict[str, GPT2Config]:
    shipped = {name: read_config(folder / CONFIG_FILE) for name, folder in SHIPPED.items()}
    return shipped | {name: model.config for name, model in PUBLIC.items()}


def _published_hash(name: str) -> str | None:
    return PUBLIC[name].sha256 if name in PUBLIC else sha256_of(SHIPPED[name] / WEIGHTS_FILE)


def _parts(weights: Weights) -> Table:
    table = Table(title="parameters of each part")
    table.add_column("part")
    table.add_column("parameters", justify="right")
    counts = dict.fromkeys(PARTS, 0)
    for key, stored in weights.tensors.items():
        if _use(key, weights.config) == "weight":
            part = next((part for part, names in PARTS.items() if re.fullmatch(names, _bare(key))), None)
            if part is not None:
                counts[part] += math.prod(stored.shape)
    for part, count in counts.items():
        if count:
            table.add_row(part, f"{count:,}")
    table.add_section()
    table.add_row("all", f"{sum(counts.values()):,}")
    return table


def _tensors(tensors: Mapping[str, Stored], config: GPT2Config, every: bool) -> Table:
    prefixed = sum(key.startswith(PREFIX) for key in tensors)
    table = Table(title=f"{len(tensors)} tensors" + (f" ({prefixed} with {PREFIX} in front)" if prefixed else ""))
    groups: dict[tuple[str, ...], list[int]] = {}
    for key, stored in tensors.items():
        name = _bare(key) if every else re.sub(r"^h\.\d+\.", "h.*.", _bare(key))
        kind = str(stored.dtype).removeprefix("torch.")
        row = (name, " × ".join(map(str, stored.shape)), kind, _use(key, config))
        groups.setdefault(row, []).append(math.prod(stored.shape) * stored.dtype.itemsize)
    for column in ("tensor", "", "shape", "type", "bytes", "use"):
        table.add_column(column, justify="right" if column in ("", "shape", "bytes") else "left", overflow="fold")
    for (name, shape, kind, use), sizes in groups.items():
        table.add_row(escape(name), f"{len(sizes)} ×", shape, kind, f"{sum(sizes):,}", use)
    return table


def _use(key: str, config: GPT2Config) -> str:
    """What becomes of a tensor when the file is loaded."""
    if MASK_BUFFER.fullmatch(_bare(key)):
        return "causal mask, left out"
    return "copy of wte, left out" if _bare(key) == HEAD and config.tied else "weight"


def _bare(key: str) -> str:
    return key.removeprefix(PREFIX)
