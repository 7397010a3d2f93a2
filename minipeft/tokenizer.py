"""GPT-2's byte-pair encoding, run by tiktoken from a vocabulary on disk: no network, ever."""

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import tiktoken
from jaxtyping import UInt32

VOCAB_FILE = Path(__file__).parent / "assets" / "vocab" / "vocab.bpe"
VOCAB_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
N_BYTES, N_MERGES = 256, 50_000
END_OF_TEXT = "<|endoftext|>"

# GPT-2 cuts text into words before merging: contractions, letters, digits, other signs, white space.
# The possessive `++` only saves backtracking; the pieces are those of OpenAI's pattern.
WORD_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


class Tokenizer:
    """Text to GPT-2 token ids and back, with all or the first `merges` of GPT-2's 50,000 merges."""

    def __init__(self, encoding: tiktoken.Encoding) -> None:
        self._encoding = encoding
        self.eot: int = encoding.eot_token
        self.vocab_size: int = encoding.n_vocab

    @classmethod
    def gpt2(cls, merges: int = N_MERGES) -> "Tokenizer":
        """The GPT-2 tokenizer, or the valid smaller one that its first `merges` merges make.

        A smaller vocabulary holds 256 bytes, `merges` merged tokens and `<|endoftext|>`, which comes last;
        every id but that last one is GPT-2's own.

        Raises ValueError if `merges` is not in 0…50,000 or the vocabulary file was altered.
        Source: Radford et al. 2019, §2.2; Sennrich et al. 2016, algorithm 1.
        """
        if not 0 <= merges <= N_MERGES:
            raise ValueError(f"merges must be between 0 and {N_MERGES:,}, got {merges:,}.")
        ranks = dict(list(_ranks().items())[: N_BYTES + merges])
        name = "gpt2" if merges == N_MERGES else f"gpt2-{merges}-merges"
        specials = {END_OF_TEXT: N_BYTES + merges}
        return cls(tiktoken.Encoding(name, pat_str=WORD_PATTERN, mergeable_ranks=ranks, special_tokens=specials))

    @classmethod
    def for_vocab_size(cls, vocab_size: int) -> "Tokenizer":
        """The tokenizer whose ids fill an embedding of `vocab_size` rows. Raises ValueError if there is none."""
        merges = vocab_size - N_BYTES - 1
        if not 0 <= merges <= N_MERGES:
            raise ValueError(
                f"no GPT-2 vocabulary has {vocab_size:,} tokens (it has 256 bytes + merges + 1, so 257 to 50,257)."
            )
        return _with_merges(merges)

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Token ids of `text`. `<|endoftext|>` inside it is plain text unless `allow_special`."""
        if allow_special:
            return self._encoding.encode(text, allowed_special="all")
        return self._encoding.encode_ordinary(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, encoded in parallel."""
        return self._encoding.encode_ordinary_batch(list(texts))

    def encode_to_array(self, text: str) -> UInt32[np.ndarray, "N"]:
        """Token ids of `text`, without a Python number for each; other threads run meanwhile."""
        return self._encoding.encode_to_numpy(text, disallowed_special=())

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD. Raises ValueError on an id that there is not."""
        ids = [int(i) for i in ids]
        outside = [i for i in ids if not 0 <= i < self.vocab_size]
        if outside:
            raise ValueError(f"token id {outside[0]} is outside this vocabulary of {self.vocab_size:,} tokens.")
        return self._encoding.decode(ids)

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token."""
        return self._encoding.decode_single_token_bytes(token)

    def fingerprint(self) -> str:
        """A short hash of the vocabulary and the pattern of words, to tell whether two tokenizers are the same."""
        digest = hashlib.sha256(self._encoding._pat_str.encode("utf-8"))
        for token in range(self.vocab_size):
            digest.update(self.token_bytes(token) + b"\0%d" % token)
        return digest.hexdigest()[:16]

    def __repr__(self) -> str:
        return f"Tokenizer({self._encoding.name!r}, vocab_size={self.vocab_size:,})"


@lru_cache(maxsize=8)
def _with_merges(merges: int) -> Tokenizer:
    """Made once: tiktoken takes 50 ms for GPT-2's whole vocabulary."""
    return Tokenizer.gpt2(merges)


@lru_cache(maxsize=1)
def _ranks() -> dict[bytes, int]:
    """Token bytes -> id, in id order: the 256 bytes, then one token for each line of vocab.bpe."""
    data = VOCAB_FILE.read_bytes()
    if hashlib.sha256(data).hexdigest() != VOCAB_SHA256:
        raise ValueError(f"{VOCAB_FILE} is not GPT-2's vocabulary (its SHA-256 differs); reinstall minipeft.")
    byte_of = {char: byte for byte, char in _printable_bytes().items()}
    ranks = {bytes([byte]): rank for rank, byte in enumerate(_printable_bytes())}
    for line in data.decode("utf-8").splitlines()[1:]:
        left, right = line.split(" ")
        ranks[bytes(byte_of[char] for char in left + right)] = len(ranks)
    return ranks


def _printable_bytes() -> dict[int, str]:
    """Byte -> the visible character that vocab.bpe writes for it, in the order of GPT-2's first 256 ids.

    Bytes that print stand for themselves; the others (white space, control, undefined) follow as U+0100, U+0101, …
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(N_BYTES) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
