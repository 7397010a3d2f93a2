"""What is in a file of ours or of others, as tables."""

from minipeft.inspect.adapter import adapter_tables, nearest_tokens
from minipeft.inspect.attention import EXAMPLE, attention_mass, finding, mass_table
from minipeft.inspect.checkpoint import checkpoint_tables, which_gpt2

__all__ = [
    "EXAMPLE",
    "adapter_tables",
    "attention_mass",
    "checkpoint_tables",
    "finding",
    "mass_table",
    "nearest_tokens",
    "which_gpt2",
]
