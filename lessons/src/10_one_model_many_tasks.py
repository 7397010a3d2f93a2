# %% [markdown]
# # A soft prompt is a prefix; many tasks, one model
#
# **What stands before a text in a causal model never learns what the text is. So a soft prompt can be read once and
# kept as keys and values, and rows of one batch may each have a task of their own. After this lesson you have done
# both: the first to the last bit, the second up to rounding.**
#
# You will be able to
#
# - turn a soft prompt into the prefix that it is equal to, and say why there is no way back,
# - serve several tasks in one batch, with masks and positions so that no row notices the others,
# - say what one more task costs in bytes, against one more copy of the model.
#
# *Fifty minutes. Before it: [soft prompts](07_hard_to_soft.ipynb) and [prefix tuning](09_prefix_tuning.ipynb).*

# %% [markdown]
# ## A guess before we begin
#
# Every task has a soft prompt of 20 vectors. How many of them take as many bytes as one more copy of GPT-2 small? And
# if you throw a prompt away, keep only the keys and values that it had in each block, and hand these to the model: by
# how much do the logits change? Write both down.

# %% tags=["setup"]
import json

import torch

from minipeft import GPT2, PromptBank, Sampling, SoftPrompt, attach, load
from minipeft.attention import FixedMemory, lower_right_mask
from minipeft.checks import check
from minipeft.course.controls import Choice, Slider, explore
from minipeft.course.diagrams import ServedRow, batch_of_tasks
from minipeft.course.figures import bars, heat_maps
from minipeft.course.notebooks import folder
from minipeft.course.real import real_gpt2
from minipeft.downloads import PUBLIC
from minipeft.tuned import SHIPPED_ADAPTERS

model = GPT2.from_pretrained("nano")
tokenizer, c = model.tokenizer, model.config
L, H, D, Dh = c.n_layer, c.n_head, c.n_embd, c.head_size

# %% [markdown]
# ## One prompt before two texts
#
# The soft prompt that lies beside lesson seven makes the model say whether a review is good or bad. Here it stands
# before two texts that have nothing in common. Each time a cache keeps all keys and values; compare those of the
# prompt's places.

# %%
soft = load(folder() / "prompts" / "movie", model)
prompt = soft.attachment.prompt_embeddings.detach()  # [P, D]
P = len(prompt)


def read(text: str) -> FixedMemory:
    """What the prompt's places hold after the model has read the prompt and a text."""
    tokens = torch.tensor([tokenizer.encode(text)])
    cache = model.new_cache(batch=1, capacity=P + tokens.shape[1])
    with torch.no_grad():
        model.hidden(tokens, prompt=prompt[None], memory=cache)
    return FixedMemory(cache.keys[:, :, :, :P], cache.values[:, :, :, :P])


one, other = read("A joy to watch."), read("The king is dead.")
difference = max((one.keys - other.keys).abs().max(), (one.values - other.values).abs().max())
print(f"keys {list(one.keys.shape)} and as many values; they differ by {difference:.0e}")
assert one.keys.shape == one.values.shape == (L, 1, H, P, Dh) == (6, 1, 4, 20, 64)
assert difference < 1e-4

# %% [markdown]
# They are the same. This is no luck. With $h^0_i = P_i + \text{wpe}(i)$ at the prompt's places $i < p$,
#
# $$h^{l+1}_i = \text{block}_l(h^l_0, \ldots, h^l_i) \qquad
# [q, k, v]^l_i = \text{c\_attn}_l(\text{ln\_1}_l(h^l_i))$$
#
# A causal block makes place $i$ of places up to $i$. The text begins at place $p$, so it is in none of the $h^0_i$ with
# $i < p$, and therefore in none of the $h^1_i$, and so on upwards. In a model without the causal mask it all ends here.
# Below, the vector at one place is exchanged for another, and each box says how far a key of the last block moves,
# measured by its length:


# %%
def moved(mask: torch.Tensor) -> torch.Tensor:
    """How much the key of each place moves in the last block if the vector at each place is exchanged, [T, T]."""

    def keys(vectors: torch.Tensor) -> torch.Tensor:
        x = (vectors + model.wpe(torch.arange(len(vectors))))[None]
        for layer, block in enumerate(model.blocks[:-1]):
            x = block(x, mask, None, layer)
        last = model.blocks[-1]
        return last.attn.c_attn(last.ln_1(x))[0, :, D : 2 * D]  # [T, D]

    with torch.no_grad():
        vectors = torch.cat([prompt[:4], model.wte.weight[tokenizer.encode("It is a film")]])
        before, change = keys(vectors), []
        for place in range(len(vectors)):
            exchanged = vectors.clone()
            exchanged[place] = model.wte.weight[tokenizer.encode(" house")[0]]
            change.append((keys(exchanged) - before).norm(dim=1) / before.norm(dim=1))
    return torch.stack(change, dim=1)  # [whose key, what was exchanged]


causal = moved(lower_right_mask(8, 8))
both_ways = moved(torch.ones(1, 1, 8, 8, dtype=torch.bool))
names = ["$P_0$", "$P_1$", "$P_2$", "$P_3$", "It", "is", "a", "film"]
heat_maps(
    [causal, both_ways],
    ["causal: the text moves no key of the prompt", "no mask: everything moves everything"],
    "Only in a causal model does a prompt have keys of its own",
    names,
    names,
    "whose key",
    "what was exchanged",
    numbers=True,
)
assert causal.shape == (8, 8)
assert causal[:4, 4:].max() < 1e-5
assert both_ways[:4, 4:].min() > 0.01

# %% [markdown]
# ## Exercise a: compile a prompt
#
# *Difficulty 2 of 3, fifteen minutes.* Send the prompt through the model once, by itself, and keep the keys and the
# values of every block. `block.attn.c_attn` gives $[q, k, v]$ side by side, each $D$ wide; a block is called as
# `block(x, None, None, layer)`, `None` for the plain causal mask and for no memory.


