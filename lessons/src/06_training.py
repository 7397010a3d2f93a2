# %% [markdown]
# # Training, and the price of a copy per task
#
# **Finetuning is a loss, a loop, and a bill. After this lesson you have written the loss, watched the loop learn and
# overlearn, and know what the bill says: a whole model for every task.**
#
# You will be able to
#
# - write the loss of a language model that is asked for some of the tokens only,
# - finetune a model in ten lines, and see from two curves when to stop,
# - say what one more task costs, in bytes, for a model of any size.
#
# *Thirty minutes. Before it: [a block, a model](03_a_block_a_model.ipynb), and what a gradient is.*

# %% [markdown]
# ## A guess before we begin
#
# You finetune GPT-2 small, 124,439,808 numbers of four bytes, for 100 tasks. How many gigabytes do you store? And how
# many if each task is 20 vectors in front of the text instead? Write both down.

# %% tags=["setup"]
import torch
import torch.nn.functional as F

from minipeft import GPT2, FullFinetuning, GPT2Config, attach
from minipeft.checks import check
from minipeft.course.figures import bars, curves
from minipeft.course.real import real_gpt2
from minipeft.downloads import PUBLIC
from minipeft.tasks import TASKS, collate
from minipeft.tune import encoder_for

model = GPT2.from_pretrained("nano")
tokenizer = model.tokenizer

# %% [markdown]
# ## What is asked, and of whom
#
# A review, and after it the word that we want. Only that word is asked for: everything else has the *label* -100, which
# means "not scored". And the prediction is read at the token *before* it, since the model says at each token what comes
# next.

# %%
words = ["The", " film", " was", " so", " good"]
tokens = torch.tensor([[token for word in words for token in tokenizer.encode(word)]])  # [1, T]
labels = torch.full_like(tokens, -100)
labels[0, -1] = tokens[0, -1]
for t, word in enumerate(words):
    asked = (
        f"is asked, and should say {words[t + 1]!r}"
        if t + 1 < len(words) and labels[0, t + 1] != -100
        else ""
    )
    print(f"{t} {word!r:9} label {int(labels[0, t]):5} {asked}")
assert tokens.shape == (1, 5)
assert labels[0, :4].tolist() == [-100] * 4

# %% [markdown]
# With $x_t$ the tokens, $y_t$ the labels, and $S$ the places that have one:
#
# $$\text{loss} = -\frac{1}{|S|} \sum_{t \in S} \log p(y_t \mid x_1 \ldots x_{t-1})$$
#
# For the one word above, by hand:

# %%
with torch.no_grad():
    logits = model(tokens)  # [1, T, V]
by_hand = -logits[0, 3].log_softmax(dim=0)[tokens[0, 4]]  # token 3 is asked for token 4
print(f"{by_hand:.3f} nats: the model gives the word a chance of {by_hand.neg().exp():.1%}")
torch.testing.assert_close(by_hand, model.loss(tokens, labels))

# %% [markdown]
# ## Exercise: the loss
#
# *Difficulty 2 of 3, ten minutes.* Several rows, labels at any places. The first token of a row is predicted by nobody,
# so a label there is not scored either. Average over all labels of the batch at once.


