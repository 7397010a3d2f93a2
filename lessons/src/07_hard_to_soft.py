# %% [markdown]
# # From hard prompts to soft prompts
#
# **A hard prompt is words that a person found. A soft prompt is vectors that a gradient found. After this lesson you
# have put such vectors in front of a text yourself, and know the one line that everybody forgets.**
#
# You will be able to
#
# - measure how well words in front of a text, or behind it, steer a model,
# - put trainable vectors in front of a text, with the right positions and the right labels,
# - show that the model stays as it is and only the vectors learn.
#
# *Forty minutes. Before it: [training](06_training.ipynb).*

# %% [markdown]
# ## A guess before we begin
#
# Movie reviews, half of them positive. We ask our small model in ten ways whether a review is good, such as "{review} I
# thought it was", and see whether " good" or " bad" is the likelier next word. How many of a hundred reviews does the
# best of the ten ways get right? Write your guess down.

# %% tags=["setup"]
import json

import torch
import torch.nn.functional as F

from minipeft import GPT2, HardPrompt, SoftPrompt, attach, load
from minipeft.checks import check
from minipeft.course.controls import explore
from minipeft.course.dots import dots_and_a_line
from minipeft.course.figures import bars
from minipeft.course.notebooks import folder
from minipeft.course.real import real_gpt2
from minipeft.evaluate import evaluate, label_log_likelihoods
from minipeft.tasks import TASKS, collate
from minipeft.tune import encoder_for

model = GPT2.from_pretrained("nano")
tokenizer = model.tokenizer
task = TASKS["movie"]()

# %% [markdown]
# ## Asking with words
#
# A hard prompt is a text with a gap. One review, and what the model thinks comes next:

# %%
review = "The story is dull and the ending is worse."
template = "{text} I thought it was"
question = template.replace("{text}", review)
with torch.no_grad():
    shares = model(torch.tensor([tokenizer.encode(question)]))[0, -1].softmax(dim=0)
bad, good = (float(shares[tokenizer.encode(word)[0]]) for word in (" bad", " good"))
print(f"{question}\n   bad {bad:.2%}, good {good:.2%}")
assert good > bad  # of this review!

# %% [markdown]
# The model likes the word "good" so much that it says it after a bad review, too. Change the words, and see whether you
# find some that work. Keep `{text}` where the review belongs.

# %%
some = task.splits["dev"][::24]  # forty reviews, of both kinds


def ask(template: str) -> None:
    try:
        asked = attach(model, HardPrompt(template))
    except ValueError as error:
        print(error)
        return
    found = label_log_likelihoods(
        asked, encoder_for(asked, task), some
    )  # [N, 2]: log p of " bad", of " good"
    answers = found.argmax(dim=1)
    right = sum(
        task.labels[answer] == example.target
        for answer, example in zip(answers.tolist(), some, strict=True)
    )
    positive = sum(example.target == "positive" for example in some)
    shown = {"say good": float(answers.sum()), "are good": float(positive), "right": float(right)}
    bars(shown, f"{template!r}: {right} of {len(some)} right", "reviews")


explore(ask, template="{text} I thought it was")

# %% [markdown]
# ## What a prompt is to the model
#
# The model never sees words. It sees rows of `wte`, one for each token. So instead of typing words we can put their
# *vectors* there ourselves, and nothing changes, not even the last bit:

# %%
words = tokenizer.encode("This is a review of a movie:")
tokens = torch.tensor([tokenizer.encode(" " + question)])
typed = torch.tensor([words + tokens[0].tolist()])
P, T = len(words), tokens.shape[1]
with torch.no_grad():
    by_typing = model(typed)[:, P:]  # [1, T, V]
    by_vectors = model(tokens, prompt=model.wte.weight[words][None])  # [1, T, V]
assert torch.equal(by_vectors, by_typing)
print(f"{P} vectors of {model.config.n_embd} numbers in front of {T} tokens: the same logits")

