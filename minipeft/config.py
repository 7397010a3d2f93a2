"""The shape of a GPT-2."""

from dataclasses import dataclass

GPT2_TOKENS, PADDED = 50_257, 128
"""GPT-2's vocabulary, and to the next multiple of what others fill it up with rows that stand for nothing: nanoGPT and
llm.c have 50,304, which a GPU multiplies faster."""
LARGEST = 10_000_000
"""No number of a model's shape is larger; beyond it, sizes in bytes would overflow."""


@dataclass(frozen=True)
class GPT2Config:
    """The shape of a GPT-2; the defaults are GPT-2 small. Raises ValueError where the numbers cannot make a model."""

    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    n_positions: int = 1024
    vocab_size: int = 50257
    layer_norm_epsilon: float = 1e-5
    dropout: float = 0.0
    gelu: str = "tanh"
    """"tanh", GPT-2's own approximation, or "exact", as nanoGPT computes it."""
    tied: bool = True
    """Whether the head is the token embeddings themselves, as GPT-2's is, or a matrix of its own, as minGPT's."""

    def __post_init__(self) -> None:
        for name in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST:
                raise ValueError(f"GPT2Config.{name} must be a whole number from 1 to {LARGEST:,}, got {value!r}.")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} cannot be shared out among n_head {self.n_head} heads.")
        epsilon = self.layer_norm_epsilon
        if isinstance(epsilon, bool) or not isinstance(epsilon, (int, float)) or not 0 < epsilon < 1:
            raise ValueError(f"layer_norm_epsilon must be a small positive number, got {epsilon!r}.")
        if self.gelu not in ("tanh", "exact"):
            raise ValueError(f"gelu is {self.gelu!r}; it can be 'tanh' or 'exact'.")
        if not isinstance(self.tied, bool):
            raise ValueError(f"tied must be True or False, got {self.tied!r}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}.")

    @property
    def head_size(self) -> int:
        """Dh, the width of one head."""
        return self.n_embd // self.n_head

    @property
    def tokens(self) -> int:
        """How many rows of the vocabulary are tokens; the last of them is `<|endoftext|>`."""
        return GPT2_TOKENS if GPT2_TOKENS < self.vocab_size <= -(-GPT2_TOKENS // PADDED) * PADDED else self.vocab_size

    @property
    def end_of_text(self) -> int:
        """The id of `<|endoftext|>`."""
        return self.tokens - 1

    def num_parameters(self) -> int:
        """How many numbers a model of this shape has, counted without making it; a tied head counts once."""
        L, D = self.n_layer, self.n_embd
        embeddings = ((1 if self.tied else 2) * self.vocab_size + self.n_positions) * D
        return 12 * L * D * D + 13 * L * D + embeddings + 2 * D
