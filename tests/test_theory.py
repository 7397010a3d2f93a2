"""The scripts of docs/theory.md: the formulas hold on random models, and the page says what was measured."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import minipeft as mp
from minipeft.inspect.attention import attention_mass
from tests.models import farthest, random_model, random_tokens, shake

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "recipes"))

from attended import among_text, attended  # noqa: E402
from digit_tasks import SEPARATOR, TASKS, right, texts  # noqa: E402
from reading import states_from  # noqa: E402
from theory_compile import exact_direction, first_layer_missing, kl  # noqa: E402
from theory_gated_sum import gated_sums  # noqa: E402

EVERYWHERE = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
METHODS = {
    "prefix": mp.Prefix(5, reparam=None),
    "soft prompt": mp.SoftPrompt(5, init="random"),
    "LoRA": mp.LoRA(rank=1, targets=EVERYWHERE),
}


def shaken(method: mp.methods.Method, seed: int = 3, std: float = 0.5, attention: str = "fused") -> mp.Tuned:
    """A method on a random model, away from where it starts."""
    tuned = mp.attach(random_model(attention=attention), method).eval()
    shake(tuned.attachment, seed, std)
    return tuned


@pytest.mark.parametrize("attention", ["explicit", "fused"])
def test_attention_with_a_prefix_is_a_gated_sum(attention: str) -> None:
    tuned, tokens = shaken(METHODS["prefix"], std=2, attention=attention), random_tokens(3, 9)
    layers = gated_sums(tuned, tokens)
    assert len(layers) == 2
    for error, gate in layers:
        assert float(error.abs().max()) < 1e-5  # a few roundings of numbers of about 1
        assert 0.05 < float(gate.mean()) < 0.95  # neither part is nothing
    told = attention_mass(tuned, tokens)
    assert farthest(torch.stack([gate.mean(dim=(0, 2)) for _, gate in layers]), told) < 1e-5


def test_the_prefix_is_a_large_part_of_that_sum() -> None:
    tuned, tokens = shaken(METHODS["prefix"], std=2), random_tokens(3, 9)
    with attended(tuned.model) as layers, torch.no_grad():
        tuned(tokens)
    for layer in layers:
        of_text = F.scaled_dot_product_attention(layer.q, layer.k, layer.v, is_causal=True)
        assert farthest(layer.heads, of_text) > 0.1


@pytest.mark.parametrize("kind", ["prefix", "soft prompt"])
def test_what_stands_before_a_text_moves_no_attention_within_it_in_the_first_layer(kind: str) -> None:
    first, second = among_text(shaken(METHODS[kind]), random_tokens(3, 9))
    assert farthest(*first) < 1e-5
    assert farthest(*second) > 0.01  # what the second layer reads has changed


def test_lora_moves_attention_within_the_text_in_the_first_layer() -> None:
    first, _ = among_text(shaken(METHODS["LoRA"]), random_tokens(3, 9))
    assert farthest(*first) > 0.01


def test_shares_among_the_text_are_those_of_a_model_without_a_prefix() -> None:
    tuned, tokens = shaken(METHODS["prefix"]), random_tokens(1, 6)
    (before, _), _ = among_text(tuned, tokens)
    block, positions = tuned.base.blocks[0], torch.arange(5, 11)  # behind five
    with torch.no_grad():
        q, k, _ = block.attn.c_attn(block.ln_1(tuned.base.wte(tokens) + tuned.base.wpe(positions))).chunk(3, dim=-1)
    for head in range(2):
        part = slice(16 * head, 16 * head + 16)
        for t in range(6):
            wanted = (k[0, : t + 1, part] @ q[0, t, part] / 4).softmax(dim=0)
            assert farthest(before[0, head, t, : t + 1], wanted) < 1e-6


def test_a_soft_prompt_compiles_exactly_and_a_random_prefix_is_out_of_reach() -> None:
    model = random_model()
    apart = exact_direction(model, random_tokens(4, 9))
    assert apart["logits"] < 1e-5
    assert abs(apart["kl"]) < 1e-9
    compiled = mp.attach(model, mp.SoftPrompt(5, init="random")).compile().doors().memory
    random = shaken(METHODS["prefix"], std=1).doors().memory
    assert compiled is not None
    assert random is not None
    assert first_layer_missing(model, compiled) < 1e-5
    assert 0.6 < first_layer_missing(model, random) < 0.8  # half of the numbers are free: about √½


def test_kl_is_that_of_pytorch() -> None:
    wanted, found = torch.randn(2, 3, 7, 11)
    theirs = F.kl_div(found.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="sum") / 21
    assert farthest(kl(wanted, found), theirs) < 1e-6


def test_texts_can_be_read_from_where_a_prefix_puts_them() -> None:
    tuned, tokens = shaken(METHODS["prefix"]), random_tokens(2, 7)
    with torch.no_grad():
        assert farthest(states_from(tuned.base, tokens, 5, tuned.doors().memory), tuned.hidden(tokens)) < 1e-5


@pytest.mark.parametrize(
    ("task", "answer"),
    [("ascending", "1339"), ("descending", "9331"), ("plus one", "4402"), ("plus two", "5513")],
)
def test_the_tasks_do_what_they_are_called(task: str, answer: str) -> None:
    assert "".join(map(str, TASKS[task](torch.tensor([[3, 3, 9, 1]]))[0].tolist())) == answer


def test_answers_that_are_right_are_those_that_greedy_writing_gets_right() -> None:
    model, tokens = random_model(vocab_size=SEPARATOR + 1), texts(("ascending",), 40, 3, seed=0)
    written = tokens[:, :4]
    with torch.no_grad():
        for _ in range(3):
            written = torch.cat([written, model(written)[:, -1:].argmax(-1)], dim=1)
    tokens[::2] = written[::2]  # half of the texts are as the model writes them
    share, by_place = right(model, tokens)
    assert share == pytest.approx(float((written == tokens).all(dim=1).float().mean()))
    assert 0.5 <= share < 1
    assert min(by_place) >= share


def test_the_page_says_what_was_measured() -> None:
    page = [sys.executable, ROOT / "recipes" / "theory_page.py", "--check"]
    done = subprocess.run(page, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_a_prefix_elicits_and_does_not_teach_on_fewer_digits(tmp_path: Path) -> None:
    script = [sys.executable, ROOT / "recipes" / "theory_elicit_or_teach.py", "--quick"]
    done = subprocess.run([*script, "--runs", tmp_path / "runs", "--out", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr  # the script asserts what came out
    assert (tmp_path / "theory_elicit_or_teach_quick.png").exists()
