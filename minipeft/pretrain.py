"""Train a GPT-2 from nothing on plain text files."""

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from minipeft import sharding
from minipeft.batches import MicroBatches, ShuffledStream
from minipeft.config import GPT2Config
from minipeft.corpus import HELD_OUT_PERCENT, CorpusError
from minipeft.distributed import ALONE, Team
from minipeft.downloads import PUBLIC
from minipeft.files import write_json
from minipeft.generate import generate
from minipeft.gpt2 import GPT2
from minipeft.perplexity import perplexities, unigram_perplexities
from minipeft.plan import check_micro_batch, measure_rates, model_flops, rows_at_once
from minipeft.rehearsal import Work
from minipeft.sampling import Sampling
from minipeft.token_files import Shards, TokenFiles, is_finished, is_prepared, prepare_tokens
from minipeft.tokenizer import Tokenizer
from minipeft.train import train
from minipeft.train_config import TrainConfig

REPORT_FILE = "report.json"
TOKENS_FOLDER = "tokens"
"""In the folder of a run: what its texts were made into."""
CONFIGS = {
    "pico": GPT2Config(n_layer=4, n_head=4, n_embd=128, n_positions=256, vocab_size=8257),
    "nano": GPT2Config(n_layer=6, n_head=4, n_embd=256, n_positions=256, vocab_size=8257),
    "micro": GPT2Config(n_layer=8, n_head=8, n_embd=512, n_positions=256, vocab_size=8257),
    **{name: public.config for name, public in PUBLIC.items()},
}
"""The family that is trained here, and the shapes of the public models."""

PRETRAINING: dict[str, Any] = {"final_lr": 0.02, "betas": (0.9, 0.95)}
"""Settings of `TrainConfig` that pretraining has for good and tuning has not. Source: Brown et al. 2020, appendix B."""


@dataclass(frozen=True)
class PretrainConfig:
    """What is trained, and how it is computed; `TrainConfig` says how long and at which rates."""

    model: GPT2Config
    """Texts of as many tokens as it has positions are trained on: one that was never trained would be no good."""
    dtype: torch.dtype = torch.float32
    """Of the activations; the weights are fp32. In fp16 losses are scaled."""
    held_out: float | None = None
    """Percent of the text that is not trained on, but measured; None: `HELD_OUT_PERCENT`, or as it was prepared."""
    micro_batch: int | str = "whole"
    """Windows at once, "whole": the batch, or "auto": as many as `minipeft.plan` says fit."""
    checkpointing: bool = False
    compiled: bool = False
    shard: bool = False
    """Whether the processes of a team share the weights, too; in the end the writer alone gets them back."""
    sample: str = ""
    """A text that the model continues at each evaluation, into the metrics."""

    def __post_init__(self) -> None:
        check_micro_batch(self.micro_batch)
        if self.length < 2:
            raise ValueError(f"a text of {self.length} token has nothing to predict; it takes at least 2.")
        if self.held_out is not None and not 0 <= self.held_out < 100:
            raise ValueError(f"held_out is a percentage from 0 to below 100, got {self.held_out}.")

    @property
    def length(self) -> int:
        """Tokens of a training text."""
        return self.model.n_positions

    def told(self) -> dict[str, Any]:
        """What a resumed run must have in common with the run that it resumes."""
        return {"model": asdict(self.model), "window": self.length, "dtype": str(self.dtype).removeprefix("torch.")}


