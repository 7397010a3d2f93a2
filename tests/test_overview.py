"""The table of methods: its numbers are the published ones, its formulas give them, and no page shows others."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import minipeft as mp
from minipeft.downloads import PUBLIC
from minipeft.methods import METHODS, Method
from minipeft.overview import METHODS_TABLE, Entry, count, size_told
from tests.models import random_model
from tests.tuning import TINY_METHODS

ROOT = Path(__file__).parents[1]
SIZES = ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"]
PUBLISHED: list[tuple[Method, list[int]]] = [
    (mp.SoftPrompt(20, "random"), [15_360, 20_480, 25_600, 32_000]),
    (mp.Prefix(5, None), [92_160, 245_760, 460_800, 768_000]),
    (mp.Prefix(5, 512), [9_853_184, 25_744_896, 47_940_352, 79_624_512]),
    (mp.BottleneckAdapter(64), [2_379_264, 6_343_680, 11_893_248, 19_820_544]),
    (mp.LoRA(rank=4, targets=("attn.q", "attn.v")), [147_456, 393_216, 737_280, 1_228_800]),
    (mp.LlamaAdapter(10), [92_304, 246_144, 461_520, 769_200]),
    (mp.PTuning(6), [8_275_968, 14_704_640]),
    (mp.FullFinetuning(), [124_439_808, 354_823_168, 774_030_080, 1_557_611_200]),
]
"""What the papers, or the sizes in them, give: see each method's own page for its source."""


@pytest.mark.parametrize(
    ("method", "size", "numbers"),
    [(method, size, n) for method, found in PUBLISHED for size, n in zip(SIZES, found, strict=False)],
    ids=str,
)
def test_as_many_are_trained_as_published(method: Method, size: str, numbers: int) -> None:
    assert count(method, PUBLIC[size].config).trained == numbers


def test_what_an_mlp_makes_is_kept_and_the_mlp_is_not() -> None:
    for size, kept in zip(SIZES, [92_160, 245_760, 460_800, 768_000], strict=True):
        assert count(mp.Prefix(5, 512), PUBLIC[size].config).kept == kept


@pytest.mark.parametrize(
    ("method", "shape", "numbers"),
    [
        (mp.SoftPrompt(5, "random"), {"n_layer": 24, "n_head": 64, "n_embd": 4096}, 20_480),  # T5-XXL
        (mp.SoftPrompt(100, "random"), {"n_layer": 24, "n_head": 64, "n_embd": 4096}, 409_600),
        (mp.LlamaAdapter(10, top_layers=30), {"n_layer": 32, "n_head": 32, "n_embd": 4096}, 1_229_760),  # LLaMA-7B
    ],
)
def test_as_many_as_published_for_models_of_other_families(method: Method, shape: dict[str, int], numbers: int) -> None:
    assert count(method, mp.GPT2Config(**shape)).trained == numbers


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("entry", METHODS_TABLE, ids=lambda entry: entry.call)
def test_the_formula_gives_the_number(entry: Entry, size: str) -> None:
    c = PUBLIC[size].config
    if entry.trained == "all":
        expected = c.num_parameters()
    elif entry.trained == "r·(in + out) a layer":
        expected = c.n_layer * entry.method.rank * (c.n_embd + 3 * c.n_embd)
    else:
        formula = entry.trained.replace("·", "*").replace("²", "**2")
        expected = eval(formula, letters(entry.method, c))
    assert count(entry.method, c).trained == expected


def letters(method: Any, c: mp.GPT2Config) -> dict[str, int | None]:
    m = getattr(method, "width", None) or getattr(method, "reparam", None)
    p, r = getattr(method, "length", None), getattr(method, "rank", None)
    return {"L": c.n_layer, "H": c.n_head, "D": c.n_embd, "p": p, "m": m, "r": r}


@pytest.mark.parametrize("kind", TINY_METHODS)
def test_counting_without_weights_is_counting(kind: str) -> None:
    model = random_model()
    tuned, found = mp.attach(model, TINY_METHODS[kind]), count(TINY_METHODS[kind], model.config)
    assert (found.trained, found.kept) == (tuned.num_trainable(), tuned.num_kept())


def test_every_method_has_its_row() -> None:
    assert {entry.method.name for entry in METHODS_TABLE} == set(METHODS)
    assert len({entry.call for entry in METHODS_TABLE}) == len(METHODS_TABLE)
    for entry in METHODS_TABLE:
        made = eval(entry.call, vars(mp))
        assert count(made if made.name != "soft_prompt" else entry.method, PUBLIC["gpt2"].config) == count(
            entry.method, PUBLIC["gpt2"].config
        )


def test_readme_and_docs_show_what_the_code_counts() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "recipes" / "method_table.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("size", "told"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (61_440, "61.4 kB"), (999_600, "1 MB"), (3 * 10**12, "3e+03 GB")],
)
def test_sizes_are_told_with_their_unit(size: int, told: str) -> None:
    assert size_told(size) == told
