"""Prompts of many tasks in one batch: each row gets what it gets alone, whatever stands beside it."""

import itertools
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import minipeft as mp
from minipeft.bank import INDEX_FILE, PROMPTS_FILE, PromptBank
from minipeft.generate import generate
from minipeft.methods import Method
from minipeft.sampling import Sampling
from minipeft.tuned import Tuned
from tests.models import farthest, ragged, random_model, random_tokens, shake

LIVELY = 1
METHODS: dict[str, Method] = {
    "soft": mp.SoftPrompt(5, "random"),
    "prefix": mp.Prefix(3, None),
    "mlp": mp.Prefix(7, 16),
    "lstm": mp.PTuning(4),
    "twin": mp.Prefix(3, None),
}


def tuned_models(model: mp.GPT2) -> dict[str, Tuned]:
    found = {}
    for seed, (task, method) in enumerate(METHODS.items()):
        found[task] = mp.attach(model, method, seed=seed)
        shake(torch.nn.ParameterList(found[task].trainable_parameters().values()), seed, std=0.5)
        found[task].eval()
    return found


@pytest.fixture
def model() -> mp.GPT2:
    return random_model(LIVELY)


@pytest.fixture
def tuned(model: mp.GPT2) -> dict[str, Tuned]:
    return tuned_models(model)


@pytest.fixture
def bank(model: mp.GPT2, tuned: dict[str, Tuned]) -> PromptBank:
    bank = PromptBank(model)
    for task, one in tuned.items():
        bank.add(task, one)
    return bank


MIXES = [
    [None, "soft", "prefix", "mlp", "lstm", None],
    ["prefix", "twin"],
    ["soft", "soft", "soft"],
    ["mlp"],
    [None, None],
    ["twin", None, "mlp"],
]


@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: "-".join(map(str, mix)))
@pytest.mark.parametrize("side", ["left", "right", None])
def test_a_row_of_a_mixed_batch_has_the_logits_that_it_has_alone(
    mix: list[str | None], side: str | None, model: mp.GPT2, tuned: dict[str, Tuned], bank: PromptBank
) -> None:
    lengths = [9, 3, 6, 1, 7, 4][: len(mix)] if side else [6] * len(mix)
    batch = ragged(lengths, side or "left")
    with torch.no_grad():
        together = bank(batch.tokens, mix, batch.mask if side else None)
        for row, task, found in zip(batch.rows, mix, batch.unpadded(together), strict=True):
            alone = (tuned[task] if task else model)(row[None])[0]
            assert farthest(found, alone) < 1e-4  # DESIGN's bound in fp32; sums in another order give 1e-6


@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: "-".join(map(str, mix)))
def test_a_row_of_a_mixed_batch_writes_what_it_writes_alone(
    mix: list[str | None], model: mp.GPT2, tuned: dict[str, Tuned], bank: PromptBank
) -> None:
    rows = [row.tolist() for row in ragged([9, 3, 6, 1, 7, 4][: len(mix)], "left").rows]
    found = bank.generate(rows, mix, max_new_tokens=12)
    alone = [
        tuned[task].generate(row, 12) if task else generate(model, row, Sampling(12))
        for row, task in zip(rows, mix, strict=True)
    ]
    assert found == alone
    drawn = [Sampling(12, temperature=1.0, seed=row) for row in range(len(mix))]
    together = bank.generate(rows, mix, sampling=drawn)
    assert together == [
        bank.generate([row], [task], sampling=[one])[0] for row, task, one in zip(rows, mix, drawn, strict=True)
    ]


def test_beams_of_a_mixed_batch_are_those_of_each_row(tuned: dict[str, Tuned], bank: PromptBank) -> None:
    rows, mix = [[5, 1], [3, 3, 3], [9]], ["soft", "mlp", "prefix"]
    found = bank.generate(rows, mix, max_new_tokens=8, beams=3)
    assert found == [tuned[task].generate(row, 8, beams=3) for row, task in zip(rows, mix, strict=True)]


def test_half_precision_rows_are_near_what_they_are_alone(model: mp.GPT2, bank: PromptBank) -> None:
    half = random_model(LIVELY).to(torch.bfloat16)
    rough = PromptBank(half)
    for task in METHODS:
        rough.add(task, mp.attach(half, mp.Prefix(3, None), seed=4))
    tokens = random_tokens(3, 8)
    with torch.no_grad():
        together = rough(tokens, ["soft", None, "mlp"]).float()
        alone = torch.cat([rough(tokens[:1], ["soft"]), half(tokens[1:2]), rough(tokens[2:], ["mlp"])]).float()
    assert farthest(together, alone) < 0.05  # logits of about 1, of which bfloat16 keeps 2**-8


