"""What is in a file of ours or of others, as tables."""

from minipeft.inspect.adapter import adapter_tables, nearest_tokens
from minipeft.inspect.checkpoint import checkpoint_tables, which_gpt2

__all__ = ["adapter_tables", "checkpoint_tables", "nearest_tokens", "which_gpt2"]
