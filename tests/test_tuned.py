"""A model with a method attached: the base unharmed, padding without effect, compiling and detaching exact."""

from pathlib import Path

import pytest
import torch

import minipeft as mp
from tests.models import farthest, ragged, random_model, random_tokens, shake
from tests.tuning import PROMPTS_AND_PREFIXES, TINY_METHODS, labelled_batch, train_steps

ALL = list(TINY_METHODS)
LIVELY = 1
"""The seed of a tiny model whose greedy text is more than one token repeated."""


def lively(kind: str) -> mp.Tuned:
    tuned = mp.attach(random_model(LIVELY), TINY_METHODS[kind])
    shake(tuned.attachment, seed=3, std=0.1)
    return tuned.eval()


@pytest.mark.parametrize("kind", ALL)
def test_the_base_is_the_same_to_the_bit_after_training(kind: str) -> None:
    model = random_model()
    model.h[0].requires_grad_(False)
    before = {name: (p.clone(), p.requires_grad) for name, p in model.named_parameters()}
    tuned = mp.attach(model, TINY_METHODS[kind]).train()
    assert not any(p.requires_grad for p in model.parameters())
    losses = train_steps(tuned, 4)
    assert losses[0] != losses[1]
    assert all(p.grad is None for p in model.parameters())
    assert tuned.detach() is model
    assert not model.training
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0]), name
        assert parameter.requires_grad == before[name][1], name


@pytest.mark.parametrize("kind", ALL)
def test_a_batch_can_be_learned_by_heart(kind: str) -> None:
    tuned = mp.attach(random_model(), TINY_METHODS[kind])
    optimizer = torch.optim.AdamW(tuned.trainable_parameters().values(), lr=0.02)
    losses = []
    for _ in range(40):
        loss = tuned.loss(*labelled_batch())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ALL)
def test_padding_changes_nothing(kind: str, side: str) -> None:
    tuned = mp.attach(random_model(), TINY_METHODS[kind])
    batch = ragged([9, 3, 6], side)
    logits = tuned(batch.tokens, batch.mask)
    assert logits.shape == (3, 9, 64)  # none for the prompt's positions
    for row, padded in zip(batch.rows, batch.unpadded(logits), strict=True):
        assert farthest(tuned(row[None])[0], padded) < 1e-4  # DESIGN's bound in fp32; sums in another order give 1e-6


@pytest.mark.parametrize("kind", [None, *ALL])
def test_a_row_writes_the_same_alone_and_in_a_batch(kind: str | None) -> None:
    model = random_model(LIVELY)
    tuned = lively(kind) if kind else mp.attach(model, mp.HardPrompt())
    prompts = [row.tolist() for row in ragged([9, 3, 6], "left").rows]
    run = tuned.generate if kind else lambda rows, n: mp.generate(model, rows, mp.Sampling(n))
    together = run(prompts, 8)
    assert together == [run(prompt, 8) for prompt in prompts]
    assert [row[: len(prompt)] for row, prompt in zip(together, prompts, strict=True)] == prompts


@pytest.mark.parametrize("kind", PROMPTS_AND_PREFIXES)
def test_compiling_changes_nothing(kind: str) -> None:
    tuned = mp.attach(random_model(), TINY_METHODS[kind])
    train_steps(tuned)
    compiled = tuned.compile()
    assert compiled.method.peft_type == "PREFIX_TUNING"
    assert compiled.num_kept() == 2 * 2 * 32 * 4
    batch = ragged([9, 3, 6], "left")
    assert farthest(compiled(batch.tokens, batch.mask), tuned(batch.tokens, batch.mask)) < 1e-5  # fp32, other order


