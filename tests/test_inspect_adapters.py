"""What is in an adapter, as tables: its tensors, and what they do to a model."""

import math
from pathlib import Path

import pytest
import torch

import minipeft as mp
from minipeft.inspect import adapter_tables, attention_mass, finding, mass_table, nearest_tokens
from minipeft.inspect.adapter import NEAREST
from minipeft.methods import Method
from minipeft.plots import head_map
from tests.models import farthest, random_model, random_tokens, shake
from tests.test_inspect import as_text, cells
from tests.tuning import TINY_METHODS

ROUNDING = 1e-5
"""fp32, a sum of 32 terms that is 1."""


@torch.no_grad()
def prompt_of(ids: list[int], model: mp.GPT2, scale: float = 1.0) -> mp.Tuned:
    """A soft prompt that holds these tokens' embeddings."""
    tuned = mp.attach(model, mp.SoftPrompt(len(ids), init="random"))
    tuned.attachment.load_adapter_tensors({"prompt_embeddings": scale * model.wte.weight[ids]})
    return tuned


@pytest.mark.parametrize("scale", [1.0, 0.01, 30.0])
def test_a_prompt_of_tokens_is_nearest_to_these_tokens(scale: float) -> None:
    model = random_model(vocab_size=512)
    ids = [261, 7, 300, 511]
    found = nearest_tokens(prompt_of(ids, model, scale))
    assert [row[0][0] for row in found] == [model.tokenizer.decode([i]) for i in ids]
    assert [row[0][1] for row in found] == pytest.approx([1.0] * 4, abs=ROUNDING)


def test_the_nearest_tokens_are_those_of_the_highest_cosine() -> None:
    model = random_model(vocab_size=512)
    tuned = mp.attach(model, mp.SoftPrompt(3, init="random"))
    vectors, tokens = tuned.attachment.prompt_embeddings.detach().double(), model.wte.weight.detach().double()
    for vector, row in zip(vectors, nearest_tokens(tuned, count=4), strict=True):
        cosines = [float(vector @ token / vector.norm() / token.norm()) for token in tokens]
        best = sorted(range(len(cosines)), key=lambda i: -cosines[i])[:4]
        assert [text for text, _ in row] == [model.tokenizer.decode([i]) for i in best]
        assert [cosine for _, cosine in row] == pytest.approx([cosines[i] for i in best], abs=ROUNDING)


def test_the_nearest_table_shows_a_row_for_every_vector() -> None:
    model = random_model(vocab_size=512)
    summary, nearest = adapter_tables(prompt_of([261, 7], model))
    assert summary.row_count == 1
    assert "soft_prompt (PROMPT_TUNING), 64 numbers" in as_text(summary)
    assert "prompt_embeddings" in as_text(summary)
    assert "(2, 32)" in as_text(summary)
    assert nearest.row_count == 2
    for number, token in enumerate((261, 7), start=1):
        text = model.tokenizer.decode([token])
        length = float(model.wte.weight[token].norm())
        assert any(line.split()[1:3] == [str(number), "│"] for line in as_text(nearest).splitlines())
        assert f"{length:.2f} │ {text!r} 1.00" in as_text(nearest)
    assert as_text(nearest).count("'") >= 2 * 2 * NEAREST - 2


def test_tokens_with_square_brackets_are_shown_as_they_are() -> None:
    model = random_model(vocab_size=50257, n_embd=8)
    (opening,), (closing,) = model.tokenizer.encode("[/"), model.tokenizer.encode("]")
    with torch.no_grad():
        model.wte.weight[closing] = model.wte.weight[opening] + 0.001
    shown = as_text(adapter_tables(prompt_of([opening], model))[1])
    assert "'[/' 1.00  ']' 1.00" in shown


@pytest.mark.parametrize(
    ("method", "title", "names"),
    [
        (mp.Prefix(3, reparam=None), "prefix (PREFIX_TUNING), 384 numbers", {"prompt_embeddings": "(3, 128)"}),
        (mp.Prefix(3, reparam=8), "prefix (PREFIX_TUNING), 384 numbers", {"prompt_embeddings": "(3, 128)"}),
        (mp.HardPrompt("{text}"), "hard_prompt (HARD_PROMPT), 0 numbers", {}),
        (
            mp.FullFinetuning(top_layers=1),
            "full (FULL), 12,768 numbers",
            {"ln_f.weight": "(32,)", "h.1.attn.c_attn.weight": "(96, 32)"},
        ),
    ],
)
def test_the_table_of_an_adapter_names_its_tensors(method: Method, title: str, names: dict[str, str]) -> None:
    table, *_ = adapter_tables(mp.attach(random_model(), method), every=True)
    shown = as_text(table)
    assert title in shown
    for name, shape in names.items():
        (line,) = (line for line in shown.splitlines() if f" {name} " in line)
        assert shape in line


