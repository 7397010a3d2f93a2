"""Perplexity, LAMBADA and HellaSwag, against loops over `transformers`' logits; the window, the files, the table."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import constants

import minipeft as mp
from minipeft.downloads import transfer
from minipeft.zero_shot import Row, Settings, Subject, measure, reference, score, tasks
from minipeft.zero_shot.choices import read_hellaswag, read_lambada
from minipeft.zero_shot.texts import detokenised, windows
from tests.hub import Fault, hub_with
from tests.models import TINY, twins

VOCABULARY = 512
SENTENCES = [
    "The old man went down to the sea in the morning and",
    "She said that it was not the end of the story, only",
    "A cat, a dog and a bird came to the house;",
    "What is it that you want to know about the",
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[mp.GPT2, Any]:
    """Ours and theirs, of the vocabulary that text of this length needs."""
    return twins(tmp_path_factory.mktemp("pair"), vocab_size=VOCABULARY)


@torch.no_grad()
def nats_of(theirs: Any, context: list[int], target: list[int]) -> torch.Tensor:
    """The cost of each target token, one forward pass over nothing but what stands before it."""
    costs = []
    for position in range(len(target)):
        ids = torch.tensor([[*context, *target[:position]]])
        costs.append(F.cross_entropy(theirs(ids).logits[0, -1:], torch.tensor([target[position]])))
    return torch.stack(costs)


# -- scoring ----------------------------------------------------------------------------------------------------------


def test_rows_of_any_length_cost_what_they_cost_alone(pair: tuple[mp.GPT2, Any]) -> None:
    ours, theirs = pair
    lengths = [(3, 1), (20, 5), (7, 7), (2, 30), (31, 1)]
    rows = [Row(torch.randint(VOCABULARY, (before + after,)).tolist(), before) for before, after in lengths]
    for row, found in zip(rows, score(Subject.of(ours), rows, batch_size=3), strict=True):
        context, target = list(row.ids[: row.scored_from]), list(row.ids[row.scored_from :])
        torch.testing.assert_close(found.nats, nats_of(theirs, context, target), atol=1e-5, rtol=1e-5)
        with torch.no_grad():
            likeliest = theirs(torch.tensor([row.ids])).logits[0, row.scored_from - 1 : -1].argmax(dim=-1)
        assert found.likeliest.tolist() == (likeliest == torch.tensor(target)).tolist()


def test_a_prefix_takes_its_room_and_changes_the_cost(pair: tuple[mp.GPT2, Any]) -> None:
    ours, _ = pair
    tuned = mp.attach(ours, mp.Prefix(length=5, reparam=None), seed=0)
    subject = Subject.of(tuned)
    assert subject.room == TINY["n_positions"] - 5
    rows = [Row(list(range(1, 20)), 4), Row(list(range(30, 40)), 1)]
    for row, found in zip(rows, score(subject, rows, batch_size=2), strict=True):
        labels = torch.tensor([row.ids])
        labels[:, : row.scored_from] = -100
        assert float(found.nats.mean()) == pytest.approx(float(tuned.loss(torch.tensor([row.ids]), labels)), abs=1e-5)
    tuned.detach()


def test_many_logits_are_computed_a_part_at_a_time(pair: tuple[mp.GPT2, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from minipeft.zero_shot import scoring

    rows = [Row(torch.randint(VOCABULARY, (30,)).tolist(), 1) for _ in range(4)]
    whole = score(Subject.of(pair[0]), rows, batch_size=4)
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", 7)
    for one, other in zip(whole, score(Subject.of(pair[0]), rows, batch_size=4), strict=True):
        torch.testing.assert_close(one.nats, other.nats, atol=1e-6, rtol=1e-6)


# -- texts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 5, 31, 32, 33, 100])
@pytest.mark.parametrize("stride", [1, 7, 32])
def test_the_window_scores_every_token_once_with_all_the_context_there_is_room_for(length: int, stride: int) -> None:
    ids = list(range(100, 100 + length))
    seen: list[int] = []
    for row in windows(ids, first=0, room=32, stride=stride):
        scored = list(row.ids[row.scored_from :])
        assert len(row.ids) <= 33  # 32 are read, the last is only predicted
        assert len(row.ids) == min(33, 1 + len(seen) + len(scored))
        assert list(row.ids) == [0, *ids][: 1 + len(seen) + len(scored)][-len(row.ids) :]
        seen += scored
    assert seen == ids


@pytest.mark.parametrize("stride", [0, -1, 33])
def test_a_stride_that_would_skip_tokens_is_refused(stride: int) -> None:
    with pytest.raises(ValueError, match=f"stride is {stride}; it must be between 1 and the 32 positions"):
        windows([1, 2, 3], first=0, room=32, stride=stride)


@pytest.mark.parametrize("stride", [3, 32])
def test_perplexity_is_that_of_a_loop_over_every_token(stride: int, pair: tuple[mp.GPT2, Any], tmp_path: Path) -> None:
    ours, theirs = pair
    text = "\n".join(SENTENCES) + "\n"
    (tmp_path / "text.txt").write_text(text)
    found = measure("text", Subject.of(ours), tmp_path / "text.txt", Settings(stride=stride))
    ids, total = ours.tokenizer.encode(text), 0.0
    stream = [ours.tokenizer.eot, *ids]
    for position in range(1, len(stream)):
        end = min(((position - 1) // stride + 1) * stride, len(stream) - 1)  # the last token of this token's window
        start = max(0, end - 32)
        total += float(nats_of(theirs, stream[start:position], [stream[position]]))
    words = sum(len(line.split()) for line in text.splitlines()) + text.count("\n")
    assert found.values["perplexity per token"] == pytest.approx(math.exp(total / len(ids)), rel=1e-5)
    assert found.values["perplexity per word"] == pytest.approx(math.exp(total / words), rel=1e-5)
    assert found.values["bits per byte"] == pytest.approx(total / math.log(2) / len(text), rel=1e-5)
    assert f"moves on by {stride} tokens" in found.protocol
    assert found.on == f"{len(ids):,} tokens, {words:,} words and ends of lines, {len(text):,} bytes"


def test_wikitext_reads_as_a_person_would_have_typed_it() -> None:
    wikitext = (
        " \n = Robert <unk> = \n He had a guest @-@ starring role ( in 2 @,@ 000 ) , "
        '" Teddy \'s Story " ; it is 1 @.@ 5 % . \n'
    )
    expected = '\n= Robert <unk> =\nHe had a guest-starring role (in 2,000), "Teddy\'s Story"; it is 1.5%.\n'
    assert detokenised(wikitext) == expected


def test_words_of_wikitext_are_counted_in_the_original_file(pair: tuple[mp.GPT2, Any], tmp_path: Path) -> None:
    (tmp_path / "wiki.txt").write_text(" He had a guest @-@ starring role , in 2000 . \n")
    found = measure("wikitext2", Subject.of(pair[0]), tmp_path / "wiki.txt")
    assert " 12 words" in found.on  # 11 and the end of the line, as WikiText counts
    as_is = measure("wikitext2", Subject.of(pair[0]), tmp_path / "wiki.txt", Settings(as_is=True))
    assert " 12 words" in as_is.on
    assert as_is.values != found.values
    assert "detokenised" in found.protocol
    assert "as it is" in as_is.protocol


def test_the_test_set_of_wikitext2_has_its_published_number_of_words() -> None:
    path = Path(os.environ.get("MINIPEFT_DATA", "nowhere")) / tasks.SOURCES["wikitext2"].place
    if not path.is_file():
        pytest.skip("needs WikiText-2: set MINIPEFT_DATA")
    text = path.read_text(encoding="utf-8")
    assert len(text.split()) + text.count("\n") == 245_569
    assert " @-@ " not in detokenised(text)


def test_tinyshakespeare_is_measured_on_its_last_tenth(pair: tuple[mp.GPT2, Any], tmp_path: Path) -> None:
    (tmp_path / "plays.txt").write_text("x" * 900 + "y" * 100)
    found = measure("tinyshakespeare", Subject.of(pair[0]), tmp_path / "plays.txt")
    assert "100 bytes" in found.on
    assert "the last 10% of its characters" in found.protocol


# -- choices ----------------------------------------------------------------------------------------------------------


def test_lambada_is_that_of_a_loop_over_the_passages(pair: tuple[mp.GPT2, Any], tmp_path: Path) -> None:
    ours, theirs = pair
    # The likeliest next word is put at the end of half of them, so that some answers are right.
    passages = []
    for number, sentence in enumerate(SENTENCES):
        ids = ours.tokenizer.encode(sentence)[-31:]
        with torch.no_grad():
            best = next(
                word
                for token in theirs(torch.tensor([ids])).logits[0, -1].argsort(descending=True).tolist()
                if (word := ours.tokenizer.decode([token])).startswith(" ") and word.strip().isalpha()
            )
        passages.append(sentence + (best if number % 2 else " morning"))
    (tmp_path / "lambada.jsonl").write_text("".join(json.dumps({"text": passage}) + "\n" for passage in passages))
    found = measure("lambada", Subject.of(ours), tmp_path / "lambada.jsonl", Settings(batch_size=3)).values
    costs, right, right_last = [], [], []
    for passage in passages:
        context, word = passage.rsplit(" ", 1)
        target = ours.tokenizer.encode(" " + word)
        before = ours.tokenizer.encode(context)[-(33 - len(target)) :]
        costs.append(nats_of(theirs, before, target))
        with torch.no_grad():
            likeliest = theirs(torch.tensor([[*before, *target[:-1]]])).logits[0, -len(target) :].argmax(dim=-1)
        right.append(likeliest.tolist() == target)
        right_last.append(int(likeliest[-1]) == target[-1])
    assert found["accuracy, last word"] == sum(right) / 4
    assert found["accuracy, last token"] == sum(right_last) / 4
    per_word = math.exp(sum(float(cost.sum()) for cost in costs) / 4)
    assert found["perplexity per last word"] == pytest.approx(per_word, rel=1e-5)
    per_token = math.exp(sum(float(cost[-1]) for cost in costs) / 4)
    assert found["perplexity per last token"] == pytest.approx(per_token, rel=1e-5)


def test_hellaswag_is_that_of_a_loop_over_the_endings(pair: tuple[mp.GPT2, Any], tmp_path: Path) -> None:
    ours, theirs = pair
    endings = ["goes to the house", "is a dog", "was not in the story of the cat", "comes"]
    examples = [{"ctx": one, "endings": endings, "label": number} for number, one in enumerate(SENTENCES)]
    (tmp_path / "hellaswag.jsonl").write_text("".join(json.dumps(one) + "\n" for one in examples))
    found = measure("hellaswag", Subject.of(ours), tmp_path / "hellaswag.jsonl", Settings(batch_size=5)).values
    right, right_normalised = 0, 0
    for number, sentence in enumerate(SENTENCES):
        sums, means = [], []
        for ending in endings:
            target = ours.tokenizer.encode(" " + ending)
            costs = nats_of(theirs, ours.tokenizer.encode(sentence)[-(33 - len(target)) :], target)
            sums.append(float(costs.sum()))
            means.append(float(costs.mean()))
        right += sums.index(min(sums)) == number
        right_normalised += means.index(min(means)) == number
    assert found == {"accuracy": right / 4, "accuracy, normalised": right_normalised / 4}


@pytest.mark.parametrize(
    ("read", "line", "message"),
    [
        (read_lambada, "not json", "line 2 is no JSON object"),
        (read_lambada, "[" * 100_000, "line 2 is no JSON object"),
        (read_lambada, "\n\n3", "line 4 is no JSON object"),
        (read_lambada, '{"words": 3}', "line 2: text is missing or no str"),
        (read_lambada, '{"text": "one"}', "line 2 has no last word with something before it"),
        (read_hellaswag, '{"ctx": "a", "endings": "b", "label": 0}', "line 2: endings is missing or no list"),
        (read_hellaswag, '{"ctx": "a", "endings": ["b"], "label": true}', "line 2: label is missing or no int"),
        (read_hellaswag, '{"ctx": "a", "endings": ["b"], "label": 1}', "line 2: label 1 is the number of no ending"),
        (read_hellaswag, '{"ctx": "", "endings": ["b"], "label": 0}', "line 2: ctx and endings must be texts"),
        (read_hellaswag, '{"ctx": "a", "endings": [3], "label": 0}', "line 2: ctx and endings must be texts"),
    ],
)
def test_a_line_that_is_no_example_is_named(read: Any, line: str, message: str, tmp_path: Path) -> None:
    good = '{"text": "two words", "ctx": "a", "endings": ["b"], "label": 0}'
    (tmp_path / "data.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "data.jsonl")


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    """JSON may hold other separators as they are."""
    text = "one\u2028two\u0085three\x1cfour"
    (tmp_path / "data.jsonl").write_text(json.dumps({"text": text}, ensure_ascii=False) + "\r\n", encoding="utf-8")
    assert read_lambada(tmp_path / "data.jsonl") == [text]
    (tmp_path / "data.txt").write_text(f"{text}\n\n{text}\n", encoding="utf-8")
    assert read_lambada(tmp_path / "data.txt") == [text, text]


def test_a_word_longer_than_the_window_is_refused(pair: tuple[mp.GPT2, Any], tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("It is " + "xq" * 40)
    with pytest.raises(ValueError, match="does not fit into 32 positions"):
        measure("lambada", Subject.of(pair[0]), tmp_path / "long.txt")


# -- where data are, and where values go ------------------------------------------------------------------------------


def test_data_are_read_where_minipeft_data_says(
    pair: tuple[mp.GPT2, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINIPEFT_DATA", str(tmp_path))
    monkeypatch.setenv("MINIPEFT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "lambada").mkdir()
    (tmp_path / "lambada" / "lambada_test.jsonl").write_text('{"text": "two words"}\n')
    assert measure("lambada", Subject.of(pair[0])).on == "1 passages"
    with pytest.raises(FileNotFoundError, match=r"hellaswag's data are not here: get https://\S+, then type: minip"):
        measure("hellaswag", Subject.of(pair[0]))
    with pytest.raises(FileNotFoundError, match="wikitext2 is not here, and HF_HUB_OFFLINE forbids"):
        measure("wikitext2", Subject.of(pair[0]))
    with pytest.raises(ValueError, match="say which text: minipeft eval --task text --data FILE"):
        measure("text", Subject.of(pair[0]))


def test_data_of_a_known_hash_are_brought_once(
    pair: tuple[mp.GPT2, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MINIPEFT_DATA", raising=False)
    monkeypatch.setenv("MINIPEFT_CACHE", str(tmp_path / "data"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(transfer, "WAITS", (0.0,))
    with hub_with(b" a b , c \n" * 50) as hub:
        source = tasks.Source("wikitext2/test.txt", f"{hub.address}/cdn/file", hub.sha256, len(hub.data))
        monkeypatch.setitem(tasks.SOURCES, "wikitext2", source)
        hub.gets = [Fault(503), Fault(body="cut")]
        for _ in range(2):
            assert " 250 words" in measure("wikitext2", Subject.of(pair[0]), say=lambda line: None).on
        assert hub.count("GET", "/cdn/") == 3
        hub.gets = [Fault(404)]
        (tmp_path / "data" / "wikitext2" / "test.txt").unlink()
        with pytest.raises(FileNotFoundError, match=r"\(404\).*then type: minipeft eval --task wikitext2 \(or put"):
            measure("wikitext2", Subject.of(pair[0]), say=lambda line: None)


TABLE = """# Reference