def test_what_uses_neither_door_cannot_be_compiled() -> None:
    with pytest.raises(ValueError, match="cannot be a prefix"):
        mp.attach(random_model(), mp.FullFinetuning()).compile()


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_over_a_half_precision_base_trained_numbers_stay_fp32(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    tuned, in_full = (mp.attach(random_model().to(kind_of), TINY_METHODS[kind]) for kind_of in (dtype, torch.float32))
    for one in (tuned, in_full):
        shake(torch.nn.ParameterList(one.trainable_parameters().values()), seed=3)
    # About 40 roundings on the way to a loss of 4, of 2**-9 each in bfloat16 and 2**-12 in float16.
    losses = [float(one.loss(*labelled_batch()).detach()) for one in (tuned, in_full)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    train_steps(tuned)
    assert {p.dtype for p in tuned.trainable_parameters().values()} == {torch.float32}
    assert {p.dtype for p in tuned.base.parameters()} == {dtype}
    assert tuned.eval().generate([1, 2, 3], 4)[:3] == [1, 2, 3]
    tuned.save(tmp_path)
    loaded, tokens = mp.load(tmp_path, random_model().to(dtype)), random_tokens(2, 7)
    computed_anew = 0.05 if kind in ("P-tuning by LSTM", "LoRA on q and v") else 0  # see tests/test_adapter_files.py
    assert farthest(loaded(tokens).float(), tuned(tokens).float()) <= computed_anew


def test_generate_gives_back_what_it_got() -> None:
    model = random_model(vocab_size=8257)
    tuned = mp.attach(model, mp.Prefix(3, None))
    ids = model.tokenizer.encode("Once upon")
    texts = tuned.generate(["Once upon", "A"], 4)
    assert isinstance(texts, list)
    assert texts[0].startswith("Once upon")
    assert tuned.generate("Once upon", 4) == texts[0]
    assert tuned.generate(ids, 4)[: len(ids)] == ids
    assert tuned.generate([ids, ids], 4)[1] == tuned.generate(ids, 4)
    assert tuned.generate(torch.tensor([ids]), 4).tolist()[0] == tuned.generate(ids, 4)


def test_too_much_text_is_refused_before_any_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = mp.attach(random_model(), mp.SoftPrompt(10, "random"))
    monkeypatch.setattr(tuned.base.h[0], "forward", None)
    with pytest.raises(ValueError, match="10 of the prompt \\+ 23 tokens = 33 positions, but this model has 32"):
        tuned(random_tokens(1, 23))
    with pytest.raises(ValueError, match="10 positions of the adapter \\+ 5 of the text \\+ 64 new tokens"):
        tuned.generate(random_tokens(5).tolist())


def test_compiling_is_exact_in_training_mode_too() -> None:
    tuned = mp.attach(random_model(dropout=0.3), mp.SoftPrompt(3, "random")).train()
    compiled = tuned.compile()
    tuned.eval()
    tokens = random_tokens(2, 6)
    assert farthest(compiled(tokens), tuned(tokens)) < 1e-5  # fp32, keys computed in another batch


def test_dropout_does_not_disturb_where_a_prefix_starts() -> None:
    model = random_model(dropout=0.3, vocab_size=512)
    method = mp.Prefix(3, None, "vocab")
    still = mp.attach(model, method).attachment.state_dict()
    noisy = mp.attach(model.train(), method).attachment.state_dict()
    assert all(torch.equal(still[name], noisy[name]) for name in still)


def test_the_base_of_a_compiled_adapter_comes_back_trainable() -> None:
    model = random_model()
    mp.attach(model, mp.SoftPrompt(3, "random")).compile().detach()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_what_is_still_attached_keeps_the_base_frozen() -> None:
    model, tokens = random_model(), random_tokens(2, 6)
    first, second = (mp.attach(model, mp.SoftPrompt(3, "random")) for _ in range(2))
    first.detach()
    second.loss(tokens, tokens).backward()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("kind", ALL)
def test_cached_generation_is_reading_everything_again(kind: str) -> None:
    tuned = lively(kind)
    row = [5, 1]
    written = tuned.generate(list(row), 20)
    for _ in range(len(written) - 2):
        row.append(int(tuned(torch.tensor([row]))[0, -1].argmax()))
    assert written == row
    assert len(set(row[2:])) > 1


@pytest.mark.parametrize("kind", PROMPTS_AND_PREFIXES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_of_lively_text_do_not_depend_on_their_neighbours(kind: str, temperature: float) -> None:
    tuned = lively(kind)
    rows = [row.tolist() for row in ragged([9, 3, 6], "left").rows]
    together = tuned.generate(rows, 15, temperature=temperature)
    alone = [tuned.generate([row] * 3, 15, temperature=temperature)[place] for place, row in enumerate(rows)]
    assert together == alone
    assert len({tuple(new[len(row) :]) for row, new in zip(rows, together, strict=True)}) == 3


def test_a_gradient_from_before_is_forgotten() -> None:
    model, tokens = random_model(), random_tokens(2, 6)
    model.loss(tokens, tokens).backward()
    tuned = mp.attach(model, mp.SoftPrompt(3, "random"))
    assert all(parameter.grad is None for parameter in model.parameters())
    train_steps(tuned)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_comes_back(training: bool) -> None:
    model = random_model().train(training)
    tuned = mp.attach(model, mp.SoftPrompt(3, "random"))
    tuned.train(not training)
    assert model.training is not training
    assert tuned.detach().training is training


@pytest.mark.parametrize("kind", TINY_METHODS)
def test_steps_smaller_than_bfloat16_can_hold_are_kept(kind: str) -> None:
    tuned = mp.attach(random_model().to(torch.bfloat16), TINY_METHODS[kind])
    shake(tuned.attachment, seed=3)  # what starts at zero gives no gradient to what stands behind it
    before = {name: p.detach().clone() for name, p in tuned.trainable_parameters().items()}
    train_steps(tuned, steps=1, lr=1e-6)
    assert tuned.base.dtype == torch.bfloat16
    for name, parameter in tuned.trainable_parameters().items():
        moved = parameter.detach() != before[name]
        lost_in_half = parameter.detach().bfloat16() == before[name].bfloat16()
        assert (moved & lost_in_half).any(), name


@pytest.mark.parametrize("kind", TINY_METHODS)
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_checkpointing_computes_every_block_again_and_changes_no_gradient(kind: str, dropout: float) -> None:
    """peft refuses this for prefixes, or ends in a size mismatch."""
    gradients, calls = [], []
    for on in (False, True):
        tuned = mp.attach(random_model(dropout=dropout).use_checkpointing(on), TINY_METHODS[kind]).train()
        shake(tuned.attachment, seed=3)
        count = [0]
        for block in tuned.model.h:
            block.register_forward_pre_hook(lambda *_, count=count: count.__setitem__(0, count[0] + 1))
        torch.manual_seed(0)
        tuned.loss(*labelled_batch()).backward()
        gradients.append([parameter.grad for parameter in tuned.trainable_parameters().values()])
        calls.append(count[0])
    last_alone = kind in ("LLaMA-Adapter of PEFT", "last block")  # below it there is no gradient to compute
    assert calls == [2, 3 if last_alone else 4]
    for plain, again in zip(*gradients, strict=True):
        assert float(plain.abs().max()) > 0
        assert torch.equal(plain, again)