def test_streamed_text_is_what_a_batch_writes() -> None:
    model = random_model(LIVELY, vocab_size=512, n_positions=64)
    bank = PromptBank(model)
    bank.add("soft", mp.attach(model, mp.SoftPrompt(5, "random")))
    bank.add("longer", mp.attach(model, mp.SoftPrompt(9, "random")))
    together = bank.generate(["Once", "naïve", "a"], ["soft", None, "longer"], max_new_tokens=10)
    for text, task, whole in zip(("Once", "naïve", "a"), ("soft", None, "longer"), together, strict=True):
        assert text + "".join(bank.stream(text, task, 10)) == whole
        assert bank.generate(text, [task], 10) == whole


def test_rows_come_with_their_log_probabilities(bank: PromptBank, tuned: dict[str, Tuned]) -> None:
    (row,) = bank.write([[5, 1]], ["soft"], max_new_tokens=6, log_probabilities=True)
    text = torch.tensor([[5, 1, *row.new]])
    scored = tuned["soft"](text)[0, 1:-1].log_softmax(dim=-1).gather(1, text[0, 2:, None])[:, 0]
    assert row.log_probabilities == pytest.approx(scored.tolist(), abs=1e-5)


def test_prompts_come_go_and_change_names(model: mp.GPT2, tuned: dict[str, Tuned], bank: PromptBank) -> None:
    row = [5, 1, 7]
    before = bank.generate(row, ["soft"], 8)
    bank.rename("soft", "new name")
    assert list(bank) == ["new name", "prefix", "mlp", "lstm", "twin"]
    assert bank.generate(row, ["new name"], 8) == before
    bank.remove("prefix")
    assert ("prefix" in bank, len(bank)) == (False, 4)
    with pytest.raises(ValueError, match="there is no prompt for 'prefix' in this bank; it holds new name, mlp, lstm"):
        bank.generate(row, ["prefix"], 8)
    bank.add("prefix", tuned["prefix"])
    assert bank.generate(row, ["prefix"], 8) == tuned["prefix"].generate(row, 8)


def test_what_is_held_is_told(bank: PromptBank) -> None:
    told = {held.task: (held.method, held.length, held.nbytes) for held in bank.list()}
    a_vector = 2 * 2 * 32 * 4  # keys and values, two layers, 32 wide, fp32
    assert told == {
        "soft": ("soft_prompt", 5, 5 * a_vector),
        "prefix": ("prefix", 3, 3 * a_vector),
        "mlp": ("prefix", 7, 7 * a_vector),
        "lstm": ("p_tuning", 4, 4 * a_vector),
        "twin": ("prefix", 3, 3 * a_vector),
    }
    assert bank.nbytes == 22 * a_vector


def test_a_later_change_of_the_tuned_model_changes_nothing(
    model: mp.GPT2, bank: PromptBank, tuned: dict[str, Tuned]
) -> None:
    before = bank.generate([5, 1], ["prefix"], 8)
    shake(torch.nn.ParameterList(tuned["prefix"].trainable_parameters().values()), 9, std=1.0)
    assert bank.generate([5, 1], ["prefix"], 8) == before
    assert tuned["prefix"].generate([5, 1], 8) != before


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = random_model(LIVELY)
    wants = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    mp.attach(random_model(LIVELY), mp.SoftPrompt(3, "random")).save(tmp_path)
    bank = PromptBank(model)
    bank.add("one", tmp_path)
    mp.attach(random_model(LIVELY), mp.LoRA()).save(tmp_path / "lora")
    with pytest.raises(ValueError, match="lora uses neither"):
        bank.add("two", tmp_path / "lora")
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == wants


def test_a_prompt_in_training_goes_on_with_being_trained() -> None:
    model = random_model(LIVELY).train()
    tuned = mp.attach(model, mp.SoftPrompt(3, "random")).train()
    PromptBank(model).add("one", tuned)
    assert all(module.training for module in (*tuned.modules(), *model.modules()))


def test_a_loaded_bank_serves_what_it_was_loaded_with(tmp_path: Path, model: mp.GPT2, bank: PromptBank) -> None:
    """Whatever is written into its folder later, though nothing was read before."""
    bank.save(tmp_path)
    loaded, name = PromptBank.load(tmp_path, model), next(iter(bank))
    other = PromptBank.load(tmp_path, model)
    other.remove(name)
    other.save(tmp_path)
    for task in bank:
        assert torch.equal(loaded(torch.tensor([[5, 1]]), [task]), bank(torch.tensor([[5, 1]]), [task]))


def test_settings_of_rows_are_all_settings(bank: PromptBank) -> None:
    with pytest.raises(ValueError, match="give no others beside it"):
        bank.generate([[5, 1]], [None], 3, sampling=[mp.Sampling(9)])


