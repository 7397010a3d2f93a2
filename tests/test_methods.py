"""Each method: where it starts, what it counts, what it refuses, and the identities it must obey."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import minipeft as mp
from minipeft.gpt2 import GPT2
from minipeft.methods.prefix import LearnedPrefix, PrefixMLP, PrefixTable
from minipeft.methods.soft_prompt import LearnedPrompt
from tests.models import farthest, random_model, random_tokens
from tests.tuning import labelled_batch, train_steps

WORDS = {"n_embd": 16, "n_head": 2, "vocab_size": 8257, "n_positions": 64}


@pytest.fixture(scope="module")
def model() -> GPT2:
    return random_model(**WORDS)


def prompt_of(tuned: mp.Tuned) -> torch.Tensor:
    assert isinstance(tuned.attachment, LearnedPrompt)
    return tuned.attachment.prompt_embeddings.detach()


def test_a_prompt_from_the_vocabulary_holds_common_tokens(model: GPT2) -> None:
    prompt = prompt_of(mp.attach(model, mp.SoftPrompt(30, "vocab"), seed=1))
    ids = torch.cdist(prompt, model.wte.weight).argmin(dim=1)
    assert torch.equal(prompt, model.wte.weight[ids])
    assert int(ids.max()) < 5000
    assert len(set(ids.tolist())) > 20


def test_a_random_prompt_is_uniform_around_zero(model: GPT2) -> None:
    prompt = prompt_of(mp.attach(model, mp.SoftPrompt(60, "random")))
    assert float(prompt.abs().max()) <= 0.5
    assert abs(float(prompt.std()) - 12**-0.5) < 0.03  # 960 draws: ten times the standard error


@pytest.mark.parametrize("length", [2, 7])
def test_a_prompt_from_text_repeats_or_cuts_it(model: GPT2, length: int) -> None:
    ids = model.tokenizer.encode("one two three")
    assert len(ids) == 3
    wanted = [ids[place % 3] for place in range(length)]
    assert torch.equal(
        prompt_of(mp.attach(model, mp.SoftPrompt(length, "text:one two three"))), model.wte.weight[wanted]
    )


def test_a_prompt_from_labels_starts_with_their_mean_embeddings(model: GPT2) -> None:
    labels = ("unbelievable", "good")
    prompt = prompt_of(mp.attach(model, mp.SoftPrompt(5, "labels", labels)))
    for row, label in zip(prompt, labels, strict=False):
        ids = model.tokenizer.encode(" " + label)
        mean = sum(model.wte.weight[i] for i in ids) / len(ids)
        assert farthest(row, mean) < 1e-6
    assert len(model.tokenizer.encode(" unbelievable")) > 1


def test_the_seed_decides_the_start(model: GPT2) -> None:
    for method in (mp.SoftPrompt(5), mp.SoftPrompt(5, "random"), mp.Prefix(5, None), mp.Prefix(5, 8)):
        first, again, other = (mp.attach(model, method, seed).attachment.state_dict() for seed in (0, 0, 1))
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_prompt_of_real_embeddings_is_typing_those_tokens() -> None:
    model = random_model()
    typed, text = random_tokens(1, 5), random_tokens(3, 9, seed=1)
    tuned = mp.attach(model, mp.SoftPrompt(5, "random"))
    tuned.attachment.load_adapter_tensors({"prompt_embeddings": model.wte.weight[typed[0]]})
    whole = model(torch.cat([typed.expand(3, -1), text], dim=1))[:, 5:]
    assert farthest(tuned(text), whole) == 0.0


@pytest.mark.parametrize("reparam", [None, 6, 64])
@pytest.mark.parametrize("init", ["text:one two three four", "vocab"])
def test_a_prefix_from_text_is_typing_it(model: GPT2, init: str, reparam: int | None) -> None:
    prefix = mp.attach(model, mp.Prefix(4, reparam, init), seed=3)
    prompt = mp.attach(model, mp.SoftPrompt(4, init), seed=3)  # the same tokens, by the other door
    tokens = random_tokens(2, 8)
    # fp32: keys computed in another batch, and by an MLP from sums of `reparam` products
    assert farthest(prefix(tokens), prompt(tokens)) < (1e-5 if reparam is None else 1e-4)


def test_an_mlp_fitted_to_a_text_still_learns(model: GPT2) -> None:
    fitted = mp.attach(model, mp.Prefix(4, 16, "text:one two three four"))
    plain = mp.attach(model, mp.Prefix(4, 16))
    assert fitted.num_trainable() == plain.num_trainable()
    last = "encoder.transform.2.weight"
    changed, before = (one.trainable_parameters()[last].detach() for one in (fitted, plain))
    wanted = mp.attach(model, mp.Prefix(4, None, "text:one two three four")).trainable_parameters()
    assert 0 < float((changed - before).norm()) < 10 * float(wanted["encoder.prompt_embeddings"].detach().norm())
    losses = train_steps(fitted, steps=20)
    assert losses[-1] < losses[0]


def test_a_zero_prefix_is_no_no_op() -> None:
    """Its keys score 0, not minus infinity: they still take their share of the softmax, and give nothing for it."""
    model, tokens = random_model(), random_tokens(2, 8)
    tuned = mp.attach(model, mp.Prefix(4, None))
    tuned.attachment.load_adapter_tensors({"prompt_embeddings": torch.zeros(4, 2 * 2 * 32)})
    assert farthest(tuned(tokens), model(tokens)) > 0.01


def test_the_mlp_folds_away() -> None:
    model, tokens = random_model(), random_tokens(2, 8)
    tuned = mp.attach(model, mp.Prefix(4, reparam=6))
    train_steps(tuned)
    folded = tuned.compile()
    assert isinstance(folded.attachment, LearnedPrefix)
    assert isinstance(folded.attachment.encoder, PrefixTable)
    assert farthest(folded(tokens), tuned(tokens)) == 0.0


def test_the_mlp_is_the_published_one() -> None:
    encoder = PrefixMLP(length=4, width=6, hidden=5, layers=3)
    state = encoder.state_dict()
    inner = torch.tanh(state["embedding.weight"] @ state["transform.0.weight"].T + state["transform.0.bias"])
    wanted = inner @ state["transform.2.weight"].T + state["transform.2.bias"]
    assert wanted.shape == (4, 2 * 3 * 6)
    assert farthest(encoder(), wanted) < 1e-6


def test_full_finetuning_trains_a_copy() -> None:
    model, tokens = random_model(), random_tokens(2, 8)
    before = model(tokens)
    tuned = mp.attach(model, mp.FullFinetuning())
    assert tuned.num_trainable() == model.num_parameters()
    train_steps(tuned)
    assert farthest(tuned(tokens), before) > 1e-3
    assert torch.equal(model(tokens), before)


def test_the_top_layers_are_the_last_blocks_and_the_last_norm() -> None:
    tuned = mp.attach(random_model(n_layer=3), mp.FullFinetuning(top_layers=2))
    names = [name.removeprefix("model.") for name in tuned.trainable_parameters()]
    assert {name.rsplit(".", 1)[0] for name in names if not name.startswith("h.")} == {"ln_f"}
    assert {name.split(".")[1] for name in names if name.startswith("h.")} == {"1", "2"}


def test_a_hard_prompt_is_typing_its_words(model: GPT2) -> None:
    tuned = mp.attach(model, mp.HardPrompt("Review: {text} It was"))
    written = tuned.generate("a fine film", max_new_tokens=6)
    typed = mp.generate(model, "Review: a fine film It was", mp.Sampling(max_new_tokens=6))
    assert written == "a fine film" + typed.removeprefix("Review: a fine film It was")
    assert tuned.num_trainable() == 0


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: mp.HardPrompt("no slot"), "must contain {text} exactly once"),
        (lambda: mp.HardPrompt("{text} {text}"), "must contain {text} exactly once"),
        (lambda: mp.SoftPrompt(init="zeros"), "init is 'zeros'"),
        (lambda: mp.Prefix(reparam=0), "reparam is 0"),
        (lambda: mp.Prefix(8, reparam=8, init="vocab"), "an MLP of width 8 cannot be fitted to 8 positions"),
        (lambda: mp.attach(random_model(), mp.SoftPrompt(0)), "length is 0"),
        (lambda: mp.attach(random_model(), mp.SoftPrompt(32)), "leaves no room for text"),
        (lambda: mp.attach(random_model(), mp.Prefix(40, None)), "leaves no room for text"),
        (lambda: mp.attach(random_model(), mp.SoftPrompt(3, "labels")), "needs the labels"),
        (lambda: mp.attach(random_model(**WORDS), mp.SoftPrompt(3, "text:")), "without a text"),
        (lambda: mp.attach(random_model(), mp.FullFinetuning(3)), "this model has blocks 1 to 2"),
    ],
)
def test_settings_that_cannot_be_are_refused(make: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence.replace("{", r"\{").replace("}", r"\}")):
        make()


def test_only_labels_are_scored() -> None:
    model = random_model()
    tokens, labels = labelled_batch()
    tuned = mp.attach(model, mp.SoftPrompt(4, "random"))
    log_shares = tuned(tokens).log_softmax(-1).detach()
    costs = [-float(log_shares[row, t - 1, tokens[row, t]]) for row in range(3) for t in range(5, 9)]
    assert float(tuned.loss(tokens, labels).detach()) == pytest.approx(sum(costs) / len(costs), rel=1e-5)  # fp32 means


@torch.no_grad()
def test_a_zero_prefix_takes_its_share_of_the_softmax_and_gives_nothing_for_it() -> None:
    """Its keys score 0, so that what the text is given shrinks by λ = P / (P + Σ exp(score)): He et al. 2022."""
    P, tokens = 3, random_tokens(1, 6)
    model = random_model(n_layer=1)
    model.wpe.weight.zero_()  # positions are P further on, which is not the point
    tuned = mp.attach(model, mp.Prefix(P, None))
    tuned.attachment.load_adapter_tensors({"prompt_embeddings": torch.zeros(P, 2 * 32)})
    attention, joined = model.blocks[0].attn, []
    attention.c_proj.register_forward_hook(lambda _, inputs, __: joined.append(inputs[0][0]))  # [T, D]
    assert farthest(tuned(tokens), model(tokens)) > 0.01

    x = model.blocks[0].ln_1(model.wte(tokens[0]))
    q, k, _ = attention.c_attn(x).double().chunk(3, dim=-1)
    Dh = model.config.head_size
    for head in range(model.config.n_head):
        own = slice(head * Dh, (head + 1) * Dh)
        for t in range(6):
            text = sum(math.exp(float(q[t, own] @ k[s, own]) / math.sqrt(Dh)) for s in range(t + 1))
            share = P / (P + text)
            assert farthest(joined[0][t, own], (1 - share) * joined[1][t, own]) < 1e-6  # numbers below 1 in fp32


@pytest.mark.parametrize("length", [2, 4, 7])
def test_a_prefix_from_text_is_typing_that_text(length: int) -> None:
    model = random_model(vocab_size=512)
    ids = model.tokenizer.encode("A film")
    typed = torch.tensor([[ids[place % len(ids)] for place in range(length)]])
    tokens = random_tokens(2, 6)
    tuned = mp.attach(model, mp.Prefix(length, None, "text:A film"))
    as_text = model(torch.cat([typed.expand(2, -1), tokens], dim=1))[:, length:]
    assert farthest(tuned(tokens), as_text) < 1e-5  # fp32, keys computed in another batch


@torch.no_grad()
def test_a_prefix_from_the_vocabulary_is_typing_common_tokens() -> None:
    P = 6
    model = random_model(n_embd=16, vocab_size=6000, n_positions=64)
    tuned = mp.attach(model, mp.Prefix(P, None, "vocab"), seed=4)
    keys = tuned.attachment.doors().memory.keys[0, 0].transpose(0, 1).flatten(1)  # [H, P, Dh] -> [P, D]
    block, ids = model.blocks[0], []
    for place in range(P):  # the only token whose key in the first block this is
        every: Tensor = block.attn.c_attn(block.ln_1(model.wte.weight + model.wpe.weight[place])).chunk(3, dim=-1)[1]
        ids.append(int((every - keys[place]).norm(dim=-1).argmin()))
    assert max(ids) < 5000
    tokens = random_tokens(1, 6)
    as_text = model(torch.cat([torch.tensor([ids]), tokens], dim=1))[:, P:]
    assert farthest(tuned(tokens), as_text) < 1e-5  # fp32, keys computed in another batch


def test_a_start_draws_nothing_from_the_global_random_numbers() -> None:
    model = random_model(vocab_size=512)
    for method in (mp.SoftPrompt(3), mp.SoftPrompt(3, "random"), mp.Prefix(3, None), mp.Prefix(3, 8)):
        state = torch.get_rng_state()
        mp.attach(model, method)
        assert torch.equal(torch.get_rng_state(), state), method


def test_top_layers_train_only_these_blocks_and_the_last_norm() -> None:
    tuned = mp.attach(random_model(n_layer=3), mp.FullFinetuning(top_layers=1))
    before = {name: tensor.clone() for name, tensor in tuned.model.state_dict().items()}
    train_steps(tuned)
    moved = {name for name, tensor in tuned.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if name.startswith(("h.2.", "ln_f."))}
