"""The methods, and the one table of them."""

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
BY_PEFT_TYPE: dict[str, type[Method]] = {method.peft_type: method for method in _ALL} | {"LLAMA_ADAPTER": LlamaAdapter}

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
]
