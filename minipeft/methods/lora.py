"""LoRA: a low-rank matrix beside a frozen one (the weights door).

    h = W x + b + (α / r) · B A x

A starts random and B at zero, so that a new LoRA changes nothing. Source: Hu et al. 2021, §4.1.
Trainable numbers: r·(in + out) for each linear layer; on q and v alone, as in the paper, 4·L·D·r.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from minipeft.files import CheckpointError
from minipeft.gpt2 import GPT2
from minipeft.methods.base import Attachment, check_count, check_dropout
from minipeft.methods.weights import LINEAR, chosen, linear, modules_named, peft_name, replace, shadow, shortened

THIRDS = ("attn.q", "attn.k", "attn.v")
"""Parts of the output of attn.c_attn that may have a low-rank matrix of their own."""

_PLAIN = {
    "use_dora": False,
    "use_qalora": False,
    "bias": "none",
    "lora_bias": False,
    "modules_to_save": None,
    "exclude_modules": None,
    "layer_replication": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "alora_invocation_tokens": None,
    "arrow_config": None,
    "velora_config": None,
    "use_bdlora": None,
    "kasa_config": None,
    "monteclora_config": None,
}
"""Options of PEFT that make another method of it, and their values in plain LoRA."""
_STARTS = ("gaussian", "orthogonal", "eva", "mica")
"""What `init_lora_weights` may be, besides true and false: the others change the frozen weights, too."""


@dataclass(frozen=True)
class LoRA:
    """A matrix of rank `rank`, times `alpha` / `rank`, beside each of `targets`.

    targets: of "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj" in all blocks; "h.3.attn.c_attn" is one alone;
    "attn.q", "attn.k" and "attn.v" are thirds of attn.c_attn: ("attn.q", "attn.v") is the paper's form.
    dropout: on the input of A, while training. special: another (rank, alpha) for some of the targets.
    """

    rank: int = 8
    alpha: int | float = 16
    targets: tuple[str, ...] = ("attn.c_attn",)
    dropout: int | float = 0.0
    special: Mapping[str, tuple[int, int | float]] = field(default_factory=dict)

    name: ClassVar[str] = "lora"
    peft_type: ClassVar[str] = "LORA"

    def __post_init__(self) -> None:
        for rank, _ in ((self.rank, self.alpha), *self.special.values()):
            check_count("rank", rank)
        check_dropout(self.dropout)
        if not self.targets:
            raise ValueError(f"targets is empty; name some of {', '.join((*LINEAR, *THIRDS))}.")

    def attach_to(self, model: GPT2, generator: torch.Generator | None) -> tuple[GPT2, "LowRankMatrices"]:
        """See `Method.attach_to`: the model to run shares every weight with the base."""
        runs, found = shadow(model), LowRankMatrices()
        for (layer, name), thirds in self._where(model).items():
            beside = BesideLinear(linear(runs, layer, name))
            rank, alpha = self._rank_and_alpha(layer, name)
            for third in thirds:
                ins, outs = beside.frozen.in_features, beside.frozen.out_features // (3 if third else 1)
                beside.add(third, LowRank(ins, outs, rank, alpha / rank, self.dropout, generator))
            replace(runs, layer, name, beside)
            found.add(layer, name, beside)
        return runs, found

    def places(self, model: GPT2) -> set[str]:
        """See `Method.places`."""
        return {f"h.{layer}.{name}" for layer, name in self._where(model)}

    def peft_config(self, model: GPT2) -> dict[str, Any]:
        """See `Method.peft_config`. Thirds of c_attn are told as what they are together: one matrix of higher rank."""
        where = self._where(model)
        told = {}
        for (layer, name), thirds in where.items():
            rank, alpha = self._rank_and_alpha(layer, name)
            told[f"h.{layer}.{name}"] = (rank * len(thirds), alpha * len(thirds))
        rank, alpha = next(iter(told.values()))
        return {
            "r": rank,
            "lora_alpha": alpha,
            "lora_dropout": self.dropout,
            "target_modules": list(shortened(list(where), model)),
            "fan_in_fan_out": True,
            "bias": "none",
            "init_lora_weights": True,
            "use_rslora": False,
            "use_dora": False,
            "modules_to_save": None,
            "rank_pattern": {re.escape(name): r for name, (r, _) in told.items() if r != rank},
            "alpha_pattern": {re.escape(name): a for name, (_, a) in told.items() if a != alpha},
        }

    @classmethod
    def from_peft_config(cls, config: dict[str, Any], model: GPT2, path: Path) -> "LoRA":
        """See `Method.from_peft_config`. What older versions of PEFT leave out has PEFT's defaults."""
        for key, plain in _PLAIN.items():
            if config.get(key) not in (plain, None, False, [], {}):
                raise CheckpointError(f"{path}: {key} is {config[key]!r}; minipeft reads LoRA without that.")
        start = config.get("init_lora_weights")
        if not (start is None or isinstance(start, bool) or start in _STARTS):
            raise CheckpointError(
                f"{path}: init_lora_weights is {start!r}, which changes the frozen weights, too; save it with peft's "
                "path_initial_model_for_weight_conversion, which makes plain LoRA of it."
            )
        rank, alpha = _number(config, "r", 8, path), _number(config, "lora_alpha", 8, path)
        names = modules_named(config.get("target_modules") or ["c_attn"], model)
        names = [name for name in names if _is_transformed(name, config.get("layers_to_transform"), path)]
        special = {}
        for name in names:
            own = int(_of_pattern(config, "rank_pattern", name, rank, path))
            scaled = _of_pattern(config, "alpha_pattern", name, alpha, path)
            if config.get("use_rslora"):  # scaled by α / √r, Kalajdzievski 2023
                scaled *= math.sqrt(own)
            if (own, scaled) != (rank, alpha):
                special[name] = (own, scaled)
        targets = shortened(chosen(model, names), model)
        return cls(int(rank), alpha, targets, float(_number(config, "lora_dropout", 0.0, path)), special)

    def _where(self, model: GPT2) -> dict[tuple[int, str], list[str]]:
        """Each linear layer, and which thirds of it have a matrix: "" is the whole of it."""
        where: dict[tuple[int, str], list[str]] = {}
        for layer, name in chosen(model, self.targets, (*LINEAR, *THIRDS)):
            third = name if name in THIRDS else ""
            where.setdefault((layer, "attn.c_attn" if third else name), []).append(third)
        for (layer, name), thirds in where.items():
            if "" in thirds and len(thirds) > 1:
                raise ValueError(f"h.{layer}.{name} is a target as a whole and in thirds; choose one of them.")
        wholes = {name for _, name in where} | {f"h.{layer}.{name}" for layer, name in where}
        if odd := [name for name in self.special if name not in wholes]:
            raise ValueError(f"special names {odd[0]!r}, which is none of the layers {', '.join(sorted(wholes))}.")
        return where

    def _rank_and_alpha(self, layer: int, name: str) -> tuple[int, int | float]:
        return self.special.get(f"h.{layer}.{name}", self.special.get(name, (self.rank, self.alpha)))