# %% tags=["exercise"]
def label_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean loss in nats, one number, of the labels [B, T] that are not -100, from the logits [B, T, V]."""
    # BEGIN SOLUTION
    predictions, targets = logits[:, :-1], labels[:, 1:]
    scored = targets != -100
    return F.cross_entropy(predictions[scored], targets[scored])
    # END SOLUTION


# %% tags=["check"]
check("06", label_loss)  # against a loop in plain Python; for help: hint("06")

# %% [markdown]
# ## A common wrong answer
#
# No shift. Every token is asked for *itself*, which it has just read:


# %%
def unshifted(logits, labels):
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


check("06", unshifted)

# %% [markdown]
# How harmless that looks while it trains! A tiny model learns to repeat what it sees, and the loss falls to nothing. It
# has learned nothing about language: asked for the next token, it is worse than a guess.

# %%
tiny = GPT2(GPT2Config(n_layer=1, n_head=2, n_embd=32, n_positions=16, vocab_size=64), seed=0)
optimizer = torch.optim.AdamW(tiny.parameters(), lr=0.01)
noise = torch.randint(64, (200, 8, 16), generator=torch.Generator().manual_seed(0))
for batch in noise:
    loss = unshifted(tiny(batch), batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
with torch.no_grad():
    honest = tiny.loss(noise[0], noise[0])
guess = torch.tensor(64.0).log()
print(f"unshifted loss {loss.item():.3f}; the honest one {honest:.1f}, a blind guess {guess:.1f}")
assert loss < 0.1
assert honest > guess

# %% [markdown]
# ## The loop
#
# Movie reviews from the data that ships: 128 of them to learn from, and 120 others to see what it is worth. Every
# weight of the model is trained, so the package makes a copy and leaves the model as it is.

# %%
task = TASKS["movie"]()
tuned = attach(model, FullFinetuning()).train()
encoder = encoder_for(tuned, task)
train_rows = [encoder.encode(example) for example in task.splits["train"][::50]]
other_rows = [encoder.encode(example) for example in task.splits["dev"][::8]]
assert (len(train_rows), len(other_rows)) == (128, 120)


def loss_on(rows) -> torch.Tensor:
    batch = collate(rows, tokenizer.eot)  # rows of unequal length, padded on the right
    return tuned.loss(batch.tokens, batch.labels, batch.attention_mask)


# %% [markdown]
# Ten lines: take a few rows, ask for the loss and its gradient, take a step, look up now and then.

# %% tags=["figure"]
optimizer = torch.optim.AdamW(tuned.parameters(), lr=3e-4)
generator = torch.Generator().manual_seed(0)
steps, learned, others = [], [], []
for step in range(81):
    if step % 10 == 0:
        with torch.no_grad():
            steps.append(step)
            learned.append(float(loss_on(train_rows)))
            others.append(float(loss_on(other_rows)))
    rows = torch.randperm(len(train_rows), generator=generator)[:16].tolist()
    optimizer.zero_grad()
    loss_on([train_rows[row] for row in rows]).backward()
    optimizer.step()

best = min(range(len(steps)), key=lambda n: others[n])
print(
    f"best on the others after {steps[best]} steps: {others[best]:.2f}; at the end {others[-1]:.2f}"
)
assert learned[-1] < others[best] < others[-1]
assert 0 < best < len(steps) - 1
curves(
    steps[1:],
    {"the reviews it learns from": learned[1:], "other reviews": others[1:]},
    "It goes on getting better at what it has seen, and worse at everything else",
    "step",
    "loss in nats",
)

# %% [markdown]
# Two curves; stop where the second one is lowest. Never judge by the first alone, and never report the number that you
# used to decide when to stop: that is what a third part of the data, the *test* split, is kept for.
#
# ## The bill
#
# Every number of the model has moved, so the task *is* now a model of its own. And while it was trained, at least four
# times as much was in memory: the weights, their gradients, and two averages that AdamW keeps for each.

# %%
small = PUBLIC["gpt2"].config.num_parameters()
copies, prompts = 100 * 4 * small / 1e9, 100 * 4 * 20 * 768 / 1e9
print(f"100 tasks: {copies:.1f} GB as models, {prompts:.4f} GB as prompts of 20 vectors")
print(f"while training: {4 * 4 * small / 1e9:.1f} GB")
assert (small, round(copies), round(prompts, 3)) == (124_439_808, 50, 0.006)
assert round(4 * 4 * small / 1e9) == 2

xl = PUBLIC["gpt2-xl"].config
vectors = 20
one_more = {
    "GPT-2 small, a copy": 4 * small,
    "GPT-2 small, 20 vectors": 4 * vectors * 768,
    "GPT-2 XL, a copy": 4 * xl.num_parameters(),
    "GPT-2 XL, 20 vectors": 4 * vectors * xl.n_embd,
    "T5-XXL, a copy": 4 * 11e9,
    "T5-XXL, 5 vectors": 4 * 5 * 4096,
}
assert (vectors, 5 * 4096) == (20, 20480)
bars(
    one_more,
    "One more task: a copy of the model, or a few vectors",
    "bytes; every mark is ten times the one before",
    "{:,.0f}",
    log=True,
)

# %% [markdown]
# So the guess: 50 gigabytes, or 0.006 besides one model for all of them. Lester et al. (2021) found that for T5-XXL,
# eleven billion numbers, prompts match finetuning. Their example of a prompt, 5 vectors of 4,096 numbers, is 20,480
# numbers. Whether so few can do the work on smaller models is the question of the next lessons.

# %%
assert round(11e9 / 20480, -3) == 537_000
print(f"one copy of T5-XXL = {11e9 / 20480:,.0f} prompts")

# %% [markdown]
# ## In the package
#
# `minipeft/gpt2.py`, `loss`: what you wrote, except that logits are computed only where a label is, which saves most of
# the work when one word of a long text is asked for. `minipeft/train.py` is the loop, the same for all methods: the
# learning rate rises first and then falls, gradients are kept within bounds, the best step on the development split is
# kept, and a run that was interrupted goes on to the same bits.
#
# ```
# minipeft tune full --task movie --out runs/full
# ```
#
# ## What was left out, and what to read next
#
# Dropout, weight decay, numbers of half precision, more than one machine. Read Radford et al. (2018), *Improving
# Language Understanding by Generative Pre-Training*, on finetuning: there a new output layer gives the class, where we
# ask for a word.
#
# ## On the real GPT-2

# %%
if (gpt2 := real_gpt2()) is not None:
    hello = torch.tensor([[gpt2.tokenizer.eot, *gpt2.tokenizer.encode("Hello world!")]])
    with torch.no_grad():
        loss = float(gpt2.loss(hello, hello))
    print(f"the loss of 'Hello world!': {loss:.4f}")
    assert abs(loss - 5.331856) < 1e-3  # as TransformerLens publishes it