| task | measure | model | published | measured |
|---|---|---|---:|---:|
| lambada | accuracy, last word | gpt2 | 32.56 % | – |
| lambada | perplexity per last word | gpt2 | 40.06 | – |
| lambada | accuracy, last word | gpt2-xl | 51.21 % | – |

| lambada | accuracy, last word | gpt2 | not in the table | – |
"""


def test_the_command_fills_its_rows_of_the_table_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "reference.md").write_text(TABLE)
    values = {"accuracy, last word": 0.325637, "perplexity per last word": 40.0554, "accuracy, last token": 0.46}
    found = tasks.Measured("lambada", "", "", values)
    assert reference.fill(tmp_path / "reference.md", "gpt2", found) == 2
    expected = TABLE.replace("32.56 % | – |", "32.56 % | 32.56 % |").replace("40.06 | – |", "40.06 | 40.06 |")
    assert (tmp_path / "reference.md").read_text() == expected
    with pytest.raises(ValueError, match="has no row for lambada and nano in a table of task, measure, model"):
        reference.fill(tmp_path / "reference.md", "nano", found)


def test_the_documentation_has_the_rows_that_the_command_fills(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "reference.md").read_text(encoding="utf-8")
    (tmp_path / "reference.md").write_text(text, encoding="utf-8")
    measures = {
        "wikitext2": ["perplexity per token", "perplexity per word", "bits per byte"],
        "lambada": ["accuracy, last word", "accuracy, last token", "perplexity per last word"],
        "hellaswag": ["accuracy", "accuracy, normalised"],
    }
    for task, names in measures.items():
        found = tasks.Measured(task, "", "", dict.fromkeys(names, 0.5))
        assert reference.fill(tmp_path / "reference.md", "gpt2", found) == len(names), task
