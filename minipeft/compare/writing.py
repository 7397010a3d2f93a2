"""What is measured on text that a model writes: overlap with what people wrote, variety, and what a judge calls it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from minipeft.evaluate import label_log_likelihoods
from minipeft.generate import generate
from minipeft.gpt2 import GPT2
from minipeft.methods import FullFinetuning, HardPrompt
from minipeft.perplexity import perplexity_of
from minipeft.sampling import Sampling
from minipeft.tasks import Encoder, Example, open_task
from minipeft.tune import REPORT_FILE, TuneConfig, encoder_for, tune
from minipeft.tuned import Tuned, load

BEAMS = 5
MOST_TOKENS = 100
"""Of a sentence about a restaurant; people's have 98 at most, by nano's tokenizer."""
OPENING = "It is a"
WRITTEN = 200
JUDGE = "nano"
"""What a judge is finetuned from, whichever model writes."""
JUDGE_SEED = 100
AT_ONCE = 32
SHOWN = 3
Writer = Callable[[list[list[int]], Sampling], list[list[int]]]
"""Goes on with rows of token ids."""


@dataclass(frozen=True)
class Written:
    """What was measured on texts, and they themselves: what was given, and what was written for it."""

    scores: dict[str, float]
    texts: list[dict[str, str]]


def writer_of(tuned: Tuned) -> Writer:
    """How a tuned model writes; behind a hard prompt, which is words of the rows already, the bare model."""
    if not isinstance(tuned.method, HardPrompt):
        return lambda rows, settings: _rows(tuned.generate_with(rows, settings))
    return lambda rows, settings: _rows(generate(tuned.base, rows, settings))


def tell(write: Writer, encoder: Encoder, examples: Sequence[Example], most: int | None = None) -> Written:
    """BLEU, ROUGE-L and NIST of what beam search writes for each input, against all texts that people wrote for it.

    `most`: for how many inputs, drawn by a seed that is always the same; None: for all of them.
    Raises ValueError if sacrebleu, rouge-score or nltk is not installed.
    """
    references: dict[str, list[str]] = {}
    asked: dict[str, list[int]] = {}
    for example in examples:
        references.setdefault(example.text, []).append(example.target)
        asked.setdefault(example.text, encoder.context(example))
    if most is not None and most < len(asked):
        drawn = torch.randperm(len(asked), generator=torch.Generator().manual_seed(0))[:most].tolist()
        asked = {text: asked[text] for text in (list(asked)[place] for place in sorted(drawn))}
    order = sorted(asked, key=lambda text: len(asked[text]))
    settings = Sampling(max_new_tokens=MOST_TOKENS, beams=BEAMS)
    told: dict[str, str] = {}
    ended = 0
    for start in range(0, len(order), AT_ONCE):
        some = order[start : start + AT_ONCE]
        for text, ids in zip(some, write([asked[text] for text in some], settings), strict=True):
            own = ids[len(asked[text]) :]
            told[text] = encoder.tokenizer.decode(own).strip()
            ended += len(own) < MOST_TOKENS
    texts = [{"given": text, "written": told[text]} for text in asked]
    scores = overlap([told[text] for text in asked], [references[text] for text in asked])
    return Written(scores | _lengths(list(told.values()), ended), texts)


def overlap(told: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU (0–100, of the corpus, capitals count), ROUGE-L (0–100, the mean of each text's best F), NIST (from 0 up).

    Sources: Papineni et al. 2002, as sacrebleu computes it with its 13a tokens; Lin 2004, as rouge-score does;
    Doddington 2002, as nltk does, with the same tokens: by each text's best reference, where the evaluation script of
    the E2E challenge counts over all of them, so that the two differ.
    """
    check_scorers()
    from nltk.translate.nist_score import corpus_nist
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    most = max(map(len, references))
    streams: Any = [[own[place] if place < len(own) else None for own in references] for place in range(most)]
    scorer = RougeScorer(["rougeL"])
    rouge = [
        max(scorer.score(one, text)["rougeL"].fmeasure for one in own)
        for text, own in zip(told, references, strict=True)
    ]
    words = Tokenizer13a()
    told_words = [words(text).split() for text in told]
    longest = min(5, max(map(len, told_words)))  # of n-grams; nltk divides by how many there are
    own_words = [[words(one).split() for one in own] for own in references]
    return {
        "bleu": BLEU().corpus_score(list(told), streams).score,
        "rouge_l": 100 * sum(rouge) / len(rouge),
        "nist": float(corpus_nist(own_words, told_words, longest)) if longest else 0.0,
    }


