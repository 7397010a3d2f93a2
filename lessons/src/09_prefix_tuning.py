# %% [markdown]
# # Prefix tuning
#
# **A prefix is a KV cache that nobody wrote: it was learned. After this lesson you have put learned keys and values
# into every block, made them with a small network and thrown that network away, and seen how much a model listens to
# them.**
#
# You will be able to
#
# - write attention with a prefix, and say why the mask matters more than anywhere else,
# - make all keys and values of a prefix with the MLP of Li and Liang, and fold it away,
# - compare a prefix with a soft prompt of as many numbers, and see where in the model it is read.
#
# *Fifty minutes. Before it: [the KV cache](05_writing_text.ipynb) and [soft prompts](07_hard_to_soft.ipynb).*

# %% [markdown]
# ## A guess before we begin
#
# GPT-2 small has 12 blocks, 768 wide. A prefix of 20 vectors has a key and a value in each block. How many numbers is
# that? And how many are *trained* if a network with 512 hidden units makes them? Write both down.

# %% tags=["setup"]
import json

import torch
import torch.nn.functional as F

from minipeft import GPT2, Prefix, attach, load
from minipeft.attention import FixedMemory, explicit_attention, lower_right_mask
from minipeft.checks import check
from minipeft.course.controls import Slider, explore
from minipeft.course.diagrams import block_with_prefix
from minipeft.course.figures import bars, heat_maps, lines_with_errors
from minipeft.course.notebooks import folder
from minipeft.course.real import real_gpt2
from minipeft.downloads import PUBLIC
from minipeft.methods.prefix import PrefixMLP
from minipeft.tasks import TASKS, collate
from minipeft.tune import encoder_for
from minipeft.tuned import SHIPPED_ADAPTERS

model = GPT2.from_pretrained("nano")
tokenizer, c = model.tokenizer, model.config

# %% [markdown]
# ## A cache that came from somewhere else
#
# In lesson five the model read a beginning, kept its keys and values, and went on from there. Let it read a few words,
# then take the keys and values out of the cache and hand them over by themselves. The first words themselves no longer
# go in:

# %%
words = tokenizer.encode("This is a very good film.")
tokens = torch.tensor([tokenizer.encode(" I thought it was")])
P, T = len(words), tokens.shape[1]
with torch.no_grad():
    cache = model.new_cache(batch=1, capacity=P)
    model.hidden(torch.tensor([words]), memory=cache)
    memory = FixedMemory(cache.keys, cache.values)  # two tensors [L, 1, H, P, Dh]
    from_memory = model(tokens, memory=memory)
    typed = model(torch.tensor([words + tokens[0].tolist()]))[:, P:]
print(
    f"{list(memory.keys.shape)} keys and as many values; the logits differ by {(from_memory - typed).abs().max():.0e}"
)
torch.testing.assert_close(from_memory, typed, rtol=0, atol=1e-3)

# %% [markdown]
# The model does not ask where they came from. So they need not come from words: they may be any numbers, and a gradient
# can find them. That is prefix tuning, by Li and Liang (2021). Each block gets its own, so nothing has to travel up
# from the embeddings as with a soft prompt.

# %%
block_with_prefix(
    c.n_head,
    c.head_size,
    10,
    "A prefix: the same block, with keys and values in front that no token has",
)

# %% [markdown]
# $$\text{head} = \text{softmax}\!\left(\frac{q\,[P_k;\,k]^\top}{\sqrt{D_h}}\right) [P_v;\,v]$$
#
# A prefix is not simply added: the softmax weights must still sum to 1, now over more keys, so that even a prefix of
# nothing but zeros changes the result.

# %%
generator = torch.Generator().manual_seed(0)
q, k, v = (torch.randn(1, 6, 8, 32, generator=generator) for _ in range(3))  # [B, H, T, Dh]
zeros = torch.zeros(1, 6, 10, 32)
plain = explicit_attention(q, k, v)
with_zeros = explicit_attention(q, torch.cat([zeros, k], dim=2), torch.cat([zeros, v], dim=2))
print(
    f"ten keys and values of zeros move the output by up to {(with_zeros - plain).abs().max():.1f}"
)
assert (with_zeros - plain).abs().max() > 1

# %% [markdown]
# ## Exercise a: attention with a prefix
#
# *Difficulty 2 of 3, ten minutes.* Every row of the batch gets the same prefix. Each token sees the whole prefix and,
# of the text, itself and everything before it. `lower_right_mask(queries, keys)[0, 0]` is the mask of lesson two.


