"""Tasks: the splits of the shipped one, a person's own files, token ids, and what a model scores."""

import csv
import gzip
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

import minipeft.evaluate
from minipeft.corpus import CorpusError
from minipeft.evaluate import evaluate, majority
from minipeft.gpt2 import GPT2
from minipeft.methods import HardPrompt, Method, Prefix, SoftPrompt
from minipeft.tasks import TASKS, DataError, Encoder, Example, Task, collate, open_task, task_from_file
from minipeft.tasks.base import SPLITS, TooLong
from minipeft.tasks.e2e import e2e
from minipeft.tasks.sentiment import DOMAINS, rated_texts
from minipeft.tokenizer import Tokenizer
from minipeft.tune import encoder_for
from minipeft.tuned import Tuned, attach
from tests.models import random_model

SENTIMENT = Path(minipeft.evaluate.__file__).parent / "assets" / "sentiment"
COLUMNS = ("text", "label")


def letters_of(text: str) -> str:
    return "".join(sign for sign in text.lower() if sign in "abcdefghijklmnopqrstuvwxyz0123456789")


def all_texts(task: Task) -> list[str]:
    return [example.text for examples in task.splits.values() for example in examples]


def texts_of(task: Task) -> dict[str, list[str]]:
    return {split: [example.text for example in examples] for split, examples in task.splits.items()}


# --- sentiment


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_text_is_in_two_splits_or_twice_in_one(domain: str) -> None:
    rows = rated_texts(domain)
    seen = Counter(letters_of(row.text) for row in rows)
    assert [text for text, count in seen.items() if count > 1] == []
    assert {row.split for row in rows} == set(SPLITS)


def test_the_counts_of_movie_reviews_are_fixed() -> None:
    assert {split: len(examples) for split, examples in TASKS["movie"]().splits.items()} == {
        "train": 6384,
        "dev": 956,
        "test": 1831,
    }


@pytest.mark.parametrize("domain", DOMAINS)
def test_only_clearly_rated_texts_have_a_label(domain: str) -> None:
    lines = gzip.decompress((SENTIMENT / f"{domain}.tsv.gz").read_bytes()).decode("utf-8").splitlines()
    assert lines[0].split("\t") == ["split", "rating", "text"]
    wanted = {split: set() for split in SPLITS}
    for split, rating, text in (line.split("\t") for line in lines[1:]):
        if float(rating) >= 1 or float(rating) <= -1:
            wanted[split].add((text, "positive" if float(rating) > 0 else "negative"))
    found = TASKS[domain]().splits
    assert {split: {(e.text, e.target) for e in examples} for split, examples in found.items()} == wanted


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_sentiment_task_says_what_it_asks(domain: str) -> None:
    task = TASKS[domain]()
    assert task.labels == ("negative", "positive")
    assert (task.word("negative"), task.word("positive")) == (" bad", " good")
    assert len(set(task.hard_prompts)) == 10
    assert all(template.count("{text}") == 1 for template in task.hard_prompts)
    small = Tokenizer.gpt2(merges=8000)
    assert {len(small.encode(task.word(label))) for label in task.labels} == {1}


# --- a person's own files


def few_rows(count: int = 40) -> list[dict[str, str]]:
    """Texts numbered, so that all three splits get some, with two labels."""
    return [{"text": f"number {n} of them", "label": ("yes", "no")[n % 2]} for n in range(count)]


