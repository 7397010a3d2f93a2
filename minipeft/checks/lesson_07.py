"""Lesson 07: the loss behind a soft prompt, against `transformers`, and against typing real tokens."""

import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minipeft.checks.exercise import Exercise, require, transformers
from minipeft.config import GPT2Config
from minipeft.gpt2 import GPT2, NOT_SCORED

P, B, T = 4, 2, 6


def judge(loss_with_prompt: Callable[..., Any]) -> None:
    """A random prompt, then one of real tokens; at last the gradients, and the model's numbers."""
    model, tokens, labels, prompt = _case()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = loss_with_prompt(model, prompt, tokens, labels)
    require(
        isinstance(found, Tensor) and found.dim() == 0,
        "loss_with_prompt must return the loss, a tensor of one number.",
    )
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    require(not changed, f"{changed[0] if changed else ''} of the model was changed; the model must stay as it is.")
    require(not any(p.requires_grad for p in model.parameters()), "the model was unfrozen; only the prompt learns.")
    _value(float(found.detach()), model, prompt.detach(), tokens, labels)
    require(found.requires_grad, "the loss has no gradient for the prompt: was it detached, or copied, on the way?")
    (gradient,) = torch.autograd.grad(found, prompt)
    require(bool((gradient.abs().sum(dim=1) > 0).all()), "the gradient does not reach every vector of the prompt.")
    typed = torch.randint(model.config.vocab_size, (P,), generator=torch.Generator().manual_seed(1))
    real = loss_with_prompt(model, model.wte.weight[typed], tokens, labels)
    text = torch.cat([typed.expand(B, -1), tokens], dim=1)
    expected = model.loss(text, torch.cat([torch.full((B, P), NOT_SCORED), labels], dim=1))
    require(abs(float(real - expected)) < 1e-5, "a prompt of real tokens' vectors must give what typing them gives.")


def _case() -> tuple[GPT2, Tensor, Tensor, Tensor]:
    """A frozen small model with numbers large enough to matter, tokens, labels, and a prompt to be learned."""
    generator = torch.Generator().manual_seed(0)
    model = GPT2(GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=16, vocab_size=24)).eval()
    model.requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    tokens = torch.randint(24, (B, T), generator=generator)
    labels = torch.randint(24, (B, T), generator=generator)  # not the tokens: then a wrong shift cannot hide
    labels[0, :3] = labels[1, :1] = labels[1, 2:5] = NOT_SCORED  # 3 and 2 to score
    prompt = torch.randn(P, 16, generator=generator).requires_grad_()
    return model, tokens, labels, prompt


def _value(found: float, model: GPT2, prompt: Tensor, tokens: Tensor, labels: Tensor) -> None:
    expected = _by_transformers(model, prompt, tokens, labels)
    if abs(found - expected) < 1e-4:
        return
    text, front = model.wte(tokens), prompt.expand(B, -1, -1)
    where = torch.arange(P + T)
    last = text.new_full((B, P), NOT_SCORED, dtype=torch.long)
    shifted = torch.cat([last, labels], dim=1)
    both = torch.cat([front, text], dim=1)
    again = torch.cat([where[:P], where[:T]])
    unshifted = _logits(model, both + model.wpe(where))[:, P:].flatten(0, 1)
    require(
        abs(found - float(F.cross_entropy(unshifted, labels.flatten(), ignore_index=NOT_SCORED))) > 1e-4,
        "every token is asked for itself: the logits at one place predict the label at the next.",
    )
    for mistake, x, targets in (
        (
            "the text's positions begin at zero again; with P vectors in front, its first token has position P.",
            both + model.wpe(again),
            shifted,
        ),
        (
            "the prompt has no positions; wpe is added to it as to tokens, and the text's begin after it.",
            torch.cat([front, text + model.wpe(where[P:])], dim=1),
            shifted,
        ),
        (
            "the prompt has no positions, and those of the text begin at zero; wpe(0 … P + T - 1) is added to both.",
            torch.cat([front, text + model.wpe(where[:T])], dim=1),
            shifted,
        ),
        (
            "that is the loss without the prompt: does it stand behind the text, where no token sees it?",
            text + model.wpe(where[:T]),
            labels,
        ),
        (
            "the labels are not moved on: with P vectors in front, token t stands at place P + t.",
            both + model.wpe(where),
            torch.cat([labels, last], dim=1),
        ),
        (
            "the prompt was added to the text's vectors; it must be joined in front of them.",
            torch.cat([text[:, :P] + front, text[:, P:]], dim=1) + model.wpe(where[:T]),
            labels,
        ),
    ):
        require(abs(found - _loss(model, x, targets)) > 1e-4, mistake)
    require(False, f"the loss is {found:.4f}, but transformers gives {expected:.4f}.")


def _logits(model: GPT2, x: Tensor) -> Tensor:
    for layer, block in enumerate(model.blocks):
        x = block(x, None, None, layer)
    return model.logits(model.ln_f(x))


def _loss(model: GPT2, x: Tensor, labels: Tensor) -> float:
    logits = _logits(model, x)
    return float(F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=NOT_SCORED))


def _by_transformers(model: GPT2, prompt: Tensor, tokens: Tensor, labels: Tensor) -> float:
    """Their model reads ours from files, and vectors instead of tokens."""
    library = transformers()
    library.utils.logging.disable_progress_bar()  # a model of a few kilobytes needs none
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        theirs = library.GPT2LMHeadModel.from_pretrained(folder).eval()
    theirs.loss_type = "ForCausalLM"  # what it is anyway; unsaid, it warns
    x = torch.cat([prompt.expand(B, -1, -1), theirs.transformer.wte(tokens)], dim=1)
    targets = torch.cat([torch.full((B, P), NOT_SCORED), labels], dim=1)
    with torch.no_grad():
        return float(theirs(inputs_embeds=x, labels=targets).loss)


EXERCISE = Exercise(
    name="07",
    function="loss_with_prompt",
    judge=judge,
    hints=(
        "prompt.expand(B, -1, -1) is [B, P, D]: one view for each row. Join it with model.wte(tokens) along dim 1.",
        "One torch.arange(P + T) gives everything its position, the prompt first.",
        "What comes out of the blocks is [B, P + T, D]. Cut the prompt off again, x[:, P:], and the labels fit as they "
        "are.",
    ),
)