# %% tags=["exercise"]
def prefix_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    prefix_k: torch.Tensor,
    prefix_v: torch.Tensor,
) -> torch.Tensor:
    """q, k, v [B, H, T, Dh] and the prefix's keys and values [H, P, Dh] give the output [B, H, T, Dh]."""
    # BEGIN SOLUTION
    (B, _, T, _), P = q.shape, prefix_k.shape[1]
    k = torch.cat([prefix_k.expand(B, -1, -1, -1), k], dim=2)  # [B, H, P + T, Dh]
    v = torch.cat([prefix_v.expand(B, -1, -1, -1), v], dim=2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=lower_right_mask(T, P + T)[0, 0])
    # END SOLUTION


# %% tags=["check"]
check("09a", prefix_attention)  # token by token, in plain loops; for help: hint("09a")

# %% [markdown]
# ## A common wrong answer
#
# `is_causal=True`, with more keys than queries. This is *the* mistake with prefixes: the first token sees one vector of
# the prefix, and itself not at all. The loss still falls while one trains it, since something is seen.


# %%
def upper_left(q, k, v, prefix_k, prefix_v):
    k = torch.cat([prefix_k.expand(len(q), -1, -1, -1), k], dim=2)
    v = torch.cat([prefix_v.expand(len(q), -1, -1, -1), v], dim=2)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


assert (
    lower_right_mask(8, 10 + 8)[0, 0, 0].sum() == 11
)  # the first token: ten of the prefix, and itself
check("09a", upper_left)

# %% [markdown]
# ## Where the numbers come from
#
# Training the keys and values of all blocks directly is unstable, Li and Liang report. They let a small network make
# all of them from one little table $E$, a row for each vector of the prefix:
#
# $$[P_k, P_v \text{ of every block}] = \tanh(E W_1^\top + b_1)\, W_2^\top + b_2$$
#
# All blocks are made from the same hidden layer, so that one step there moves all of them together. After training only
# the result is kept: the network is *folded away*, and what is left is $2 \cdot L \cdot D$ numbers for each vector.

# %%
mlp = PrefixMLP(length=20, width=768, hidden=512, layers=12)  # for GPT-2 small
trained, kept = sum(parameter.numel() for parameter in mlp.parameters()), mlp().numel()
print(f"{trained:,} numbers are trained, {kept:,} are kept, {trained / kept:.0f} times fewer")
assert trained == 20 * 768 + (768 * 512 + 512) + (512 * 2 * 12 * 768 + 2 * 12 * 768) == 9_864_704
assert kept == 2 * 12 * 768 * 20 == 368_640

# %% [markdown]
# So the guess: 368,640 kept, and 9,864,704 trained.
#
# ## Exercise b: make them, and fold it away
#
# *Difficulty 3 of 3, twenty minutes.* The network gives each vector of the prefix $2 \cdot L \cdot D$ numbers in a row,
# in this order: block by block, in each block first the key and then the value, in each of these head by head. The
# weights are as `nn.Linear` has them, `[out, in]`.