def write(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    """The rows in the format of the file's name."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with open(path, "w", encoding="utf-8", newline="") as file:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("ending", ["tsv", "csv", "jsonl"])
def test_every_row_of_a_file_becomes_an_example(ending: str, tmp_path: Path) -> None:
    task = task_from_file(write(tmp_path / f"mine.{ending}", few_rows()), *COLUMNS)
    found = sorted((e.text, e.target) for examples in task.splits.values() for e in examples)
    assert found == sorted((row["text"], row["label"]) for row in few_rows())
    assert (task.name, task.labels) == ("mine", ("no", "yes"))


def test_the_format_of_a_file_does_not_move_a_text(tmp_path: Path) -> None:
    tasks = [task_from_file(write(tmp_path / f"mine.{ending}", few_rows()), *COLUMNS) for ending in ("tsv", "jsonl")]
    assert texts_of(tasks[0]) == texts_of(tasks[1])


def test_a_csv_keeps_commas_quotes_and_line_breaks_in_quotes(tmp_path: Path) -> None:
    tricky = ['a, b, and "c"', "two\nlines", "two\r\nlines", '"', "it's, so", 'ends in ""', "tab\there"]
    rows = [{"text": f"{text} {n}", "label": "ab"[n % 2]} for n, text in enumerate(tricky * 4)]
    task = task_from_file(write(tmp_path / "mine.csv", rows), *COLUMNS)
    assert sorted(all_texts(task)) == sorted(row["text"] for row in rows)


def test_a_tsv_takes_quotes_as_they_are(tmp_path: Path) -> None:
    rows = "".join(f'"{n}" he said, "and\t{"ab"[n % 2]}\n' for n in range(40))
    (tmp_path / "mine.tsv").write_text("text\tlabel\n" + rows)
    task = task_from_file(tmp_path / "mine.tsv", *COLUMNS)
    assert '"7" he said, "and' in all_texts(task)


@pytest.mark.parametrize("ending", ["tsv", "csv", "jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_data(ending: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"mine.{ending}", few_rows())
    plain = texts_of(task_from_file(path, *COLUMNS))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert texts_of(task_from_file(path, *COLUMNS)) == plain


def test_an_example_knows_its_line(tmp_path: Path) -> None:
    rows = few_rows()
    rows[0]["text"] = "two\nlines of number 0"
    path = write(tmp_path / "mine.csv", rows)
    task = task_from_file(path, *COLUMNS)
    places = {e.text: e.where for examples in task.splits.values() for e in examples}
    assert places["number 5 of them"] == f"line 8 of {path}"  # a header, and one row of two lines


def test_a_split_column_decides(tmp_path: Path) -> None:
    rows = [{**row, "split": ("train", "dev", "test")[n // 2 % 3]} for n, row in enumerate(few_rows())]
    task = task_from_file(write(tmp_path / "mine.csv", rows), *COLUMNS)
    assert texts_of(task) == {split: [row["text"] for row in rows if row["split"] == split] for split in SPLITS}


def test_without_a_split_column_each_text_has_its_own_split_for_ever(tmp_path: Path) -> None:
    def split_of(rows: Sequence[dict[str, str]]) -> dict[str, str]:
        texts = texts_of(task_from_file(write(tmp_path / "mine.tsv", rows), *COLUMNS))
        return {letters_of(text): split for split, some in texts.items() for text in some}

    once = split_of(few_rows(200))
    shuffled = [{**row, "text": row["text"].upper() + " !"} for row in reversed(few_rows(200)[50:])]
    assert split_of(shuffled).items() <= once.items()
    shares = Counter(once.values())
    assert shares["train"] / 200 == pytest.approx(0.7, abs=0.13)  # four standard deviations of a share of 200
    assert shares["test"] / 200 == pytest.approx(0.2, abs=0.12)
    assert shares["dev"] / 200 == pytest.approx(0.1, abs=0.09)


def test_a_text_that_comes_twice_is_in_one_split(tmp_path: Path) -> None:
    rows = few_rows() + [{**row, "text": f"  {row['text'].title()}..."} for row in few_rows()]
    splits = texts_of(task_from_file(write(tmp_path / "mine.jsonl", rows), *COLUMNS))
    letters = {split: {letters_of(text) for text in texts} for split, texts in splits.items()}
    assert sum(map(len, letters.values())) == 40


def targets(*values: str, per_value: int = 1) -> list[dict[str, str]]:
    rows = [value for value in values for _ in range(per_value)]
    return [{"text": f"number {n}", "label": value} for n, value in enumerate(rows)]


@pytest.mark.parametrize(
    ("rows", "kind", "labels"),
    [
        (targets(*map(str, range(20)), per_value=3), "auto", 20),
        (targets(*map(str, range(21)), per_value=3), "auto", 0),
        (targets(*map(str, range(21)), per_value=3), "labels", 21),
        (targets("a", "b", per_value=20), "auto", 2),
        (targets("a", "b", per_value=20), "text", 0),
        (targets(*[f"answer {n}" for n in range(40)]), "auto", 0),
    ],
)
def test_few_recurring_targets_are_labels_and_others_text(
    rows: list[dict[str, str]], kind: str, labels: int, tmp_path: Path
) -> None:
    task = task_from_file(write(tmp_path / "mine.csv", rows), *COLUMNS, kind)
    assert len(task.labels) == labels
    assert task.joint == ("\nLabel:" if labels else "<|endoftext|>")
    assert list(task.labels) == sorted(task.labels)


def test_without_an_input_column_the_targets_alone_are_learned(tmp_path: Path) -> None:
    rows = [{"text": "ignored", "label": f"answer {n}"} for n in range(80)]
    task = task_from_file(write(tmp_path / "mine.csv", rows), None, "label")
    assert {e.text for examples in task.splits.values() for e in examples} == {""}
    assert sorted(e.target for examples in task.splits.values() for e in examples) == sorted(r["label"] for r in rows)
    assert (task.labels, task.joint) == ((), "")


def test_a_text_file_is_cut_between_lines_into_pieces(tmp_path: Path) -> None:
    lines = [f"Line {n} of a long poem that goes on for ever and a day, and then some more.\n" for n in range(200)]
    (tmp_path / "poem.txt").write_text("".join(lines), encoding="utf-8")
    task = task_from_file(tmp_path / "poem.txt", None, None)
    pieces = [e for examples in task.splits.values() for e in examples]
    pieces.sort(key=lambda e: int(re.findall(r"\d+", e.where)[0]))
    tokenizer = Tokenizer.gpt2()
    assert "".join(e.target for e in pieces).rstrip("\n") == "".join(lines).rstrip("\n")
    assert all(e.text == "" and e.target.startswith("Line ") for e in pieces)
    assert all(len(tokenizer.encode(e.target)) <= 128 for e in pieces)
    assert [e.where for e in pieces] == [f"piece {n} of {tmp_path / 'poem.txt'}" for n in range(1, len(pieces) + 1)]


@pytest.mark.parametrize(
    ("name", "content", "given", "sentence"),
    [
        ("a.tsv", "text\tlabel\n", ("text", "label"), "a.tsv has a header but no rows"),
        ("a.tsv", "text\tlabel\nx\ty\n", ("words", "label"), "has no column 'words'; it has 'text', 'label'"),
        ("a.tsv", "text\tlabel\nx\ty\n", ("text", "team"), "has no column 'team'; it has 'text', 'label'"),
        ("a.tsv", "text\tlabel\nx\ty\n", ("text", None), "say which column of"),
        ("a.tsv", "text\tlabel\nx\ty\nz\n", ("text", "label"), "line 3 of"),
        ("a.csv", "text,label\nx,y\nz,so,y\n", ("text", "label"), "has 3 fields, and its header 2; a field that holds"),
        ("a.csv", 'text,label\n"x" z,y\n', ("text", "label"), "cannot be read: ',' expected after"),
        ("a.jsonl", '{"text": "x", "label": null}\n', ("text", "label"), "has nothing in column 'label'."),
        ("a.csv", "text,label\n ,y\n", ("text", "label"), "line 2 of"),
        ("a.xlsx", "text,label\n", ("text", "label"), "a.xlsx ends in .xlsx; data files end in"),
        ("a", "text,label\n", ("text", "label"), "ends in nothing; data files end in"),
        ("a.jsonl", '{"text": "x", "label": "y"}\n\n[1]\n', ("text", "label"), "line 3 of"),
        ("a.jsonl", '{"text": "x", "label": "y"}\n{"text"\n', ("text", "label"), "line 2 of"),
        ("a.tsv", "split\ttext\tlabel\nvalid\tx\ty\n", ("text", "label"), "line 2 of"),
        ("a.txt", "One short line.\n", (None, None), "too short to learn from"),
        ("a.tsv", "text\tlabel\nx\ty\nz\ty\n", ("text", "label"), "every row has the same label, 'y'"),
        ("a.csv", "text,label\nx,y\nz,y\nu,v\nw,y\n", ("text", "label"), "the label 'v' occurs once"),
        ("a.csv", "text,label\nx,y\nz,y\nu,v\nw,v\n", ("text", "label"), "split; 4 rows are too few"),
    ],
)
def test_a_file_that_makes_no_task_is_refused_with_its_name(
    name: str, content: str, given: tuple[str | None, str | None], sentence: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(sentence)) as error:
        task_from_file(tmp_path / name, *given)
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl", "a.txt"])
def test_a_file_that_is_empty_missing_or_no_text_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    columns = (None, None) if path.suffix == ".txt" else COLUMNS
    with pytest.raises(FileNotFoundError, match=f"there is no file {re.escape(str(path))}"):
        task_from_file(path, *columns)
    for content, sentence in (
        (b" \n", "is empty"),
        (b"text\tlabel\n\xff", "is not UTF-8 (byte 11 is 0xff)"),
        (b"text\0", "NUL"),
    ):
        path.write_bytes(content)
        with pytest.raises(CorpusError, match=re.escape(sentence)):
            task_from_file(path, *columns)


@pytest.mark.parametrize("name", ["mine.csv", "mine.txt"])
def test_an_unknown_kind_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if path.suffix == ".csv":
        write(path, few_rows())
    else:
        path.write_text("".join(f"Line {n} of a long poem that goes on for ever and a day.\n" for n in range(300)))
    columns = (None, None) if path.suffix == ".txt" else COLUMNS
    task_from_file(path, *columns, "auto")
    with pytest.raises(DataError, match="kind is 'numbers'; it can be auto, labels or text"):
        task_from_file(path, *columns, "numbers")


def test_running_text_has_no_columns(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("A line.\n")
    with pytest.raises(DataError, match="is running text: it has no columns and no labels"):
        task_from_file(path, *COLUMNS)


# --- token ids

SMALL = Tokenizer.for_vocab_size(512)


def labelled(words: dict[str, str], examples: Sequence[Example], joint: str = " It is") -> Task:
    """A task with these examples in every split."""
    return Task("made", dict.fromkeys(SPLITS, tuple(examples)), tuple(words), words, joint)


def written(examples: Sequence[Example], joint: str = "<|endoftext|>") -> Task:
    """A task with free text as its target."""
    return Task("made", dict.fromkeys(SPLITS, tuple(examples)), joint=joint)


ONE = Example("the end", "good", "line 7 of mine.tsv")
GOOD_BAD = {"good": " of the", "bad": " and"}


def test_ids_are_the_text_the_joint_and_the_label() -> None:
    encoder = Encoder(labelled(GOOD_BAD, [ONE]), SMALL, room=64)
    row = encoder.encode(ONE)
    assert row.ids == [*SMALL.encode("the end"), *SMALL.encode(" It is"), *SMALL.encode(" of the")]
    assert row.ids[row.target_starts :] == SMALL.encode(" of the")
    assert encoder.context(ONE) == row.ids[: row.target_starts]


def test_a_template_stands_in_for_the_joint() -> None:
    encoder = Encoder(labelled(GOOD_BAD, [ONE]), SMALL, room=64, template="Review: {text} So:")
    row = encoder.encode(ONE)
    parts = [SMALL.encode(part) for part in ("Review: ", "the end", " So:", " of the")]
    assert row.ids == [token for part in parts for token in part]
    assert row.target_starts == len(row.ids) - len(parts[-1])


def test_a_label_without_a_word_of_its_own_is_written_after_a_space() -> None:
    encoder = Encoder(labelled({}, [ONE]), SMALL, room=64)
    assert encoder.task.word("good") == " good"
    task = Task("made", {}, labels=("good",))
    assert Encoder(task, SMALL, room=64).encode(Example("x", "good")).ids == [
        *SMALL.encode("x"),
        *SMALL.encode(" good"),
    ]


def test_free_text_is_followed_by_the_end_of_text_and_may_follow_one() -> None:
    row = Encoder(written([ONE]), SMALL, room=64).encode(ONE)
    assert row.ids == [*SMALL.encode("the end"), SMALL.eot, *SMALL.encode("good"), SMALL.eot]
    assert row.target_starts == len(SMALL.encode("the end")) + 1


def test_an_end_of_text_inside_a_text_is_plain_text() -> None:
    row = Encoder(labelled(GOOD_BAD, []), SMALL, room=64).encode(Example("a<|endoftext|>b", "good"))
    assert SMALL.eot not in row.ids


def test_a_text_that_just_fits_is_taken_whole() -> None:
    needed = len(Encoder(labelled(GOOD_BAD, []), SMALL, room=64).encode(ONE).ids)
    assert len(Encoder(labelled(GOOD_BAD, []), SMALL, room=needed).encode(ONE).ids) == needed
    with pytest.raises(TooLong):
        Encoder(labelled(GOOD_BAD, []), SMALL, room=needed - 1).encode(ONE)


@pytest.mark.parametrize("task", [labelled(GOOD_BAD, []), written([])], ids=["labels", "text"])
def test_a_text_that_is_too_long_is_named(task: Task) -> None:
    example = Example("the end " * 20, "good", "line 7 of mine.tsv")
    needed = len(Encoder(task, SMALL, room=1000).encode(example).ids)
    sentence = f"line 7 of mine.tsv needs {needed} positions with its target, but the model and method leave 30; "
    with pytest.raises(TooLong, match=re.escape(sentence)):
        Encoder(task, SMALL, room=30).encode(example)
    with pytest.raises(TooLong, match=r"line 7 of mine\.tsv needs"):
        Encoder(task, SMALL, room=30).context(example)


def test_truncation_cuts_the_text_and_leaves_joint_and_label_whole() -> None:
    example = Example("the end " * 20, "good")
    encoder = Encoder(labelled(GOOD_BAD, []), SMALL, room=30, template="Review: {text} So:", truncate=True)
    row = encoder.encode(example)
    before, after, target = SMALL.encode("Review: "), SMALL.encode(" So:"), SMALL.encode(" of the")
    spare = 30 - len(before) - len(after) - len(target)
    assert row.ids == [*before, *SMALL.encode(example.text)[:spare], *after, *target]
    assert encoder.context(example) == row.ids[: row.target_starts]


def test_every_label_gets_the_same_context() -> None:
    """Else the labels would be compared behind different texts, and training would see another than evaluation."""
    words = {"short": " the", "long": " a great many words indeed"}
    encoder = Encoder(labelled(words, []), SMALL, room=40, truncate=True)
    contexts = []
    for label in words:
        row = encoder.encode(Example("the end " * 20, label))
        contexts.append(row.ids[: row.target_starts])
    assert contexts[0] == contexts[1] == encoder.context(Example("the end " * 20, "short"))
    assert contexts[0] == encoder.context(Example("the end " * 20, ""))  # and whoever's label is not known


def test_a_long_free_text_is_cut_to_the_room() -> None:
    encoder = Encoder(written([]), SMALL, room=30, truncate=True)
    row = encoder.encode(Example("the end " * 20, "so it goes " * 20))
    assert len(row.ids) == 30
    assert 10 <= row.target_starts <= 20  # neither side drives out the other
    assert row.ids[row.target_starts :] == SMALL.encode("so it goes " * 20)[: 30 - row.target_starts]


def test_a_template_that_leaves_no_room_is_refused_even_where_texts_are_cut() -> None:
    encoder = Encoder(labelled(GOOD_BAD, []), SMALL, room=30, template="word " * 40 + "{text}", truncate=True)
    with pytest.raises(TooLong, match=r"line 7 of mine\.tsv needs"):
        encoder.encode(ONE)


def test_a_batch_scores_the_targets_alone() -> None:
    encoder = Encoder(labelled(GOOD_BAD, []), SMALL, room=64)
    rows = [encoder.encode(Example(text, label)) for text, label in (("a", "good"), ("the end of it", "bad"))]
    batch = collate(rows, filler=9)
    longest = max(len(row.ids) for row in rows)
    assert batch.tokens.shape == batch.labels.shape == batch.attention_mask.shape == (2, longest)
    for i, row in enumerate(rows):
        n, start = len(row.ids), row.target_starts
        rest = longest - n
        assert batch.tokens[i].tolist() == row.ids + [9] * rest
        assert batch.labels[i].tolist() == [-100] * start + row.ids[start:] + [-100] * rest
        assert batch.attention_mask[i].tolist() == [True] * n + [False] * rest


@pytest.mark.parametrize(
    ("method", "room"), [(SoftPrompt(length=5), 27), (Prefix(length=6, reparam=None), 26), (HardPrompt("x {text}"), 32)]
)
def test_a_prompt_or_prefix_takes_its_positions_from_the_text(method: Method, room: int) -> None:
    tuned = attach(random_model(vocab_size=512), method)
    assert encoder_for(tuned, written([])).room == room


# --- scores

LABELS: dict[str, dict[str, str]] = {
    "one token": {"good": " the", "bad": " and", "so": " of"},
    "many tokens": {"good": " good", "bad": " terrible"},
    "mixed": {"good": " the", "bad": " terrible", "so": " and"},
    "one begins another": {"good": " the", "so": " the end", "bad": " and"},
}
METHODS: dict[str, Callable[[], Method]] = {
    "bare": HardPrompt,
    "hard prompt": lambda: HardPrompt("So: {text} It was"),
    "soft prompt": lambda: SoftPrompt(length=3, init="random"),
    "prefix": lambda: Prefix(length=4, reparam=None, init="vocab"),
}
TEXTS = ["a", "the end", "it was so good", "never", "and so on and on and on", "who", "an of"]


def tuned_model(method: str) -> Tuned:
    return attach(random_model(vocab_size=512, n_positions=64), METHODS[method]())


@torch.no_grad()
def log_probabilities(tuned: Tuned, context: list[int], target: list[int]) -> list[float]:
    """log p of each token of the target, one forward pass a row, nothing padded or shared."""
    logits = tuned(torch.tensor([[*context, *target]]))[0].double().log_softmax(dim=-1)
    return [float(logits[len(context) + i - 1, token]) for i, token in enumerate(target)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("words", LABELS)
def test_accuracy_and_loss_are_those_of_a_plain_loop(words: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minipeft.evaluate, "ROWS", 3)
    labels = list(LABELS[words])
    lengths = {len(SMALL.encode(word)) for word in LABELS[words].values()}
    mixed, end = 1 in lengths and len(lengths) > 1, [SMALL.eot] if words == "one begins another" else []
    kinds = {"one token": lengths == {1}, "many tokens": 1 not in lengths, "mixed": mixed, "one begins another": mixed}
    assert kinds[words]
    examples = [Example(text, labels[n % len(labels)]) for n, text in enumerate(TEXTS)]
    task, tuned = labelled(LABELS[words], examples), tuned_model(method)
    encoder = encoder_for(tuned, task)

    right, costs = 0, []
    for example in examples:
        context = encoder.context(example)
        by_label = {
            label: log_probabilities(tuned, context, [*SMALL.encode(word), *end])
            for label, word in LABELS[words].items()
        }
        right += max(by_label, key=lambda label: sum(by_label[label])) == example.target
        costs += [-value for value in by_label[example.target]]

    score = evaluate(tuned, encoder, examples)
    assert score.accuracy == pytest.approx(right / len(examples))
    assert score.loss == pytest.approx(sum(costs) / len(costs), rel=1e-5)  # fp32 sums
    assert score.examples == len(examples)


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_of_free_text_is_that_of_a_plain_loop(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minipeft.evaluate, "ROWS", 3)
    examples = [Example(text, TEXTS[-n]) for n, text in enumerate(TEXTS)]
    tuned = tuned_model(method)
    encoder = encoder_for(tuned, written(examples))
    costs = []
    for example in examples:
        context = encoder.encode(example).ids[: encoder.encode(example).target_starts]
        costs += [-v for v in log_probabilities(tuned, context, [*SMALL.encode(example.target), SMALL.eot])]
    score = evaluate(tuned, encoder, examples)
    assert score.loss == pytest.approx(sum(costs) / len(costs), rel=1e-5)  # fp32 sums
    assert score.accuracy != score.accuracy  # NaN: free text has none
    assert score.score == -score.loss


@pytest.mark.parametrize("kind", ["labels", "text"])
def test_evaluation_uses_no_dropout_and_leaves_the_mode_as_it_was(kind: str) -> None:
    model: GPT2 = random_model(vocab_size=512, n_positions=64, dropout=0.5).train()
    examples = [Example(text, "good") for text in TEXTS]
    task = labelled(GOOD_BAD, examples) if kind == "labels" else written(examples)
    tuned = attach(model, SoftPrompt(length=3)).train()
    scores = {evaluate(tuned, encoder_for(tuned, task), examples).loss for _ in range(3)}
    assert len(scores) == 1
    assert tuned.training


def test_accuracy_counts_first_and_loss_breaks_ties() -> None:
    from minipeft.evaluate import Score

    better, worse = Score(0.5, 100, 0.61), Score(0.1, 100, 0.60)
    assert better.score > worse.score
    assert Score(0.1, 100, 0.6).score > Score(0.2, 100, 0.6).score


def test_the_majority_class_is_that_of_the_training_split() -> None:
    def some(*labels: str) -> tuple[Example, ...]:
        return tuple(Example("x", label) for label in labels)

    task = Task("made", {"train": some("a", "b", "b"), "dev": some("a"), "test": some("a", "a", "a", "b")}, ("a", "b"))
    score = majority(task, "test")
    assert (score.accuracy, score.examples) == (0.25, 4)
    assert score.standard_error == pytest.approx((0.25 * 0.75 / 4) ** 0.5)


def test_a_folder_has_a_file_for_each_split_and_columns_may_be_numbered(tmp_path: Path) -> None:
    for split, rows in {"train": 6, "dev": 2, "test": 4}.items():
        lines = (f"a text of {split}, number {row}\t{row % 2}\n" for row in range(rows))
        (tmp_path / f"{split}.tsv").write_text("".join(lines), encoding="utf-8")
    task = task_from_file(tmp_path, "1", "2")
    assert {split: len(examples) for split, examples in task.splits.items()} == {"train": 6, "dev": 2, "test": 4}
    assert task.labels == ("0", "1")
    assert task.splits["dev"][1] == Example("a text of dev, number 1", "1", f"line 2 of {tmp_path / 'dev.tsv'}")
    (tmp_path / "dev.csv").write_text("a,b\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"has dev.csv and dev.tsv for the dev split; it needs one, such as dev.tsv"):
        task_from_file(tmp_path, "1", "2")


def test_a_header_in_every_file_is_no_row(tmp_path: Path) -> None:
    for split in SPLITS:
        (tmp_path / f"{split}.tsv").write_text(f"sentence\tlabel\none of {split}\t0\ntwo of {split}\t1\n")
    with pytest.raises(DataError, match=r"all begin with the row sentence, label; if it is their header, name"):
        task_from_file(tmp_path, "1", "2")
    assert task_from_file(tmp_path, "sentence", "label", "labels").labels == ("0", "1")


def test_texts_that_are_learned_from_and_measured_on_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, "split": ("train", "dev", "test")[n // 2 % 3]} for n, row in enumerate(few_rows())]
    task_from_file(write(tmp_path / "mine.csv", rows), *COLUMNS)
    assert capsys.readouterr().err == ""
    known = [{**row, "split": "test"} for row in rows if row["split"] == "train"][:5]
    task_from_file(write(tmp_path / "mine.csv", rows + known), *COLUMNS)
    assert "5 of 17 test texts of" in capsys.readouterr().err


def test_texts_of_any_script_are_spread_over_the_splits(tmp_path: Path) -> None:
    """Though all of them hold the same Latin word."""
    rows = [
        {"text": f"SMS {'абвгд'[n % 5]}{'ежзик'[n // 5 % 5]}{'лмноп'[n // 25]}", "label": "yn"[n % 2]}
        for n in range(120)
    ]
    task = task_from_file(write(tmp_path / "mine.tsv", rows), *COLUMNS)
    assert 60 < len(task.splits["train"]) < 108


def test_a_header_may_have_numbers_for_names(tmp_path: Path) -> None:
    rows = (f"a text of {split}, number {row},{row % 2},{split}" for split in SPLITS for row in range(4))
    (tmp_path / "years.csv").write_text("\n".join(["2018,2019,split", *(row.replace(",", ";", 1) for row in rows)]))
    task = task_from_file(tmp_path / "years.csv", "2018", "2019")
    assert task.splits["train"][0].text == "a text of train; number 0"
    assert task.labels == ("0", "1")


@pytest.mark.skipif("MINIPEFT_DATA" not in os.environ, reason="needs the E2E archive: name its folder by MINIPEFT_DATA")
def test_e2e_has_the_published_sizes_and_every_reference() -> None:
    task = open_task("e2e")
    assert {split: len(rows) for split, rows in task.splits.items()} == {"train": 42061, "dev": 547, "test": 4693}
    assert len({row.text for row in task.splits["test"]}) == 630
    assert len({row.text for row in task.splits["dev"]}) == 547


def test_an_archive_that_is_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "e2e_nlg").mkdir()
    (tmp_path / "e2e_nlg" / "e2e-dataset.zip").write_bytes(b"no zip")
    monkeypatch.setenv("MINIPEFT_DATA", str(tmp_path))
    e2e.cache_clear()
    with pytest.raises(DataError, match=r"e2e-dataset.zip is not the E2E archive"):
        e2e()


def test_texts_of_a_kind_are_those_that_people_rated() -> None:
    movie, positive, negative = open_task("movie"), open_task("positive"), open_task("negative")
    for split in ("train", "dev", "test"):
        assert len(positive.splits[split]) + len(negative.splits[split]) == len(movie.splits[split])
        assert {row.text for row in positive.splits[split]} == {""}
    assert len(open_task("tweets").splits["test"]) > len(open_task("tweet").splits["test"])  # the unclear ones, too
    with pytest.raises(ValueError, match="there is no task 'film'; there are movie, product"):
        open_task("film")