def test_the_table_of_an_adapter_shows_mean_and_standard_deviation() -> None:
    tuned = mp.attach(random_model(), mp.Prefix(2, reparam=None))
    tuned.attachment.load_adapter_tensors({"prompt_embeddings": torch.tensor([1.0, 4.0])[:, None].expand(2, 128)})
    table, *_ = adapter_tables(tuned)
    assert "2.5000 │             1.5029" in as_text(table)  # 1.5 · √(256 / 255)


def shaken(kind: str, **shape: int) -> mp.Tuned:
    tuned = mp.attach(random_model(**shape), TINY_METHODS[kind]).eval()
    shake(torch.nn.ParameterList(tuned.trainable_parameters().values()), seed=3)
    return tuned


def titles(tuned: mp.Tuned) -> list[str]:
    return [str(table.title).split(";")[0].split(",")[0] for table in adapter_tables(tuned)[1:]]


@pytest.mark.parametrize("kind", TINY_METHODS)
def test_every_kind_is_shown_as_trained_and_as_loaded(kind: str, tmp_path: Path) -> None:
    tuned = shaken(kind, vocab_size=512)
    tuned.save(tmp_path)
    loaded = mp.load(tmp_path, tuned.base)
    for one in (tuned, loaded):
        rows = cells(adapter_tables(one)[0])
        assert sum(int(row[1].removesuffix("×")) for row in rows) == len(tuned.attachment.adapter_tensors())
        assert len(cells(adapter_tables(one, every=True)[0])) == len(tuned.attachment.adapter_tensors())
    expected = {
        "soft prompt": ["nearest tokens (cosine)"],
        "P-tuning": ["nearest tokens (cosine)"],
        "prefix": ["mean length of a head's keys and values"],
        "adapters": ["adapters"],
        "LLaMA": ["how far gates are open (closed: 0)"],
        "soft prompt on a LoRA": ["nearest tokens (cosine)"],
        "LoRA, IA3 and adapters": ["adapters"],
    }
    by_name = [wanted for name, wanted in expected.items() if kind.startswith(name)]
    assert titles(tuned) == titles(loaded) == (by_name[-1] if by_name else ["how far weights are moved"])


def test_what_blocks_have_alike_is_one_row() -> None:
    rows = cells(adapter_tables(shaken("LoRA"))[0])
    assert ["h.*.attn.c_attn.lora_A.weight", "2 ×", "(2, 32)"] in [row[:3] for row in rows]
    rows = cells(adapter_tables(shaken("LoRA"), every=True)[0])
    assert ["h.1.attn.c_attn.lora_A.weight", "1 ×", "(2, 32)"] in [row[:3] for row in rows]


@pytest.mark.parametrize("kind", ["LoRA", "IA3", "BitFit", "full", "last block"])
@torch.no_grad()
def test_how_far_weights_are_moved(kind: str) -> None:
    tuned = shaken(kind)
    assert len(adapter_tables(mp.attach(random_model(), TINY_METHODS[kind]))) == 1  # a new one moves nothing
    before, after = (dict(model.named_parameters()) for model in (tuned.base, tuned.merge()))
    moved = {name: float((after[name] - before[name]).norm() / before[name].norm()) for name in before}
    rows = {row[0]: row[1:] for row in cells(adapter_tables(tuned)[1])}
    for name, share in moved.items():
        weight = name.replace("h.0.", "h.*.").replace("h.1.", "h.*.")
        both = [moved[weight.replace("*", layer)] for layer in "01"] if "*" in weight else [share]
        assert (weight in rows) == any(both)
        if any(both):
            least, most = (f"{found:.1%}" for found in (min(both), max(both)))
            assert rows[weight][0] == f"{sum(both) / len(both):.1%}"
            assert rows[weight][1].startswith(least)
            assert rows[weight][2].startswith(most)


def test_weights_that_were_zero_have_moved_without_measure_or_not_at_all() -> None:
    model = mp.GPT2(random_model().config, seed=0)  # all biases are 0
    tuned = mp.attach(model, mp.LoRA(rank=2))
    shake(tuned.attachment, seed=3)
    assert [row[0] for row in cells(adapter_tables(tuned)[1])] == ["h.*.attn.c_attn.weight"]
    tuned = mp.attach(model, mp.BitFit())
    shake(tuned.attachment, seed=3)
    assert {row[1] for row in cells(adapter_tables(tuned)[1])} == {"inf%"}