def check_scorers() -> None:
    """Raise ValueError where a library that scores written text is not installed."""
    if not all(find_spec(name) for name in ("nltk", "rouge_score", "sacrebleu")):
        raise ValueError('to score written text, install: pip install "minipeft[compare]"')


def steer(write: Writer, base: GPT2, judge: Tuned, wanted: str, seed: int) -> Written:
    """How often a judge calls what is written `wanted`, and how varied and likely it is.

    distinct_n: different n-grams of words among all of them, in percent (Li et al. 2016); base_perplexity: what the
    bare model makes of the texts, so that a prompt that writes nonsense is seen to.
    """
    sampling = Sampling(max_new_tokens=30, temperature=0.7, top_k=40, seed=seed * WRITTEN)  # row i draws from seed + i
    opening = base.tokenizer.encode(OPENING)
    rows = write([opening] * WRITTEN, sampling)
    texts = [base.tokenizer.decode(ids) for ids in rows]
    movie = open_task("movie")
    encoder = encoder_for(judge, movie, truncate=True)
    found = label_log_likelihoods(judge, encoder, [Example(text, wanted) for text in texts])
    said = found.argmax(dim=1) == list(encoder.label_ids).index(wanted)
    scores = {
        "as_wanted": 100 * float(said.float().mean()),
        "distinct_1": 100 * distinct(texts, 1),
        "distinct_2": 100 * distinct(texts, 2),
        "base_perplexity": _perplexity(base, texts),
    }
    ended = sum(len(ids) - len(opening) < sampling.max_new_tokens for ids in rows)
    return Written(scores | _lengths(texts, ended), [{"given": OPENING, "written": text} for text in texts])


def _lengths(texts: Sequence[str], ended: int) -> dict[str, float]:
    """How long texts are, without which the share of different words tells little, and how many came to their end."""
    words = sum(len(text.split()) for text in texts) / len(texts)
    return {"words": words, "ended": 100 * ended / len(texts)}


def distinct(texts: Sequence[str], n: int) -> float:
    """The share of different n-grams of words among all n-grams of the texts; 0 where there are none."""
    grams = [tuple(words[i : i + n]) for words in (text.split() for text in texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def judge_in(folder: Path) -> Tuned:
    """A classifier of movie reviews, all of its weights finetuned with a seed of its own; trained once, then read."""
    model = GPT2.from_pretrained(JUDGE)
    if not (folder / REPORT_FILE).exists():
        config = TuneConfig(steps=400, batch_size=8, eval_every=200, seed=JUDGE_SEED, truncate=True)
        tune(model, FullFinetuning(), open_task("movie"), config, folder)[0].detach()
    return load(folder, model)


def _rows(found: Iterable[Iterable[int]]) -> list[list[int]]:
    return [[int(token) for token in row] for row in found]


@torch.no_grad()
def _perplexity(model: GPT2, texts: Sequence[str]) -> float:
    """exp of the bare model's mean loss over the tokens of the texts, but for each one's first."""
    total, tokens = 0.0, 0
    for text in texts:
        ids = torch.tensor([model.tokenizer.encode(text)], device=model.device)
        if ids.shape[1] > 1:
            total += float(model.loss(ids, ids)) * (ids.shape[1] - 1)
            tokens += ids.shape[1] - 1
    return perplexity_of(total / max(1, tokens))
