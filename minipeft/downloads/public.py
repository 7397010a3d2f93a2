"""The public GPT-2 weights: their names, shapes, addresses and fingerprints, and where they are on this machine."""

from dataclasses import dataclass
from pathlib import Path

from minipeft.config import GPT2Config
from minipeft.files import CheckpointError

WEIGHTS_FILE = "model.safetensors"


class DamagedFile(CheckpointError):
    """A file, `path`, that is not what its name says."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(message)
        self.path = path


@dataclass(frozen=True)
class PublicModel:
    """A public GPT-2: its repository on the Hugging Face hub, its shape, and what is known of its file beforehand.

    Without a pinned `revision` and `sha256` the newest file counts, checked against the SHA-256 that the hub names.
    """

    repo: str
    config: GPT2Config
    revision: str = "main"
    sha256: str | None = None
    size: int | None = None

    def find(self) -> Path | None:
        """The file in the cache of the Hugging Face hub, whoever put it there; None if it is not there.

        Looked for under the repository's name and under its old one, without an owner, which is still in wide use.
        Raises CheckpointError if it is there and has not the size that it must have.
        """
        from huggingface_hub import try_to_load_from_cache

        names = (self.repo, self.repo.split("/")[-1])
        cached = (try_to_load_from_cache(name, WEIGHTS_FILE, revision=self.revision) for name in names)
        found = next((Path(path) for path in cached if isinstance(path, str)), None)
        if found is not None and self.size is not None and found.stat().st_size != self.size:
            raise DamagedFile(found, f"{found} is damaged: it has {found.stat().st_size:,} bytes, not {self.size:,}.")
        return found


PUBLIC = {
    "gpt2": PublicModel(
        "openai-community/gpt2",
        GPT2Config(),
        revision="607a30d783dfa663caf39e06633721c8d4cfcd7e",
        sha256="248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
        size=548_105_171,
    ),
    "gpt2-medium": PublicModel("openai-community/gpt2-medium", GPT2Config(n_layer=24, n_head=16, n_embd=1024)),
    "gpt2-large": PublicModel("openai-community/gpt2-large", GPT2Config(n_layer=36, n_head=20, n_embd=1280)),
    "gpt2-xl": PublicModel("openai-community/gpt2-xl", GPT2Config(n_layer=48, n_head=25, n_embd=1600)),
    "distilgpt2": PublicModel("distilbert/distilgpt2", GPT2Config(n_layer=6)),
}
