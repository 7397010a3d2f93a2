"""The methods, and the one table of them."""

from pathlib import Path
from typing import Any

from minipeft.files import CheckpointError
from minipeft.gpt2 import GPT2
from minipeft.methods.base import Attachment, Doors, Method
from minipeft.methods.bitfit import BitFit
from minipeft.methods.bottleneck import BottleneckAdapter
from minipeft.methods.full import FullFinetuning
from minipeft.methods.hard_prompt import HardPrompt
from minipeft.methods.ia3 import IA3
from minipeft.methods.llama_adapter import LlamaAdapter
from minipeft.methods.lora import LoRA
from minipeft.methods.p_tuning import PTuning
from minipeft.methods.prefix import Prefix
from minipeft.methods.soft_prompt import SoftPrompt
from minipeft.methods.stack import Stack

_ALL: tuple[type[Method], ...] = (
    HardPrompt,
    SoftPrompt,
    PTuning,
    Prefix,
    LoRA,
    IA3,
    BottleneckAdapter,
    LlamaAdapter,
    BitFit,
    FullFinetuning,
)
METHODS: dict[str, type[Method]] = {method.name: method for method in _ALL}
BY_PEFT_TYPE: dict[str, type[Method]] = {
    **{method.peft_type: method for method in _ALL},
    "LLAMA_ADAPTER": LlamaAdapter,
    "STACK": Stack,
}


def trains_a_copy(method: Method) -> bool:
    """Whether it, or a part of it, trains the model's own weights, in fp32."""
    parts = method.methods if isinstance(method, Stack) else (method,)
    return any(isinstance(part, FullFinetuning) for part in parts)


def method_of(config: dict[str, Any], model: GPT2, path: Path) -> Method:
    """The method that an `adapter_config.json` tells of, at `path`. Raises CheckpointError if it does not fit."""
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in BY_PEFT_TYPE:
        raise CheckpointError(f"{path}: peft_type is {kind!r}; minipeft reads {', '.join(sorted(BY_PEFT_TYPE))}.")
    try:
        return BY_PEFT_TYPE[kind].from_peft_config(config, model, path)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


__all__ = [
    "BY_PEFT_TYPE",
    "IA3",
    "METHODS",
    "Attachment",
    "BitFit",
    "BottleneckAdapter",
    "Doors",
    "FullFinetuning",
    "HardPrompt",
    "LlamaAdapter",
    "LoRA",
    "Method",
    "PTuning",
    "Prefix",
    "SoftPrompt",
    "Stack",
    "method_of",
    "trains_a_copy",
]
