"""Text prepared for pretraining: files of token ids, made once, opened at once and read without filling the memory."""

from minipeft.token_files.prepare import prepare_tokens
from minipeft.token_files.record import TokenFilesError
from minipeft.token_files.shards import Shards, TokenFiles, is_finished, is_prepared

__all__ = ["Shards", "TokenFiles", "TokenFilesError", "is_finished", "is_prepared", "prepare_tokens"]