def test_a_bank_is_saved_and_loaded(tmp_path: Path, model: mp.GPT2, bank: PromptBank) -> None:
    rows, mix = [[5, 1], [9], [2, 2]], ["mlp", None, "soft"]
    before = bank.generate(rows, mix, 10)
    bank.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {INDEX_FILE, PROMPTS_FILE}
    loaded = PromptBank.load(tmp_path, model)
    assert loaded.generate(rows, mix, 10) == before
    assert [(h.task, h.method, h.length, h.nbytes) for h in loaded.list()] == [
        (h.task, h.method, h.length, h.nbytes) for h in bank.list()
    ]
    loaded.rename("mlp", "other")
    loaded.remove("soft")
    loaded.save(tmp_path)  # over the file that it reads from
    assert loaded.generate(rows[:1], ["other"], 10) == before[:1]
    again = PromptBank.load(tmp_path, model)
    assert list(again) == ["prefix", "other", "lstm", "twin"] or list(again) == ["other", "prefix", "lstm", "twin"]
    assert again.generate(rows[:1], ["other"], 10) == before[:1]


def test_peft_s_adapters_go_in(tmp_path: Path) -> None:
    from peft import PrefixTuningConfig, PromptTuningConfig, TaskType, get_peft_model

    from tests.models import twins

    ours, theirs = twins(tmp_path / "model", LIVELY)
    bank, tokens = PromptBank(ours), random_tokens(2, 6)
    expected = []
    for number, kind in enumerate((PromptTuningConfig, PrefixTuningConfig)):
        peer = get_peft_model(theirs, kind(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=4))
        shake(torch.nn.ParameterList([p for p in peer.parameters() if p.requires_grad]), 5, std=0.5)
        peer.save_pretrained(tmp_path / kind.__name__)
        expected.append(peer.eval()(input_ids=tokens[number : number + 1]).logits[0, -6:].detach())
        bank.add(kind.__name__, tmp_path / kind.__name__)
    found = bank(tokens, list(bank))
    assert all(farthest(own, one) < 1e-4 for own, one in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("add", "said"),
    [
        (lambda bank, other: bank.add("soft", other), "this bank holds a prompt for 'soft' already"),
        (lambda bank, other: bank.add("", other), "a prompt's name must be a text that is not empty, got ''"),
        (lambda bank, other: bank.add("new", other), "'new' was tuned on another model than this bank's"),
        (lambda bank, other: bank.add("lora", mp.attach(bank.model, mp.LoRA())), "lora uses neither the input nor"),
        (lambda bank, other: bank.rename("soft", "mlp"), "this bank holds a prompt for 'mlp' already"),
        (lambda bank, other: bank.rename("nope", "mine"), "there is no prompt for 'nope' in this bank"),
        (lambda bank, other: bank.remove("nope"), "there is no prompt for 'nope' in this bank; it holds soft, prefix"),
        (lambda bank, other: bank(random_tokens(2, 3), ["soft"]), "there are 1 tasks for 2 rows"),
        (lambda bank, other: bank.generate([[1], [2]], ["soft"]), "there are 1 tasks for 2 rows"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(add: Any, said: str, bank: PromptBank) -> None:
    before = list(bank)
    with pytest.raises(ValueError, match=said):
        add(bank, mp.attach(random_model(seed=3), mp.SoftPrompt(3, "random")))
    assert list(bank) == before


def test_too_long_a_row_is_refused_by_its_own_length(bank: PromptBank) -> None:
    fits = [random_tokens(20, seed=1).tolist(), random_tokens(25, seed=2).tolist()]
    assert len(bank.generate(fits, ["mlp", None], 6)) == 2  # 7 + 20 + 5 and 25 + 5 of 32
    with pytest.raises(ValueError, match="7 positions of the adapter \\+ 25 of the text \\+ 6 new tokens do not fit"):
        bank.generate(fits, [None, "mlp"], 6)


def spoil_index(folder: Path, text: str) -> None:
    (folder / INDEX_FILE).write_text(text)


SPOILED: dict[str, tuple[Any, str]] = {
    "no index": (lambda folder: (folder / INDEX_FILE).unlink(), "there is no file"),
    "no prompts": (lambda folder: (folder / PROMPTS_FILE).unlink(), "there is no file"),
    "half a file": (
        lambda folder: (folder / PROMPTS_FILE).write_bytes((folder / PROMPTS_FILE).read_bytes()[:-9]),
        "is no whole safetensors file",
    ),
    "junk": (lambda folder: spoil_index(folder, "{"), "is not JSON"),
    "another's": (lambda folder: spoil_index(folder, '{"a": 1}'), "is no index of a bank, or a damaged one"),
    "later": (lambda folder: spoil_index(folder, '{"minipeft_bank": 2, "prompts": []}'), "is of a later kind"),
    "empty": (lambda folder: spoil_index(folder, '{"minipeft_bank": 1, "prompts": []}'), "has unexpected keys 0000000"),
    "wrong kinds": (
        lambda folder: spoil_index(folder, '{"minipeft_bank": 1, "prompts": [{"task": 3}]}'),
        "is no index of a bank",
    ),
}


@pytest.mark.parametrize("how", SPOILED)
def test_damaged_files_are_refused(how: str, tmp_path: Path, model: mp.GPT2, bank: PromptBank) -> None:
    bank.save(tmp_path)
    spoil, said = SPOILED[how]
    spoil(tmp_path)
    with pytest.raises((mp.CheckpointError, FileNotFoundError), match=said):
        PromptBank.load(tmp_path, model)


def test_another_model_s_bank_is_refused(tmp_path: Path, bank: PromptBank) -> None:
    bank.save(tmp_path)
    with pytest.raises(mp.CheckpointError, match="made for another model of the same shape"):
        PromptBank.load(tmp_path, random_model(seed=4))


def test_a_prompt_that_is_no_number_is_refused_when_it_is_read(tmp_path: Path, model: mp.GPT2) -> None:
    bank, broken = PromptBank(model), mp.attach(model, mp.Prefix(2, None))
    with torch.no_grad():
        next(iter(broken.trainable_parameters().values()))[0, 0] = torch.nan
    bank.add("broken", broken)
    bank.save(tmp_path)
    with pytest.raises(mp.CheckpointError, match="broken holds NaN or infinity"):
        PromptBank.load(tmp_path, model)(random_tokens(1, 3), ["broken"])


TEN_THOUSAND = """
import random, sys
from pathlib import Path
import minipeft as mp
from minipeft.bank import Held, PromptBank
from tests.models import random_model

def in_memory():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))  # what no file holds

model, folder, draw = random_model(n_embd=64), sys.argv[1], random.Random(0)
bank = PromptBank(model)
bank.add("task 0", mp.attach(model, mp.Prefix(20, None)))
(one,) = bank.list()
for number in range(1, 10_000):  # the same numbers, held once
    bank._held[f"task {number}"] = Held(f"task {number}", "prefix", 20, one.nbytes, one.stored)
bank.save(folder)
before = in_memory()
loaded = PromptBank.load(folder, model)
for _ in range(50):
    loaded.generate([[1, 2]] * 16, [f"task {draw.randrange(10_000)}" for _ in range(16)], 2)
print(len(loaded), loaded.nbytes, in_memory() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the resident set as Linux tells it")
def test_ten_thousand_prompts_stay_on_the_disk(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TEN_THOUSAND, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    held, nbytes, more = map(int, done.stdout.split())
    assert (held, nbytes) == (10_000, 10_000 * 20 * 2 * 2 * 64 * 4)
    assert nbytes > 200e6
    assert more < 60e6  # names and places, about 20 MB; no numbers


def test_a_soak_of_requests_with_prompts_coming_and_going() -> None:
    """Random tasks, lengths, settings and stops, checked row by row against the row alone."""
    model = random_model(LIVELY, vocab_size=512, n_positions=64)
    draw, bank, tuned = random.Random(0), PromptBank(model), {}
    names = itertools.count()
    sizes = []
    for request in range(60):
        if len(bank) < 6 or (len(bank) < 12 and draw.random() < 0.4):
            name = f"task {next(names)}"
            method = draw.choice([mp.SoftPrompt(draw.randint(1, 9), "random"), mp.Prefix(draw.randint(1, 9), None)])
            tuned[name] = mp.attach(model, method, seed=request)
            bank.add(name, tuned[name])
        elif draw.random() < 0.3:
            gone = draw.choice(list(bank))
            bank.remove(gone)
            tuned.pop(gone).detach()
        rows = draw.randint(1, 6)
        tasks = [draw.choice([None, *bank]) for _ in range(rows)]
        texts = ["".join(draw.choice("abc .") for _ in range(draw.randint(1, 12))) for _ in range(rows)]
        samplings = [
            Sampling(
                draw.randint(1, 15),
                temperature=draw.choice([0.0, 1.0]),
                seed=draw.randrange(1000),
                stop=draw.choice([(), ("a",), ("\n", "the")]),
                repetition_penalty=draw.choice([1.0, 1.2]),
            )
            for _ in range(rows)
        ]
        found = bank.generate(texts, tasks, sampling=samplings)
        for text, task, sampling, written in zip(texts, tasks, samplings, found, strict=True):
            alone = tuned[task].generate_with(text, sampling) if task else generate(model, text, sampling)
            assert written == alone
        sizes.append(len(bank))
    assert max(sizes) > min(sizes[5:])
