"""The methods, and the one table of them."""

from minipeft.methods.base import Attachment, Doors, Method
from minipeft.methods.full import FullFinetuning
from minipeft.methods.hard_prompt import HardPrompt
from minipeft.methods.prefix import Prefix
from minipeft.methods.soft_prompt import SoftPrompt

METHODS: dict[str, type[Method]] = {method.name: method for method in (HardPrompt, SoftPrompt, Prefix, FullFinetuning)}
BY_PEFT_TYPE: dict[str, type[Method]] = {method.peft_type: method for method in METHODS.values()}

__all__ = [
    "BY_PEFT_TYPE",
    "METHODS",
    "Attachment",
    "Doors",
    "FullFinetuning",
    "HardPrompt",
    "Method",
    "Prefix",
    "SoftPrompt",
]