@torch.no_grad()
def test_keys_and_values_of_a_prefix_have_the_lengths_shown() -> None:
    tuned = mp.attach(random_model(), mp.Prefix(3, None))
    flat = torch.zeros(3, 2, 2, 2, 16)  # [P, L, key or value, H, Dh]
    for layer, length in enumerate((0.5, 2.0)):
        flat[:, layer, 0, :, 4], flat[:, layer, 1, :, 7] = length, 3 * length
    tuned.attachment.load_adapter_tensors({"prompt_embeddings": flat.flatten(1)})
    assert cells(adapter_tables(tuned)[1]) == [["h.0", "0.50", "1.50"], ["h.1", "2.00", "6.00"]]


@torch.no_grad()
def test_gates_are_shown_as_far_as_they_are_open() -> None:
    tuned = mp.attach(random_model(), mp.LlamaAdapter(3, top_layers=1))
    (gate,) = (p for name, p in tuned.trainable_parameters().items() if "gate" in name)
    gate.copy_(torch.tensor([0.5, -1.0]))
    least, most = math.tanh(-1.0), math.tanh(0.5)
    assert cells(adapter_tables(tuned)[1]) == [["h.1", f"{(least + most) / 2:.3f}", f"{least:.3f}", f"{most:.3f}"]]


# -- attention --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["prefix", "soft prompt", "P-tuning by MLP", "soft prompt on a LoRA"])
@torch.no_grad()
def test_the_mass_is_that_of_a_softmax_written_out(kind: str) -> None:
    """Query by query in plain numbers, from the keys that reach each block."""
    tuned, tokens = shaken(kind), random_tokens(1, 6)
    P, found, seen = 4, attention_mass(tuned, tokens), []
    for block in tuned.model.blocks:
        block.attn.register_forward_pre_hook(lambda attention, inputs: seen.append((attention, inputs[0])))
    tuned(tokens)
    for layer, (attention, x) in enumerate(seen):
        q, k, _ = (part.unflatten(-1, (2, 16))[0].double() for part in attention.c_attn(x).chunk(3, dim=-1))
        if (memory := tuned.doors().memory) is not None:
            k = torch.cat([memory.keys[layer, 0].transpose(0, 1).double(), k])
        for head in range(2):
            shares = []
            for t in range(6):
                query = q[len(q) - 6 + t, head]
                scores = [math.exp(float(query @ k[s, head]) / 4) for s in range(P + t + 1)]  # √Dh = 4
                shares.append(sum(scores[:P]) / sum(scores))
            assert float(found[layer, head]) == pytest.approx(sum(shares) / 6, abs=1e-5)  # fp32


@torch.no_grad()
def test_a_compiled_prompt_draws_what_the_prompt_drew() -> None:
    tuned, tokens = shaken("soft prompt"), random_tokens(1, 6)
    assert farthest(attention_mass(tuned.compile(), tokens), attention_mass(tuned, tokens)) < 1e-5  # fp32


@pytest.mark.parametrize("training", [True, False])
def test_looking_changes_nothing(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned, tokens = shaken("prefix").train(training), random_tokens(1, 6)
    attends = [block.attn.attend for block in tuned.model.blocks]
    attention_mass(tuned, tokens)
    assert tuned.training is training
    with pytest.raises(ValueError, match="positions, but this model has 32"):
        attention_mass(tuned, random_tokens(1, 30))
    assert [block.attn.attend for block in tuned.model.blocks] == attends
    assert tuned.training is training


@pytest.mark.parametrize("kind", ["LoRA", "full"])
def test_what_puts_nothing_before_the_text_has_no_mass(kind: str) -> None:
    with pytest.raises(ValueError, match="puts nothing before the text, so no attention goes there"):
        attention_mass(shaken(kind), random_tokens(1, 6))


def test_the_finding_is_what_the_table_shows(tmp_path: Path) -> None:
    mass = torch.tensor([[0.1, 0.2, 0.3], [0.5, 0.7, 0.3]])
    assert finding(mass, "prefix") == "The prefix draws 35 % of the attention; in h.1, where it is most, 50 %"
    rows = cells(mass_table(mass))
    assert rows[:2] == [["h.0", "20.0%", "10.0% (0)", "30.0% (2)"], ["h.1", "50.0%", "30.0% (2)", "70.0% (1)"]]
    assert rows[-1][:2] == ["all", "35.0%"]
    (tmp_path / "map.png").write_bytes(b"old")
    head_map(mass, finding(mass, "prefix"), "a text", tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