def tokens_of(files: Sequence[str | Path], how: PretrainConfig, folder: Path, overwrite: bool = False) -> TokenFiles:
    """The tokens of these texts, made in `folder` unless they are there, or those of the one folder that was named.

    Raises ValueError if that one's are of another vocabulary or hold out another part than was asked for, and what
    `prepare_tokens` and `TokenFiles.open` raise.
    """
    tokenizer = Tokenizer.for_vocab_size(how.model.tokens)
    if len(files) != 1 or not is_prepared(files[0]):
        percent = HELD_OUT_PERCENT if how.held_out is None else how.held_out
        return prepare_tokens(files, tokenizer, folder, percent, overwrite=overwrite)
    tokens = TokenFiles.open(files[0])
    if tokens.tokenizer != tokenizer.fingerprint():
        raise ValueError(
            f"{files[0]} holds tokens of a vocabulary of {tokens.vocab_size:,}, but this model's has "
            f"{tokenizer.vocab_size:,}; prepare the text with --vocab-size {tokenizer.vocab_size}."
        )
    if how.held_out not in (None, tokens.held_out_percent):
        raise ValueError(
            f"{files[0]} was prepared with {tokens.held_out_percent:g} % of the text held out, and not "
            f"{how.held_out:g} %; leave --held-out away, or prepare the text with it."
        )
    return tokens


def _tokens_for_all(
    team: Team, files: Sequence[str | Path], how: PretrainConfig, folder: Path, overwrite: bool
) -> TokenFiles:
    """`tokens_of`, made by one process on each machine and found by the others; first by the writer, as all machines
    may share its folder.

    Raises ValueError in a process whose texts are not the writer's.
    """
    if team.size == 1:
        return tokens_of(files, how, folder, overwrite)
    made = team.from_writer(lambda: tokens_of(files, how, folder, overwrite).train.fingerprint)

    def tokens() -> TokenFiles:
        there = is_finished(folder) and TokenFiles.open(folder).train.fingerprint == made
        return tokens_of([folder] if there else files, how, folder, overwrite)

    found = team.first_here_first(tokens)
    if found.train.fingerprint != made:
        raise ValueError(f"process {team.rank} finds other texts in {', '.join(map(str, files))} than the writer does.")
    return found


class TokenWindows:
    """Batches of T neighbouring tokens: every epoch cuts the stream at another offset, in another order.

    `windows(step)` is the batch [B, T] of that step, whatever was asked before.
    Raises CorpusError if the tokens do not fill one batch.
    """

    def __init__(self, tokens: np.ndarray | Shards, length: int, batch_size: int, seed: int) -> None:
        n = len(tokens) // length - 1
        if n < batch_size:
            raise CorpusError(
                f"{len(tokens):,} tokens are too few for a batch of {batch_size} × {length}; "
                f"bring more text or lower --batch-size."
            )
        self.tokens, self.length, self.batch_size, self.seed = tokens, length, batch_size, seed
        self.order = ShuffledStream(n, seed)

    def __call__(self, step: int) -> Int[Tensor, "B T"]:
        starts = [i * self.length + self._offset(epoch) for epoch, i in self.order.batch(step, self.batch_size)]
        rows = [self.tokens[start : start + self.length].astype(np.int64) for start in starts]
        return torch.from_numpy(np.stack(rows))

    def _offset(self, epoch: int) -> int:
        return int(np.random.default_rng((self.seed, epoch, 1)).integers(self.length))