# %% [markdown]
# And nothing says that those vectors must be rows of `wte`. Let them be *any* numbers, and let a gradient find them:
#
# $$x = [\,P_1 \ldots P_p,\; \text{wte}(t_1) \ldots \text{wte}(t_T)\,] + \text{wpe}(0 \ldots p + T - 1)$$
#
# That is a soft prompt, by Lester, Al-Rfou and Constant (2021). Three things change against the plain model: the
# vectors are joined in front, the positions of the text move on by $p$, and nothing is asked of the prompt itself.
# (Their T5 has no `wpe`; a GPT-2 needs it for the prompt, too.) Here is the loss without a prompt:


# %%
def loss_without_prompt(model: GPT2, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss of the labels [B, T] that are not -100, written out."""
    x = model.wte(tokens) + model.wpe(torch.arange(tokens.shape[1]))  # [B, T, D]
    for layer, block in enumerate(model.blocks):
        x = block(x, None, None, layer)
    logits = model.logits(model.ln_f(x))  # [B, T, V]
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


labels = torch.full_like(tokens, -100)
labels[0, -1] = tokens[0, -1]
with torch.no_grad():
    torch.testing.assert_close(
        loss_without_prompt(model, tokens, labels), model.loss(tokens, labels)
    )

# %% [markdown]
# ## Exercise: the loss behind a prompt
#
# *Difficulty 3 of 3, twenty minutes.* Take the function above and put the prompt in. The weights of the model do not
# change, and every row of the batch gets the same prompt. As in lesson six, the first token of a text is asked for by
# nobody: its label is always -100.


# %% tags=["exercise"]
def loss_with_prompt(
    model: GPT2, prompt: torch.Tensor, tokens: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """The loss of the labels [B, T] that are not -100, with the vectors of `prompt` [P, D] before every row."""
    # BEGIN SOLUTION
    (B, T), P = tokens.shape, prompt.shape[0]
    x = torch.cat([prompt.expand(B, -1, -1), model.wte(tokens)], dim=1)  # [B, P + T, D]
    x = x + model.wpe(torch.arange(P + T))
    for layer, block in enumerate(model.blocks):
        x = block(x, None, None, layer)
    logits = model.logits(model.ln_f(x[:, P:]))  # [B, T, V], of the text only
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    # END SOLUTION


# %% tags=["check"]
check(
    "07", loss_with_prompt
)  # against transformers, and against typing real tokens; for help: hint("07")

# %% [markdown]
# ## A common wrong answer
#
# The positions are left as they were: the text begins at zero, and so does the prompt. Everything runs, the loss falls,
# and the model has been given two vectors for each of its first positions.


# %%
def positions_not_offset(model, prompt, tokens, labels):
    (B, T), P = tokens.shape, prompt.shape[0]
    text = model.wte(tokens) + model.wpe(torch.arange(T))
    front = prompt + model.wpe(torch.arange(P))
    x = torch.cat([front.expand(B, -1, -1), text], dim=1)
    for layer, block in enumerate(model.blocks):
        x = block(x, None, None, layer)
    logits = model.logits(model.ln_f(x[:, P:]))
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


check("07", positions_not_offset)
with torch.no_grad():
    vectors = model.wte.weight[words]
    right = model.loss(typed, torch.cat([torch.full((1, P), -100), labels], dim=1))
    wrong = positions_not_offset(model, vectors, tokens, labels)
print(f"real words as the prompt: typed {right:.3f}, positions not offset {wrong:.3f}")
assert abs(float(wrong - right)) > 0.02

# %% [markdown]
# ## Learning the vectors
#
# In the package `attach` does all this, and freezes the model. Forty steps, of sixteen reviews each, to see it move:

# %%
before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
tuned = attach(model, SoftPrompt(length=20, init="labels", labels=("bad", "good"))).train()
encoder = encoder_for(tuned, task)
rows = [encoder.encode(example) for example in task.splits["train"][::10]]
print(f"{tuned.num_trainable():,} numbers are trained, {model.num_parameters():,} are not")
assert tuned.num_trainable() == 5120


def loss_on(rows) -> torch.Tensor:
    batch = collate(rows, tokenizer.eot)
    return tuned.loss(batch.tokens, batch.labels, batch.attention_mask)


optimizer = torch.optim.AdamW(tuned.parameters(), lr=0.03)
generator = torch.Generator().manual_seed(0)
with torch.no_grad():
    first = float(loss_on(rows[::8]))
for _ in range(40):
    chosen = torch.randperm(len(rows), generator=generator)[:16].tolist()
    optimizer.zero_grad()
    loss_on([rows[row] for row in chosen]).backward()
    optimizer.step()
with torch.no_grad():
    last = float(loss_on(rows[::8]))

print(f"loss {first:.2f} before, {last:.2f} after; every number of the model is what it was")
one_of_two = float(label_log_likelihoods(tuned, encoder, some).exp().sum(dim=1).mean())
print(f"the two words together have a probability of {one_of_two:.0%}, of eight thousand words")
assert last < first - 1
assert one_of_two > 0.6
assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
assert all(parameter.grad is None for parameter in model.parameters())
tuned.detach()

# %% [markdown]
# So far it has learned mostly that one of two words is wanted. To learn *which* takes longer: a prompt that was trained
# for 1,200 steps lies beside the lessons. Does it do better than the words did?

# %%
learned = load(folder() / "prompts" / "movie", model)
report = json.loads((folder() / "prompts" / "movie" / "report.json").read_text())
score = evaluate(learned, encoder_for(learned, task), some)
print(f"{report['steps']} steps; of {len(some)} reviews it gets {score.accuracy:.0%} right")
assert report["steps"] == 1200

# %% [markdown]
# ## Ten prompts and one
#
# All ten ways of asking, and the learned prompt, on 1,831 reviews on which nothing was trained. *Calibrated* means that
# the model's bias towards one word is subtracted: its mean over the development reviews, after Zhou et al. (2023). The
# numbers were computed beforehand: `python recipes/ten_prompts.py` makes them again.

# %% tags=["figure"]
measured = json.loads((folder().parent / "docs" / "results" / "ten_prompts.json").read_text())
plain = {row["prompt"]: 100 * row["accuracy"] for row in measured["prompts"]}
calibrated = {row["prompt"]: 100 * row["calibrated"] for row in measured["prompts"]}
soft, error = (100 * measured["learned"][key] for key in ("accuracy", "standard_error"))
print(
    f"{measured['examples']} reviews: words {max(plain.values()):.1f} %, calibrated {max(calibrated.values()):.1f} %, "
    f"the soft prompt {soft:.1f} % ± {error:.1f}"
)
assert measured["examples"] == 1831
dots_and_a_line(
    {"as it is": plain, "calibrated": calibrated},
    (f"soft prompt {soft:.1f} %", soft, error),
    "Words hardly move a small model; learned vectors do better than the best of them",
    "right answers in %, on reviews that nobody has seen (band: two standard errors)",
)
assert all(row["answers_good"] > 0.97 for row in measured["prompts"])
assert (round(max(plain.values())), round(max(calibrated.values())), round(soft)) == (51, 57, 62)

# %% [markdown]
# So the guess: 51 percent. Whatever the words, so small a model answers "good" to nearly every review. Once that bias
# is subtracted, the best of the ten ways gets 57 percent right, and picking it on these very reviews flatters it; the
# learned prompt gets 62, with no such correction, but with labels to learn from. How the two compare for larger models
# is the first figure of the paper named below.
#
# ## In the package
#
# `minipeft/methods/soft_prompt.py` is the vectors and how they start, ninety lines. The joining and the positions are
# in `minipeft/gpt2.py`, in `hidden`; one rule, `next_positions` in `minipeft/attention.py`, moves positions on for
# prompts, prefixes, caches and padding alike.
#
# ```
# minipeft tune soft_prompt --task movie --out runs/movie
# ```
#
# ## What was left out, and what to read next
#
# Padding on the left, and why the prompt is never padding. Read Lester, Al-Rfou & Constant (2021), *The Power of Scale
# for Parameter-Efficient Prompt Tuning*: the larger the model, the closer a prompt comes to finetuning all of it.
#
# ## On the real GPT-2

# %%
if (gpt2 := real_gpt2()) is not None:
    asked = attach(gpt2, HardPrompt("{text} I thought it was"))
    score = evaluate(asked, encoder_for(asked, task), some)
    print(f"the words alone, on the real GPT-2: {score.accuracy:.0%} of {len(some)} reviews")
