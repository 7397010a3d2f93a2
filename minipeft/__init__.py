"""minipeft: a GPT-2 to read in an evening, and the ways to adapt it with few parameters."""

from minipeft.bank import PromptBank
from minipeft.config import GPT2Config
from minipeft.files import CheckpointError
from minipeft.generate import generate, stream_text, write
from minipeft.gpt2 import GPT2
from minipeft.methods import (
    IA3,
    BitFit,
    BottleneckAdapter,
    FullFinetuning,
    HardPrompt,
    LlamaAdapter,
    LoRA,
    Prefix,
    PTuning,
    SoftPrompt,
    Stack,
)
from minipeft.sampling import Sampling
from minipeft.tokenizer import Tokenizer
from minipeft.tuned import Tuned, attach, load

__all__ = [
    "GPT2",
    "IA3",
    "BitFit",
    "BottleneckAdapter",
    "CheckpointError",
    "FullFinetuning",
    "GPT2Config",
    "HardPrompt",
    "LlamaAdapter",
    "LoRA",
    "PTuning",
    "Prefix",
    "PromptBank",
    "Sampling",
    "SoftPrompt",
    "Stack",
    "Tokenizer",
    "Tuned",
    "attach",
    "generate",
    "load",
    "stream_text",
    "write",
]