# %% tags=["exercise"]
def compile_prompt(model: GPT2, prompt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A soft prompt [P, D] gives the keys and the values of all blocks, [L, H, P, Dh] each."""
    # BEGIN SOLUTION
    x = (prompt + model.wpe(torch.arange(len(prompt))))[None]  # [1, P, D]
    keys, values = [], []
    for layer, block in enumerate(model.blocks):
        _, k, v = block.attn.c_attn(block.ln_1(x)).chunk(3, dim=-1)
        for made, part in ((keys, k), (values, v)):
            made.append(part[0].unflatten(-1, (model.config.n_head, -1)).transpose(0, 1))
        x = block(x, None, None, layer)
    return torch.stack(keys), torch.stack(values)
    # END SOLUTION


# %% tags=["check"]
check("10a", compile_prompt)  # against the cache of transformers; for help: hint("10a")

# %% [markdown]
# ## A common wrong answer
#
# The positions are forgotten: a prompt is not text, is it? But `wpe` was added to it in training. Nothing complains,
# and with this prompt one hardly sees it: its trained numbers are so large that `wpe` is a small part of them, and the
# answer stays the same. Before a prompt that still lies near real words the same mistake does real harm.


# %%
def without_positions(model, prompt):
    x, keys, values = prompt[None], [], []
    for layer, block in enumerate(model.blocks):
        _, k, v = block.attn.c_attn(block.ln_1(x)).chunk(3, dim=-1)
        for made, part in ((keys, k), (values, v)):
            made.append(part[0].unflatten(-1, (model.config.n_head, -1)).transpose(0, 1))
        x = block(x, None, None, layer)
    return torch.stack(keys), torch.stack(values)


check("10a", without_positions)
review = torch.tensor([tokenizer.encode(" The story is dull and the ending is worse.")])
prompts = {
    "the trained prompt": prompt,
    "a prompt of real words": model.wte.weight[
        tokenizer.encode("This is a very good film. I liked")
    ],
}
off, stays = {}, {}
with torch.no_grad():
    for name, vectors in prompts.items():
        keys, values = without_positions(model, vectors)
        wrong = model(review, memory=FixedMemory(keys[:, None], values[:, None]))
        right = model(review, prompt=vectors[None])
        off[name] = float((wrong - right).abs().max())
        stays[name] = bool(wrong[0, -1].argmax() == right[0, -1].argmax())
        print(f"{name}: logits off by {off[name]:.1f}; the same next token: {stays[name]}")
wpe = model.wpe.weight[:P].detach()
print(
    f"numbers of the prompt are {prompt.abs().mean() / wpe.abs().mean():.0f} times as large as those of wpe"
)
assert prompt.abs().mean() > 10 * wpe.abs().mean()
assert stays == {"the trained prompt": True, "a prompt of real words": False}
assert 0.5 < off["the trained prompt"] < 3 < off["a prompt of real words"]

# %% [markdown]
# In the package it is one call, for soft prompts, for P-tuning (a soft prompt that a small network makes) and for
# prefixes whose MLP is still there. What comes of it is a `Prefix` like any other:

# %%
compiled = soft.compile()
with torch.no_grad():
    difference = float((compiled(review) - soft(review)).abs().max())
T = review.shape[1]
print(
    f"the logits differ by at most {difference:.0e}; {type(compiled.method).__name__}, {compiled.method.length} vectors"
)
print(f"each block now reads {T} tokens for this review, not {P} + {T}")
as_many = compiled.num_kept() // soft.num_kept()
print(f"{soft.num_kept():,} numbers became {compiled.num_kept():,}, {as_many} times as many")
assert difference < 1e-3
assert (soft.num_kept(), compiled.num_kept()) == (5_120, 61_440)
assert compiled.num_kept() == 12 * soft.num_kept() == 2 * L * D * P

# %% [markdown]
# That answers the second guess: nothing changes. What one pays is room. A soft prompt has $D$ numbers a vector, its
# keys and values $2 L D$, here 12 times as many; one may as well keep the prompt on disk and compile it when it is
# wanted. While text is written both take the same room, since a cache holds the prompt's keys and values anyway.
#
# ## There is no way back
#
# A soft prompt has $p \cdot D$ numbers and a prefix $2 L$ times as many, so most prefixes come from no prompt of their
# length. One can see it in a single block. There, whatever $x$ is, $[k, v]$ is $W x + b$: $2 D$ numbers made of only
# $D$, which fill a thin slice of the space they are in. Take the keys and values of a prefix, look for the $x$ that
# comes nearest, and see how much of them is left over:


# %%
def left_over(memory: FixedMemory) -> list[float]:
    """Of each block, how long the part of [k, v] - b is that no x gives: 0 is reached, 1 is all of it."""
    parts = []
    for layer, block in enumerate(model.blocks):
        W, b = block.attn.c_attn.weight[D:].detach(), block.attn.c_attn.bias[D:].detach()
        k, v = (part[layer, 0].transpose(0, 1).flatten(1) for part in (memory.keys, memory.values))
        wanted = torch.cat([k, v], dim=1).detach() - b  # [P, 2 D]
        x = torch.linalg.lstsq(W, wanted.T).solution  # [D, P]
        parts.append(float((W @ x - wanted.T).norm() / wanted.norm()))
    return parts


memories = {"review": compiled.attachment.doors().memory}
for name in ("positive", "shakespeare"):
    memories[name] = load(SHIPPED_ADAPTERS / name, model).attachment.doors().memory
drawn = torch.randn(2, L, 1, H, P, Dh, generator=torch.Generator().manual_seed(0))
rest = {name: left_over(memory) for name, memory in memories.items()}
rest["drawn at random"] = left_over(FixedMemory(*drawn))
for name, parts in rest.items():
    print(f"{name}: {', '.join(f'{part:.2f}' for part in parts)}")
bars(
    {
        "the compiled prompt": rest["review"][0],
        "the prefix positive": rest["positive"][0],
        "the prefix shakespeare": rest["shakespeare"][0],
        "keys drawn at random": rest["drawn at random"][0],
    },
    "No soft prompt could have put there what a trained prefix holds",
    "length of the part that no vector gives, of the first block's keys and values (1: all)",
    "{:.2f}",
)
assert max(rest["review"]) < 1e-3
assert min(rest["positive"] + rest["shakespeare"]) > 0.05
assert round(100 * rest["positive"][0]) == 30
assert all(abs(part - 0.5**0.5) < 0.03 for part in rest["drawn at random"])

# %% [markdown]
# Of the compiled prompt nothing is left over, as it must be. Of `positive`, a prefix that was trained as one, a rest
# remains in every block; in the first it is 30 percent as long as what was wanted. That is less than of numbers drawn
# at random, of which half the squares lie outside. But out of reach is out of reach.
#
# ## Many tasks in one batch
#
# Now every prompt is a prefix, and prefixes are data: the weights do not know about them. So the rows of one batch need
# not agree. Row by row another prefix goes in front, and the model runs once. Two things need care when the prefixes
# are not equally long. The shorter ones are padded with empty slots in front:
#
# - *The mask*: an empty slot holds zeros, and zeros are keys too; lesson nine found that they take their share of the
#   softmax. They must be hidden, and which slots are empty differs from row to row.
# - *Positions*: padding takes none. A row's first token stands at its own prefix's length, not at that of the longest.
#
# One rule gives both. Mark what is real, $r_{bs} \in \{0, 1\}$, for all slots and then all tokens of row $b$:
#
# $$\text{position}_{bs} = \sum_{j \le s} r_{bj} - 1 \qquad
# \text{token } s \text{ sees } j \iff j \le s \text{ and } r_{bj} = 1$$

# %%
lengths, tokens = [1, 3, 0], 2  # three rows, the last without a prefix; two tokens of text each
most = max(lengths)
real = torch.zeros(len(lengths), most + tokens, dtype=torch.bool)
for row, length in enumerate(lengths):
    real[row, most - length :] = True
positions = (real.cumsum(dim=1) - 1)[:, most:]
mask = lower_right_mask(tokens, most + tokens, real)
print("real, slots and then tokens:", *real.int().tolist(), sep="\n   ")
print("positions of the two tokens:", *positions.tolist(), sep="\n   ")
assert mask.shape == (3, 1, 2, 5)
assert positions.tolist() == [[1, 2], [3, 4], [0, 1]]
assert mask[2, 0].int().tolist() == [[0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]

# %% [markdown]
# ## Exercise b: serve them
#
# *Difficulty 3 of 3, twenty minutes.* Each row has its own keys and values, and they may be of any length, zero
# included. Give the logits that each row would get alone. `FixedMemory(keys, values)` with `[L, B, H, most, Dh]` each
# is the memory, and `block(x, mask, memory, layer)` a block that reads it; the mask is yours, and so are the positions.
# All rows go through the blocks together, once.


# %% tags=["exercise"]
def serve(
    model: GPT2, prefixes: list[tuple[torch.Tensor, torch.Tensor]], tokens: torch.Tensor
) -> torch.Tensor:
    """Keys and values of each row's prefix, [L, H, P_b, Dh] each, and tokens [B, T]: the logits [B, T, V]."""
    # BEGIN SOLUTION
    c, (B, T) = model.config, tokens.shape
    most = max(k.shape[2] for k, _ in prefixes)
    keys, values = torch.zeros(2, c.n_layer, B, c.n_head, most, c.head_size)
    real = torch.zeros(B, most + T, dtype=torch.bool)
    for row, (k, v) in enumerate(prefixes):
        start = most - k.shape[2]
        keys[:, row, :, start:], values[:, row, :, start:] = k, v
        real[row, start:] = True
    positions = (real.cumsum(dim=1) - 1)[:, most:]  # [B, T]
    memory, mask = FixedMemory(keys, values), lower_right_mask(T, most + T, real)
    x = model.wte(tokens) + model.wpe(positions)
    for layer, block in enumerate(model.blocks):
        x = block(x, mask, memory, layer)
    return model.logits(model.ln_f(x))
    # END SOLUTION


# %% tags=["check"]
check("10b", serve)  # row by row against transformers; for help: hint("10b")

# %% [markdown]
# ## Another common wrong answer
#
# One mask for the whole batch: a slot counts as real as soon as *any* row fills it. So rows with a short prefix see
# empty slots that a neighbour's prompt made. Test such code with one row, or with prompts of one length, and it is
# right. It goes wrong in company only, and how wrong depends on the company.


# %%
def one_mask_for_all(model, prefixes, tokens):
    c, (B, T) = model.config, tokens.shape
    most = max(k.shape[2] for k, _ in prefixes)
    keys, values = torch.zeros(2, c.n_layer, B, c.n_head, most, c.head_size)
    real = torch.zeros(B, most + T, dtype=torch.bool)
    for row, (k, v) in enumerate(prefixes):
        start = most - k.shape[2]
        keys[:, row, :, start:], values[:, row, :, start:] = k, v
        real[row, start:] = True
    positions = (real.cumsum(dim=1) - 1)[:, most:]
    anyone = real.any(dim=0).expand(B, -1)  # here
    memory, mask = FixedMemory(keys, values), lower_right_mask(T, most + T, anyone)
    x = model.wte(tokens) + model.wpe(positions)
    for layer, block in enumerate(model.blocks):
        x = block(x, mask, memory, layer)
    return model.logits(model.ln_f(x))


check("10b", one_mask_for_all)
prefixes = [(memory.keys[:, 0], memory.values[:, 0]) for memory in memories.values()]
day = torch.tensor([tokenizer.encode("It is a good day")] * 3)
with torch.no_grad():
    alone = torch.cat([model(day[:1], memory=memory) for memory in memories.values()])
    single = torch.cat([one_mask_for_all(model, [prefix], day[:1]) for prefix in prefixes])
    together = one_mask_for_all(model, prefixes, day)
print("off by, one row at a time:", [round(float(row.abs().max()), 1) for row in single - alone])
print("off by, all three at once:", [round(float(row.abs().max()), 1) for row in together - alone])
assert (single - alone).abs().max() < 1e-3
assert (together - alone)[0].abs().max() < 1e-3  # the longest has no empty slot
assert (together - alone)[1:].abs().amax(dim=(1, 2)).min() > 3

# %% [markdown]
# ## A bank of prompts
#
# The package keeps prompts of one model in a `PromptBank`, compiled and folded, each under its task's name. Here are
# four rows with three tasks, and one row with none. Texts are of unlike length as well; they are padded in the same
# way, and every row has settings of its own: one word for the review, and a few for the others, which have the same
# seed, so that what differs between them comes from their tasks.

# %% tags=["figure"]
bank = PromptBank(model)
bank.add("review", folder() / "prompts" / "movie")  # the soft prompt of 20 vectors
bank.add("positive", "positive")  # prefixes of 10 that ship
bank.add("negative", "negative")
bank.add("shakespeare", "shakespeare")
held = {prompt.task: prompt for prompt in bank.list()}

tasks = ["review", "positive", "shakespeare", None]
texts = ["A joy to watch.", "It is a", "It is a", "It is a"]
few = Sampling(max_new_tokens=9, temperature=0.8, top_k=20, seed=4)
settings = [Sampling(max_new_tokens=1, temperature=0.0), few, few, few]
written = bank.generate(texts, tasks, sampling=settings)
batch_of_tasks(
    [
        ServedRow(
            task or "no task",
            held[task].nbytes if task else 0,
            held[task].length if task else 0,
            tuple(tokenizer.decode([token]) for token in tokenizer.encode(text)),
            " ".join(row.removeprefix(text).split()),
        )
        for task, text, row in zip(tasks, texts, written, strict=True)
    ],
    "One batch, one model: every row has its own task, as keys and values before its text",
)
assert [(prompt.length, prompt.nbytes) for prompt in held.values()] == [(20, 245_760)] + [
    (10, 122_880)
] * 3

# %% [markdown]
# Grey numbers are positions: each text goes on where its own prefix ends, and pale boxes are padding, which has none.
# Does a row notice its neighbours? Each of them alone must write the same, and get the same logits:

# %%
solo = [
    bank.generate([text], [task], sampling=[how])[0]
    for text, task, how in zip(texts, tasks, settings, strict=True)
]
same_length = torch.tensor([tokenizer.encode("It is a good day")] * 4)
with torch.no_grad():
    together = bank(same_length, tasks)
    alone = torch.cat([bank(same_length[:1], [task]) for task in tasks])
print(
    f"the same words: {written == solo}; logits differ by at most {(together - alone).abs().max():.0e}"
)
assert written == solo
torch.testing.assert_close(together, alone, rtol=0, atol=1e-3)

# %% [markdown]
# Mix them yourself. The rows are written in one batch, and then each again alone, to compare.

# %%
NONE = "no task"
CHOICES = (*bank, NONE)


def mix(first: str, second: str, third: str, opening: str, seed: int) -> None:
    tasks = [None if name == NONE else name for name in (first, second, third)]
    how = Sampling(max_new_tokens=24, temperature=0.8, top_k=20, seed=int(seed))
    try:
        together = bank.generate([opening] * 3, tasks, sampling=[how] * 3)
    except ValueError as error:
        print(error)
        return
    for task, text in zip(tasks, together, strict=True):
        same = text == bank.generate([opening], [task], sampling=[how])[0]
        print(f"{task or NONE} ({'the same' if same else 'NOT the same'} alone):")
        print(f"   {' '.join(text.split())}")
        assert same


explore(
    mix,
    first=Choice("positive", CHOICES),
    second=Choice("negative", CHOICES),
    third=Choice("shakespeare", CHOICES),
    opening="The queen",
    seed=Slider(0, 0, 20, 1),
)

# %% [markdown]
# The library PEFT cannot mix prefixes in a batch: whoever has rows of unlike tasks switches adapters and runs one
# after the other. Both were measured beforehand on a model of GPT-2 small's shape, writing sixteen rows; how, says
# `docs/speed.md`.

# %%
runs = json.loads((folder().parent / "docs" / "results" / "decode.json").read_text())
took = {run["case"]: run for run in runs if run["rows"] == 16 and run["dtype"] == "float32"}
one_task, many = took["one task"], took["16 tasks"]
print(
    f"sixteen rows of one task: {one_task['ours']['seconds']:.1f} s, of sixteen tasks: {many['ours']['seconds']:.1f} s"
)
print(f"PEFT: {one_task['theirs']['seconds']:.1f} s and {many['theirs']['seconds']:.1f} s")
assert 0.9 < many["ours"]["seconds"] / one_task["ours"]["seconds"] < 1.1
assert round(many["theirs"]["seconds"] / one_task["theirs"]["seconds"]) == 6
assert many["theirs"]["seconds"] > 10 * many["ours"]["seconds"]

# %% [markdown]
# Sixteen tasks take as long as one. PEFT takes six times as long as for one, and more than ten times as long as ours.
#
# ## What one more task costs
#
# Now the first guess. Bytes for one more task on GPT-2 small, with four for each number:

# %%
small = PUBLIC["gpt2"].config
costs = {
    "a copy of the model": 4 * small.num_parameters(),
    "a prefix, or a compiled prompt": 4 * 2 * small.n_layer * small.n_embd * P,
    "a soft prompt": 4 * small.n_embd * P,
}
bars(
    costs,
    "One more task: half a gigabyte as a copy, sixty kilobytes as a soft prompt",
    f"bytes for one task on GPT-2 small, {P} vectors; every long mark is ten times the one before",
    "{:,}",
    log=True,
)
copy, prefix_bytes, prompt_bytes = costs.values()
copies, prefixed = 100 * copy, copy + 100 * prefix_bytes
print(f"a copy is worth {copy // prompt_bytes:,} soft prompts, or {copy // prefix_bytes} prefixes")
print(
    f"a hundred tasks: {copies / 1e9:.1f} GB of copies; {prefixed / 1e9:.2f} GB for one model and a hundred prefixes"
)
assert (copy, prefix_bytes, prompt_bytes) == (497_759_232, 1_474_560, 61_440)
assert (copy // prompt_bytes, copy // prefix_bytes) == (8_101, 337)
assert (round(copies / 1e9, 1), round(prefixed / 1e9, 2)) == (49.8, 0.65)
width_of_t5_xxl = 4096
assert 5 * width_of_t5_xxl == 20_480

# %% [markdown]
# One copy of GPT-2 small takes as many bytes as 8,101 soft prompts, or 337 prefixes. A hundred tasks are 49.8 GB of
# copies, or 0.65 GB: one model and a hundred prefixes. The larger the model, the wider the gap: in Lester et al. (2021)
# a prompt of 5 vectors has 20,480 numbers for a T5 of eleven billion.
#
# ## In the package
#
# `compile` in `minipeft/tuned.py` chooses what to do by the door that a method uses, and `keys_and_values` in
# `minipeft/methods/prefix.py` is exercise a, by way of a cache. Exercise b is `PromptBank.memory` in
# `minipeft/bank.py`:
#
# ```python
# kv[row, most - len(flat) :] = flat.view(len(flat), *kv.shape[2:]).to(like)
# real[row, most - len(flat) :] = True
# ```
#
# and for positions the one rule `next_positions` in `minipeft/attention.py`, which all doors share:
#
# ```python
# before = memory.real.sum(dim=1, keepdim=True)
# return (before + real.cumsum(dim=1) - 1).clamp(min=0)
# ```
#
# ```
# minipeft bank add runs/bank good positive
# minipeft generate "The film" --bank runs/bank --task good
# ```
#
# ## What was left out, and what to read next
#
# Banks on disk, from which only the prompts of the batch at hand are read: `docs/serving.md`. And LoRA, which is in the
# weights: rows with unlike LoRA need other machinery, since its matrices have to follow each row into every layer (PEFT
# has it: `adapter_names`). Read section 1 of Lester, Al-Rfou & Constant (2021), *The Power of Scale for
# Parameter-Efficient Prompt Tuning*, with its figure of one model that serves a mixed batch.
#
# ## On the real GPT-2

# %%
if (gpt2 := real_gpt2()) is not None:
    words = SoftPrompt(
        length=20, init="text:The following is a review of a film that I liked very much."
    )
    its_prompt = attach(gpt2, words).eval()
    compiled = its_prompt.compile()
    tokens = torch.tensor(
        [gpt2.tokenizer.encode(" It is a story of a man who goes home after the war.")]
    )
    with torch.no_grad():
        difference = float((compiled(tokens) - its_prompt(tokens)).abs().max())
    print(f"a soft prompt and its keys and values: the logits differ by at most {difference:.0e}")
    assert difference < 1e-2
    its_bank = PromptBank(gpt2)
    its_bank.add("film", its_prompt)
    together = its_bank.generate(
        ["It is a"] * 2, ["film", None], max_new_tokens=12, temperature=0.0
    )
    print(*together, sep="\n")
    assert together == [
        its_bank.generate(["It is a"], [task], max_new_tokens=12, temperature=0.0)[0]
        for task in ("film", None)
    ]