# %% tags=["exercise"]
def fold(
    E: torch.Tensor,
    W1: torch.Tensor,
    b1: torch.Tensor,
    W2: torch.Tensor,
    b2: torch.Tensor,
    layers: int,
    heads: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """E [P, D], W1 [m, D], b1 [m], W2 [2 L D, m], b2 [2 L D]: the keys and the values, [L, H, P, Dh] each."""
    # BEGIN SOLUTION
    made = F.linear(torch.tanh(F.linear(E, W1, b1)), W2, b2)  # [P, 2 L D]
    made = made.view(E.shape[0], layers, 2, heads, -1)  # [P, L, 2, H, Dh]
    keys, values = made.permute(2, 1, 3, 0, 4)  # 2 x [L, H, P, Dh]
    return keys, values
    # END SOLUTION


# %% tags=["check"]
check("09b", fold)  # number by number, in plain loops; for help: hint("09b")

# %% [markdown]
# ## Training one
#
# As with the soft prompt: `attach`, and forty steps to see it move. Then `compile` folds the network away, and nothing
# changes but the size.

# %%
task = TASKS["movie"]()
tuned = attach(model, Prefix(length=10, reparam=512)).train()
encoder = encoder_for(tuned, task)
rows = [encoder.encode(example) for example in task.splits["train"][::10]]


def loss_on(rows) -> torch.Tensor:
    batch = collate(rows, tokenizer.eot)
    return tuned.loss(batch.tokens, batch.labels, batch.attention_mask)


optimizer = torch.optim.AdamW(tuned.parameters(), lr=1e-3)
with torch.no_grad():
    first = loss_on(rows[::8])
for _ in range(40):
    chosen = torch.randperm(len(rows), generator=generator)[:16].tolist()
    optimizer.zero_grad()
    loss_on([rows[row] for row in chosen]).backward()
    optimizer.step()
with torch.no_grad():
    last = loss_on(rows[::8])

folded = tuned.eval().compile()
with torch.no_grad():
    difference = (folded(tokens) - tuned(tokens)).abs().max()
print(f"loss {first:.2f} before, {last:.2f} after forty steps")
print(f"{tuned.num_trainable():,} numbers were trained, {folded.num_kept():,} are kept")
print(f"the logits of both differ by at most {difference:.0e}")
assert last < first - 1
assert (tuned.num_trainable(), folded.num_kept()) == (1_710_080, 30_720)
assert difference < 1e-4
tuned.detach()
model = folded.detach()  # as it was

# %% [markdown]
# What does a prefix of some length cost on GPT-2 small? Move the control.


# %%
def bill(length):
    length, small = int(length), PUBLIC["gpt2"].config
    L, D = small.n_layer, small.n_embd
    rows = {
        "a soft prompt": length * D,
        "a prefix": 2 * L * D * length,
        "a prefix while its MLP trains": length * D + D * 512 + 512 + 2 * L * D * 513,
        "every weight": small.num_parameters(),
    }
    bars(
        rows,
        f"{length} vectors on GPT-2 small",
        "numbers; every mark is ten times the one before",
        "{:,}",
        log=True,
    )


explore(bill, length=Slider(20, 1, 100, 1))

# %% [markdown]
# ## Against a soft prompt, with as many numbers
#
# A prefix of 1 vector in six blocks has $2 \cdot 6 \cdot D$ numbers, as many as a soft prompt of 12 vectors. Is it
# better to spend them on one vector in every block, or on many at the bottom? Both began with common tokens, the prefix
# without the network, so that kept and trained numbers are the same; both were trained for 600 steps of 32 reviews,
# with the learning rates 0.03 and 0.1, and the better of the two on the development split is shown, by its score there,
# which flatters both. The model was the first nano, 192 wide; `python recipes/sweep.py --grid equal_numbers --out
# runs/equal` measures the one that ships now.

# %%
runs = [
    json.loads(line)
    for line in (folder().parent / "docs/results/sweep_equal_numbers.jsonl")
    .read_text()
    .splitlines()
]
width = 192
best: dict[str, dict[int, float]] = {"soft_prompt": {}, "prefix": {}}
for run in runs:
    method, length = run["run"]["method"], run["run"]["length"]
    numbers = length * width * (2 * 6 if method == "prefix" else 1)
    best[method][numbers] = max(best[method].get(numbers, 0.0), 100 * run["dev_accuracy"])
for numbers in sorted(best["prefix"]):
    print(
        f"{numbers:,} numbers: soft prompt {best['soft_prompt'][numbers]:.1f} %, prefix {best['prefix'][numbers]:.1f} %"
    )
assert width == 192
assert 1 * 2 * 6 * width == 12 * width == min(best["prefix"])
assert sorted(best["prefix"]) == sorted(best["soft_prompt"]) == [2304, 4608, 9216]
assert {run["run"]["lr"] for run in runs} == {0.03, 0.1}
assert all(abs(best["prefix"][n] - best["soft_prompt"][n]) < 1.6 for n in best["prefix"])
assert all((run["run"]["steps"], run["run"]["batch_size"]) == (600, 32) for run in runs)
lines_with_errors(
    {name.replace("_", " "): values for name, values in best.items()},
    1.6,
    "With as many numbers, a prefix and a soft prompt do equally well here",
    "numbers trained",
    "right answers in %, development split",
)

# %% [markdown]
# No difference that one seed could show: a standard error is 1.6 points. On larger models and tasks where text is
# written, prefixes come out ahead in the published comparisons, but none of those gives both the same number of
# numbers, its own learning rate, and several seeds; a later lesson does. One difference is certain. The twelve vectors
# of the prompt stand in front of the text and are computed with it, in every block, while the prefix is only looked at.
#
# ## Who listens to it?
#
# Each head shares its attention out between the prefix and the text. Two of the prefixes that ship with the package,
# one that makes the model write like a good review and one like Shakespeare, both of 10 vectors; and, to compare with,
# the keys and values of 10 tokens of plain text. Here is the part that goes to them, for every head of every block,
# averaged over the tokens of a sentence:


# %% tags=["figure"]
def mass_on(memory: FixedMemory, text: str) -> torch.Tensor:
    """The share of attention that goes to the memory, [L, H], averaged over the text."""
    tokens, P = torch.tensor([tokenizer.encode(text)]), memory.length
    T, shares = tokens.shape[1], []
    with torch.no_grad():
        x = model.wte(tokens) + model.wpe(torch.arange(P, P + T))
        for layer, block in enumerate(model.blocks):
            q, k, _ = block.attn.c_attn(block.ln_1(x)).chunk(3, dim=-1)
            q, k = (
                part.unflatten(-1, (c.n_head, -1)).transpose(1, 2) for part in (q, k)
            )  # [1, H, T, Dh]
            k = torch.cat([memory.keys[layer], k], dim=2)  # [1, H, P + T, Dh]
            weights = explicit_attention(
                q, k, torch.eye(P + T).expand(1, c.n_head, -1, -1)
            )  # [1, H, T, P + T]
            shares.append(weights[0, :, :, :P].sum(dim=-1).mean(dim=-1))
            x = block(x, None, memory, layer)
    return torch.stack(shares)


plain_text = tokenizer.encode("The day was long, and nobody had come to")[:10]
cache = model.new_cache(batch=1, capacity=10)
with torch.no_grad():
    model.hidden(torch.tensor([plain_text]), memory=cache)
memories = {
    name: load(SHIPPED_ADAPTERS / name, model).attachment.doors().memory
    for name in ("positive", "shakespeare")
}
memories["ten tokens of text"] = FixedMemory(cache.keys, cache.values)
assert {memory.length for memory in memories.values()} == {10}

sentence = "It is a story of a man who goes home after the war."
masses = {name: mass_on(memory, sentence) for name, memory in memories.items()}
heat_maps(
    list(masses.values()),
    [f"{name}: {float(mass.mean()):.0%} in all" for name, mass in masses.items()],
    "A prefix gets a little more attention than text would; a few heads give it nearly all",
    [f"block {layer}" for layer in range(c.n_layer)],
    None,
    "",
    "head",
    numbers=True,
)
T = len(tokenizer.encode(sentence))
even = 100 * sum(10 / (10 + t) for t in range(1, T + 1)) / T
print(f"if every key were heard alike, the ten would get {even:.0f} %")
assert round(even) == 60
means = {name: round(100 * float(mass.mean())) for name, mass in masses.items()}
assert (means["ten tokens of text"], means["positive"]) == (45, 53)
assert masses["ten tokens of text"].max() < 0.75
assert masses["positive"][2, 2] > 0.95
assert masses["shakespeare"][2, 0] > 0.95

# %% [markdown]
# Do not be impressed by the 53 percent. Text in the same place gets 45, and if every key were heard alike the ten would
# get 60. What is learned shows in single heads: head 2 of block 2 gives more than 0.95 of its attention to `positive`,
# and head 0 of block 2 as much to `shakespeare`, while no head gives ten tokens of text more than 0.75. Such a head
# reads the prefix and little else, so what it passes on is a mixture of ten learned values, and hardly of the text.
#
# ## In the package
#
# `minipeft/methods/prefix.py` has the table, the network, and the cut into layers and heads; the layout is that of the
# PEFT library, so that a prefix made here works there. Where it goes into the model is called the `memory` door (lesson
# thirteen has all three): `FixedMemory` in `minipeft/attention.py`. When text is written, `KVCache.start_with` puts the
# prefix into the first slots of the cache of lesson five, and from then on nobody can tell them apart.
#
# ```
# minipeft tune prefix --task movie --reparam 512 --out runs/prefix
# minipeft generate "It is a" --adapter shakespeare
# ```
#
# ## What was left out, and what to read next
#
# Starting from the keys and values of real words, which helps most where examples are few; and what a prefix *cannot*
# do, which is a later lesson. Read section 4 of Li & Liang (2021), *Prefix-Tuning: Optimizing Continuous Prompts for
# Generation*.
#
# ## On the real GPT-2

# %%
if (gpt2 := real_gpt2()) is not None:
    words, tokens = (
        gpt2.tokenizer.encode("This is a very good film."),
        gpt2.tokenizer.encode(" I thought it was"),
    )
    with torch.no_grad():
        cache = gpt2.new_cache(batch=1, capacity=len(words))
        gpt2.hidden(torch.tensor([words]), memory=cache)
        from_memory = gpt2(torch.tensor([tokens]), memory=FixedMemory(cache.keys, cache.values))
        typed = gpt2(torch.tensor([words + tokens]))[:, len(words) :]
    print(
        f"a cache handed over as a prefix: the logits differ by {(from_memory - typed).abs().max():.0e}"
    )
    torch.testing.assert_close(from_memory, typed, rtol=0, atol=1e-2)