def pretrain(
    files: Sequence[str | Path],
    how: PretrainConfig,
    settings: TrainConfig,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: torch.device | str = "cpu",
    watch: Callable[[Mapping[str, object]], None] = lambda row: None,
    team: Team = ALONE,
) -> GPT2:
    """Train a new GPT-2 on text files and write it to `out` with `report.json`; the best evaluation is kept.

    `files`: texts, whose tokens are made in `out`, or one folder of tokens that `minipeft prepare` made; `overwrite`
    lets go of tokens of other texts there. The processes of a `team` share each batch.
    Raises FileNotFoundError or CorpusError on files that cannot be used, and what `train` raises.
    """
    if how.shard:
        sharding.check_team(team)
    settings = replace(settings, scaled=how.dtype == torch.float16)
    corpus = _tokens_for_all(team, files, how, Path(out) / TOKENS_FOLDER, overwrite)
    if not corpus.held_out and settings.patience:
        raise CorpusError("no text is held out, so patience has nothing to wait for; raise --held-out.")
    model = GPT2(how.model, seed=settings.seed).to("cpu" if how.shard else device).train()
    model.use_activations(None if how.dtype == torch.float32 else how.dtype)
    model.use_kernels().use_checkpointing(how.checkpointing)
    if how.compiled:
        model.use_compile()
    work = Work.of(model, None, team.most_rows(settings.batch_size), how.length, how.length - 1)
    pace = _pace(model, settings.batch_size, how.length, team.size) if team.is_writer else str
    if how.shard:
        sharding.shard(model, team)
    untrained = perplexities(model, corpus)
    windows = TokenWindows(corpus.train, how.length, settings.batch_size, settings.seed)
    if not corpus.held_out and corpus.held_out_percent and team.is_writer:
        print(
            f"minipeft: of so short a text nothing fell to the {corpus.held_out_percent:g} % that is held out, so that "
            "nothing is measured and the last step is kept; a larger --held-out holds more out.",
            file=sys.stderr,
        )
    at_once = team.from_writer(lambda: rows_at_once(how.micro_batch, work, torch.device(device), team.local_size))
    micro, loss = MicroBatches(at_once, how.micro_batch), team.loss_of(model.loss, model.parameters())

    def loss_at(step: int) -> Iterator[Tensor]:
        for share in team.shares(windows(step), micro, scored=len):
            rows = share.rows.to(device)
            yield share.weight * loss(rows, rows, last=share.last)

    def evaluate() -> dict[str, float | str]:
        measured = perplexities(model, corpus)
        by_source = {f"perplexity/{source}": value for source, value in measured.by_source.items()}
        said = {"sample": continued(model, how.sample, settings.seed)} if how.sample else {}
        return {"score": -math.log(measured.overall), "perplexity": measured.overall, **by_source, **said}

    result = train(
        dict(model.named_parameters()),
        loss_at,
        settings,
        out,
        evaluate=evaluate if corpus.held_out else None,
        resume=resume,
        setting={**how.told(), "tokens": corpus.train.fingerprint},
        label="pretrain",
        micro=micro,
        pace=pace,
        watch=watch,
        team=team,
    )
    trained = sharding.in_one_piece(model.eval(), team) if how.shard else model.eval()
    if team.is_writer:
        trained.save_pretrained(out)
    measured = {
        "perplexity": asdict(perplexities(model, corpus)),
        "perplexity_unigram": asdict(unigram_perplexities(corpus, how.model.vocab_size)),
        "perplexity_untrained": asdict(untrained),
    }
    report = {
        "parameters": trained.num_parameters(),
        "corpus_tokens": len(corpus.train),
        "tokens_seen": result.step * settings.batch_size * how.length,
        "steps": result.step,
        "skipped": result.skipped,
        "best_step": result.best_step or result.step,
        "seconds": round(result.seconds),
        "held_out_tokens": {name: len(tokens) for name, tokens in corpus.held_out.items()},
        **({} if not corpus.held_out else measured),
        "settings": {**asdict(settings), **how.told()},
    }
    if team.is_writer:
        write_json(Path(out) / REPORT_FILE, report)
    return trained


def _pace(model: GPT2, batch_size: int, length: int, processes: int) -> Callable[[float], str]:
    """So many seconds a step in tokens a second, and as a share of the products that the processes could do (MFU)."""
    tokens = batch_size * length
    flops = model_flops(model.config, tokens, tokens)
    most = processes * measure_rates(model.config, model.activations or model.dtype, model.device).flops
    return lambda seconds: f"{tokens / seconds:,.0f} tokens/s, {flops / seconds / most:.0%} MFU"


def continued(model: GPT2, text: str, seed: int, tokens: int = 40) -> str:
    """The text and what the model writes after it, as far as it has positions for."""
    room = model.config.n_positions - len(model.tokenizer.encode(text))
    if room < 1:
        return text
    return generate(model, text, Sampling(max_new_tokens=min(tokens, room), temperature=0.8, top_k=50, seed=seed))