class LowRank(nn.Module):
    """x -> scale · B A x, with dropout on x while training."""

    def __init__(
        self,
        ins: int,
        outs: int,
        rank: int,
        scale: int | float,
        dropout: int | float,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        bound = 1 / math.sqrt(ins)  # Kaiming uniform with a = √5, as Linear's own
        self.A = nn.Parameter((2 * torch.rand(rank, ins, generator=generator) - 1) * bound)
        self.B = nn.Parameter(torch.zeros(outs, rank))
        self.scale, self.dropout = scale, dropout

    def forward(self, x: Float[Tensor, "B T I"]) -> Float[Tensor, "B T O"]:
        x = F.dropout(x, self.dropout, self.training)
        return F.linear(F.linear(x, self.A.to(x.dtype)), self.B.to(x.dtype)) * self.scale


class BesideLinear(nn.Module):
    """A frozen linear layer with one low-rank matrix beside it, or one beside each of some thirds of its output."""

    def __init__(self, frozen: nn.Linear) -> None:
        super().__init__()
        self.frozen, self.matrices = frozen, nn.ModuleDict()

    def add(self, third: str, matrix: LowRank) -> None:
        """A matrix for the whole output (""), or for a third of it."""
        self.matrices[third[-1:] or "all"] = matrix

    def forward(self, x: Float[Tensor, "B T I"]) -> Float[Tensor, "B T O"]:
        y = self.frozen(x)
        if "all" in self.matrices:
            return y + self.matrices["all"](x)
        thirds = zip("qkv", y.chunk(3, dim=-1), strict=True)
        return torch.cat([y + self.matrices[name](x) if name in self.matrices else y for name, y in thirds], dim=-1)

    def whole(self) -> tuple[Float[Tensor, "r I"], Float[Tensor, "O r"], float]:
        """A, B and scale of one matrix that does the same."""
        named = {name: cast(LowRank, matrix) for name, matrix in self.matrices.items()}
        if "all" in named:
            return named["all"].A, named["all"].B, named["all"].scale
        there = [name for name in "qkv" if name in named]
        A = torch.cat([named[name].A for name in there])  # [n r, I]; every third has the same rank and scale
        B = A.new_zeros(3, self.frozen.out_features // 3, len(there), A.shape[0] // len(there))
        for place, name in enumerate(there):
            B["qkv".index(name), :, place] = named[name].B
        return A, B.flatten(2).flatten(0, 1), named[there[0]].scale


class LowRankMatrices(Attachment):
    """All low-rank matrices, by the layer that they stand beside."""

    def __init__(self) -> None:
        super().__init__()
        self.matrices = nn.ModuleDict()
        self._beside: dict[tuple[int, str], BesideLinear] = {}  # not registered: the frozen weights are not ours

    def add(self, layer: int, name: str, beside: BesideLinear) -> None:
        """Take over what stands beside one linear layer."""
        self._beside[layer, name] = beside
        self.matrices[f"h_{layer}_{name.replace('.', '_')}"] = beside.matrices

    def adapter_tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for (layer, name), beside in self._beside.items():
            A, B, _ = beside.whole()
            stem = peft_name(layer, name)
            tensors |= {f"{stem}.lora_A.weight": A, f"{stem}.lora_B.weight": B}
        return tensors

    @torch.no_grad()
    def merge_into(self, model: GPT2) -> None:
        for (layer, name), beside in self._beside.items():
            A, B, scale = beside.whole()
            weight = linear(model, layer, name).weight
            weight.copy_(weight.float() + scale * (B @ A))


def _number(config: dict[str, Any], key: str, default: int | float, path: Path) -> int | float:
    value = config.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1e6:
        raise CheckpointError(f"{path}: {key} is {value!r}; it must be a number.")
    return value


def _of_pattern(config: dict[str, Any], key: str, name: str, default: int | float, path: Path) -> int | float:
    """What `rank_pattern` or `alpha_pattern` says of a layer: the first pattern that its name ends in."""
    patterns = config.get(key) or {}
    if not isinstance(patterns, dict):
        raise CheckpointError(f"{path}: {key} is {patterns!r}; it must map names to numbers.")
    try:
        fitting = [pattern for pattern in patterns if re.match(rf"(.*\.)?({pattern})$", f"transformer.{name}")]
    except (re.error, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path}: {key} has what is no regular expression ({error}).") from None
    return _number(patterns, fitting[0], default, path) if fitting else default


def _is_transformed(name: str, layers: Any, path: Path) -> bool:
    """Whether `layers_to_transform` (a number, numbers, or null for all) holds this layer."""
    wanted = [layers] if isinstance(layers, int) else layers
    if wanted is not None and not (isinstance(wanted, list) and all(isinstance(layer, int) for layer in wanted)):
        raise CheckpointError(f"{path}: layers_to_transform is {layers!r}; it must be a number or a list of numbers.")
    return not wanted or int(name.split(".")[1]) in wanted
