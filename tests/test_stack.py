"""Several methods on one model: what they do together, in files and merged, and which may not meet."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import minipeft as mp
from minipeft.methods import Method
from tests.models import farthest, random_model, random_tokens, shake
from tests.tuning import train_steps

EXACT = 1e-5
"""fp32 sums in another order, on logits of about 1."""
PROMPT = mp.SoftPrompt(length=4, init="random")
MLP_LORA = mp.LoRA(rank=2, targets=("mlp.c_fc",))
EVERYTHING = (
    MLP_LORA,
    mp.IA3(targets=(), feedforward=("mlp.c_proj",)),
    mp.LlamaAdapter(length=3),
    mp.BottleneckAdapter(width=4, form="lin", norms=True),
    mp.Prefix(length=3, reparam=5),
    PROMPT,
)


def stacked(*methods: Method, **shape: Any) -> mp.Tuned:
    """A stack whose parts all do something."""
    tuned = mp.attach(random_model(**shape), mp.Stack(methods)).eval()
    shake(tuned.attachment, seed=4)
    return tuned


def alone(stack: mp.Tuned, part: int, model: mp.GPT2) -> mp.Tuned:
    """One part of a stack, attached to `model` by itself."""
    tuned = mp.attach(model, stack.method.methods[part]).eval()
    tuned.attachment.load_state_dict(stack.attachment.parts[part].state_dict())
    return tuned


@pytest.mark.parametrize("order", [(MLP_LORA, PROMPT), (PROMPT, MLP_LORA)])
def test_a_soft_prompt_on_a_lora_is_the_prompt_on_the_merged_model(order: tuple[Method, ...]) -> None:
    stack, tokens = stacked(*order), random_tokens(2, 7)
    merged = alone(stack, order.index(MLP_LORA), random_model()).merge()
    assert farthest(stack(tokens), alone(stack, order.index(PROMPT), merged)(tokens)) < EXACT
    assert farthest(stack(tokens), alone(stack, order.index(PROMPT), random_model())(tokens)) > 1e-2


def test_two_loras_on_different_layers_are_both_merged_in() -> None:
    first, second = mp.LoRA(rank=2, targets=("h.0.attn.c_attn",)), mp.LoRA(rank=3, targets=("h.1.attn.c_attn",))
    stack, tokens = stacked(first, second), random_tokens(2, 7)
    one_by_one = alone(stack, 1, alone(stack, 0, random_model()).merge()).merge()
    assert farthest(stack(tokens), one_by_one(tokens)) < EXACT
    assert farthest(stack.merge()(tokens), one_by_one(tokens)) < EXACT


def test_a_prompt_and_a_prefix_go_through_both_doors() -> None:
    stack, tokens = stacked(mp.Prefix(3, None), PROMPT), random_tokens(2, 7)
    prompt, memory = stack.attachment.parts[1].prompt_embeddings, alone(stack, 0, random_model()).doors().memory
    assert torch.equal(stack(tokens), random_model()(tokens, prompt=prompt[None], memory=memory))
    assert stack.room == 32 - 3 - 4


@pytest.mark.parametrize("order", [EVERYTHING, EVERYTHING[::-1]])
def test_six_at_once_are_each_trained_and_saved(order: tuple[Method, ...], tmp_path: Path) -> None:
    tuned, tokens = mp.attach(random_model(), mp.Stack(order)), random_tokens(2, 7)
    one_by_one = [mp.attach(random_model(), method) for method in order]
    assert tuned.num_trainable() == sum(one.num_trainable() for one in one_by_one)
    before = {name: parameter.detach().clone() for name, parameter in tuned.trainable_parameters().items()}
    train_steps(tuned)
    # A gate that starts closed gives its prompt no gradient in the first step, but in the second.
    assert not [
        name for name, parameter in tuned.trainable_parameters().items() if torch.equal(parameter, before[name])
    ]
    tuned.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert farthest(mp.load(tmp_path, random_model())(tokens), tuned.eval()(tokens)) < EXACT


@pytest.mark.parametrize("first", [0, 1])
def test_the_top_layers_are_finetuned_beside_a_lora_below(first: int) -> None:
    methods = (mp.LoRA(rank=2, targets=("h.0.mlp.c_fc",)), mp.FullFinetuning(top_layers=1))
    tuned = mp.attach(random_model(), mp.Stack(methods if first == 0 else methods[::-1]))
    before, tokens = tuned(random_tokens(2, 7)), random_tokens(2, 7)
    train_steps(tuned)
    for part in tuned.attachment.parts:
        moved = [name for name, p in part.named_parameters() if p.requires_grad]
        assert moved
    lora, full = (tuned.attachment.parts[n] for n in (first, 1 - first))
    assert (
        float(lora.adapter_tensors()["base_model.model.transformer.h.0.mlp.c_fc.lora_B.weight"].detach().abs().max())
        > 0
    )
    assert farthest(full.adapter_tensors()["h.1.mlp.c_fc.weight"], tuned.base.h[1].mlp.c_fc.weight) > 0
    assert farthest(tuned(tokens), before) > 1e-3
    assert torch.equal(tuned.model.h[0].attn.c_attn.weight, tuned.base.h[0].attn.c_attn.weight)


@pytest.mark.parametrize(
    ("methods", "place"),
    [
        ((mp.LoRA(), mp.IA3()), "h.0.attn.c_attn"),
        ((mp.LoRA(targets=("attn.q",)), mp.LoRA(targets=("attn.v",))), "h.0.attn.c_attn"),
        ((mp.LoRA(targets=("mlp.c_proj",)), mp.BottleneckAdapter(4)), "h.0.mlp.c_proj"),
        ((mp.BitFit(), mp.LoRA()), "h.0.attn.c_attn"),
        ((mp.LlamaAdapter(3), mp.LoRA(targets=("h.1.attn.c_proj",))), "h.1.attn.c_proj"),
        ((mp.LlamaAdapter(3, top_layers=1), mp.LlamaAdapter(3)), "h.1.attn"),
        ((mp.BottleneckAdapter(4, "lin"), mp.BottleneckAdapter(4, "lin")), "h.0.adapter"),
        ((mp.BottleneckAdapter(4, norms=True), mp.BottleneckAdapter(4, "lin", norms=True)), "h.0.ln_1"),
        ((mp.FullFinetuning(), mp.IA3()), "h.0.attn.c_attn"),
        ((mp.FullFinetuning(1), mp.BitFit()), "h.1.attn.c_attn"),
        ((PROMPT, MLP_LORA, mp.PTuning(3)), "the input door"),
        ((mp.Prefix(3), mp.Prefix(4)), "the memory door"),
    ],
)
def test_two_at_one_place_are_refused(methods: tuple[Method, ...], place: str) -> None:
    for order in (methods, methods[::-1]):
        with pytest.raises(ValueError, match=f"cannot be stacked: both want {place}"):
            mp.attach(random_model(), mp.Stack(order))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mp.Stack((mp.LoRA(),)), "a stack needs at least two methods, got 1"),
        (lambda: mp.Stack((mp.LoRA(), mp.HardPrompt())), "a hard prompt changes the text and not the model"),
        (lambda: mp.Stack((PROMPT, mp.Stack((mp.LoRA(), PROMPT)))), "a stack in a stack"),
        (
            lambda: mp.attach(stacked(MLP_LORA, PROMPT), PROMPT),
            "stack is attached to this model already; to attach several",
        ),
        (lambda: stacked(MLP_LORA, PROMPT).merge(), "stack cannot be merged: of its parts, soft_prompt cannot"),
        (lambda: stacked(MLP_LORA, PROMPT).compile(), "a stack cannot be one prefix"),
    ],
)
def test_what_makes_no_stack_is_told(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("parts", [None, "LORA", [1], [{"peft_type": "OFT"}], [{"peft_type": "LORA"}]])
def test_a_file_whose_parts_are_none_is_refused(parts: Any, tmp_path: Path) -> None:
    stacked(MLP_LORA, PROMPT).save(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({"peft_type": "STACK", "parts": parts}))
    with pytest.raises(mp.CheckpointError, match=r"adapter_config\.json: "):
        mp.load(tmp_path, random_model())
