# %% [markdown]
# # Training a soft prompt well
#
# **It is easy to tune a prompt whose loss never moves. After this lesson you know the
# three settings that decide, have seen them fail, and can read what a trained prompt has become.**
#
# You will be able to
#
# - choose a learning rate for a prompt, and say why it must be so much larger than for weights,
# - start a prompt from the names of the classes,
# - look at a trained prompt through the tokens nearest to it, without believing too much of what you see.
#
# *Forty minutes. Before it: [from hard prompts to soft prompts](07_hard_to_soft.ipynb).*

# %% [markdown]
# ## A guess before we begin
#
# A soft prompt of 20 vectors begins with random numbers. You train it for 600 steps with the learning rate that
# everybody uses for finetuning, `1e-4`. Half of the reviews are positive. How many percent will it get right? Write
# your guess down.

# %% tags=["setup"]
import json

import torch
import torch.nn.functional as F

from minipeft import GPT2, SoftPrompt, attach, load
from minipeft.checks import check
from minipeft.course.figures import curves, heat_maps
from minipeft.course.notebooks import folder
from minipeft.course.real import real_gpt2
from minipeft.tasks import TASKS, collate
from minipeft.tune import LEARNING_RATES, encoder_for

model = GPT2.from_pretrained("nano")
tokenizer, embeddings = model.tokenizer, model.wte.weight.detach()
task = TASKS["movie"]()

# %% [markdown]
# ## The loss that never moves
#
# Two prompts from the same random start, two learning rates, forty steps each, on the same reviews:


# %%
def train(lr: float, steps: int = 40) -> list[float]:
    """The loss of each step."""
    tuned = attach(model, SoftPrompt(length=20, init="random"), seed=0).train()
    encoder = encoder_for(tuned, task)
    rows = [encoder.encode(example) for example in task.splits["train"][::10]]
    optimizer = torch.optim.AdamW(tuned.parameters(), lr=lr, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(steps):
        chosen = torch.randperm(len(rows), generator=generator)[:8].tolist()
        batch = collate([rows[row] for row in chosen], tokenizer.eot)
        loss = tuned.loss(batch.tokens, batch.labels, batch.attention_mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    tuned.detach()
    return losses


losses = {"1e-4": train(1e-4), "0.1": train(0.1)}
assert sum(losses["1e-4"][-5:]) > 0.9 * sum(losses["1e-4"][:5])  # not even a tenth
assert sum(losses["0.1"][-5:]) < 0.4 * sum(losses["0.1"][:5])
curves(
    range(1, 41),
    {f"learning rate {lr}": loss for lr, loss in losses.items()},
    "With the learning rate of finetuning a prompt stays where it was",
    "step",
    "loss in nats",
)

# %% [markdown]
# No mystery. Adam moves every number by about the learning rate at each step, whatever the gradient's size. In 600
# steps of `1e-4` a number moves by about 0.06, and by half of that if the rate falls on the way. The numbers of a
# prompt that works, the one of lesson seven, are ten times that in size: its rate let it travel far from wherever it
# began. The weights of a whole model need not go far, since there are millions of them; whether twenty vectors must,
# the grid below tells.

# %%
learned = load(folder() / "prompts" / "movie", model).attachment.prompt_embeddings.detach()
start = torch.rand(20, model.config.n_embd, generator=torch.Generator().manual_seed(0)) - 0.5
print(f"reach: {600 * 1e-4:.2f}; the numbers of a prompt that works: {learned.std():.2f} in size")
print(
    f"lengths: a random vector {start.norm(dim=1).mean():.1f}, a token's {embeddings.norm(dim=1).median():.1f}"
)
assert round(600 * 1e-4, 2) == 0.06
assert learned.std() > 10 * 600 * 1e-4
assert start.norm(dim=1).mean() > 3 * embeddings.norm(dim=1).median()

# %% [markdown]
# The last line shows that random vectors are like nothing that the model has seen: more than 3 times as long as those
# of the tokens. That is a reason to try other starts: the vectors of some common tokens, or of the words that we want
# to hear. Whether it helps, the figure below will tell.
#
# ## Exercise a: starting from the labels
#
# *Difficulty 1 of 3, ten minutes.* One vector for each label, the mean of its tokens' embeddings; after them the
# embeddings of some other tokens, to fill the prompt up. What comes out will be trained, so it must be numbers of its
# own and not a view into the model's table.


# %% tags=["exercise"]
def start_from_labels(
    embeddings: torch.Tensor, labels: list[list[int]], others: list[int]
) -> torch.Tensor:
    """From the table [V, D], each label's tokens, and other tokens: the prompt [labels + others, D] to start with."""
    # BEGIN SOLUTION
    means = [embeddings[label].mean(dim=0) for label in labels]
    return torch.stack([*means, *embeddings[others]])
    # END SOLUTION


# %% tags=["check"]
check("08a", start_from_labels)  # against a loop over single numbers; for help: hint("08a")

# %% [markdown]
# ## All together: rate, start, length
#
# Each cell is a prompt that was trained for 600 steps of 32 reviews, with its own learning rate, start and length; the
# number is the best accuracy that it reached on the 956 reviews of the development split, in percent. Chosen and
# measured on the same reviews, all cells are flattered, and alike. One standard error is 1.6 points, so do not read
# much into one or two. It took more than an hour on two cores, with an earlier and smaller nano: `python
# recipes/sweep.py --grid soft_prompt --out runs/grid` does it with the one that ships now.

# %% tags=["figure"]
path = folder().parent / "docs" / "results" / "sweep_soft_prompt_grid.jsonl"
runs = [json.loads(line) for line in path.read_text().splitlines()]
rates, starts, lengths = (1e-4, 1e-3, 0.01, 0.1), ("random", "vocab", "labels"), (1, 5, 20)
found = {
    (run["run"]["length"], run["run"]["init"], run["run"]["lr"]): 100 * run["dev_accuracy"]
    for run in runs
}
grid = {
    length: torch.tensor([[found[length, start, rate] for rate in rates] for start in starts])
    for length in lengths
}
assert all(run["run"]["steps"] == 600 and run["run"]["batch_size"] == 32 for run in runs)
assert len(task.splits["dev"]) == 956
assert round(100 * (0.5 * 0.5 / 956) ** 0.5, 1) == 1.6
heat_maps(
    list(grid.values()),
    [f"{length} vector{'s' * (length > 1)}" for length in lengths],
    "The learning rate decides first, then the length, then the start",
    starts,
    [f"{rate:g}" for rate in rates],
    "start",
    "learning rate",
    numbers=True,
    lightest=48.0,
    darkest=68.0,
    number="{:.1f}",
)
assert all((cells[:, 0] - 50.4).abs().max() < 0.05 for cells in grid.values())
assert all(3 < cells - grid[20][0, 3] < 5 for cells in grid[20][1:, 3])
assert LEARNING_RATES["soft_prompt"] == 0.01
assert all(grid[1][0, 3] > cells for cells in grid[1][1:, 3])
assert grid[20][:, 3].max() == max(float(cells.max()) for cells in grid.values())

# %% [markdown]
# The left column answers the guess: with `1e-4` every prompt, however long and whatever it began with, gets 50.4
# percent, which is what you get by always giving the same answer. The default of `minipeft tune` is 0.01, from an
# earlier sweep; 0.1 is no worse, and the difference is within the noise. A start from words is worth 3 to 5 points
# where there are 20 vectors; a single vector does better from random numbers, perhaps because one word is so strong a
# hint.
#
# ## What has it become?
#
# A trained prompt is vectors, and vectors can be compared with those of tokens. By the *cosine*, that is by direction
# alone:
#
# $$\cos(P_i, e_t) = \frac{P_i \cdot e_t}{\lVert P_i \rVert\, \lVert e_t \rVert}$$
#
# ## Exercise b: the nearest tokens
#
# *Difficulty 2 of 3, ten minutes.*


# %% tags=["exercise"]
def nearest_tokens(prompt: torch.Tensor, embeddings: torch.Tensor, n: int) -> torch.Tensor:
    """The ids [P, n] of the tokens of the table [V, D] nearest to each vector of the prompt [P, D], best first."""
    # BEGIN SOLUTION
    cosines = F.normalize(prompt, dim=-1) @ F.normalize(embeddings, dim=-1).T  # [P, V]
    return cosines.topk(n).indices
    # END SOLUTION


# %% tags=["check"]
check(
    "08b", nearest_tokens
)  # against PyTorch's cosine_similarity, pair by pair; for help: hint("08b")

# %% [markdown]
# ## A common wrong answer
#
# The plain product, without the lengths. Long vectors then win everywhere, and the longest are those of tokens that the
# model has hardly ever seen:


# %%
def by_product(prompt, embeddings, n):
    return (prompt @ embeddings.T).topk(n).indices


check("08b", by_product)
longest = embeddings.norm(dim=1).topk(5).indices.tolist()
print("the longest:", [tokenizer.decode([token]) for token in longest])

# %% [markdown]
# Here is the prompt of lesson seven. It began as " bad", " good" and eighteen common tokens:

# %%
began = attach(model, SoftPrompt(length=20, init="labels", labels=("bad", "good")), seed=0)
began = began.attachment.prompt_embeddings.detach()
cosines = F.normalize(learned, dim=1) @ F.normalize(embeddings, dim=1).T  # [P, V]
for number in range(6):
    near = cosines[number].topk(4)
    words = [
        f"{tokenizer.decode([token])!r} {c:.2f}"
        for token, c in zip(near.indices.tolist(), near.values, strict=True)
    ]
    kept = F.cosine_similarity(learned[number], began[number], dim=0)
    print(f"vector {number}: cosine with its start {kept:.2f}; nearest {'  '.join(words)}")
lengths = learned.norm(dim=1)
print(
    f"its vectors are {lengths.mean() / embeddings.norm(dim=1).median():.0f} times as long as a token's"
)
assert lengths.min() > 5 * embeddings.norm(dim=1).median()
assert cosines.max() < 0.45

# %% [markdown]
# So it reads like nothing. Its vectors are more than 5 times as long as those of tokens, and no token comes nearer to
# any of them than a cosine of 0.45. A prompt is found by a gradient, and the gradient never asked for something that
# people can read. In section seven of their paper Lester et al. find nearest tokens of a large model that do look like
# the task; that they explain what the prompt does is another claim.
#
# ## In the package
#
# `minipeft/methods/soft_prompt.py` has the four starts; `minipeft/tune.py` the learning rates that sweeps found, one
# for each method; `docs/sweep.md` the sweeps themselves. To see the nearest tokens of any prompt:
#
# ```
# minipeft inspect runs/movie
# ```
#
# ## What was left out, and what to read next
#
# Batch size, schedules, and luck: one seed each is what you saw. Read section 3 of Lester et al. (2021), where length
# and start are varied for models of five sizes: the larger the model, the less any of it matters.
#
# ## On the real GPT-2

# %%
if (gpt2 := real_gpt2()) is not None:
    table = gpt2.wte.weight.detach()
    near = (
        (F.normalize(table[gpt2.tokenizer.encode(" good")], dim=1) @ F.normalize(table, dim=1).T)
        .topk(6)
        .indices[0]
    )
    print("nearest to ' good':", [gpt2.tokenizer.decode([token]) for token in near.tolist()])
