# %% [markdown]
# # Writing text: sampling and the KV cache
#
# **A language model only ever says how likely each next token is. After this lesson you have turned that into text, and
# know the trick that makes it quick: remember the keys and values.**
#
# You will be able to
#
# - draw the next token, with a temperature and among the `top_k` likeliest,
# - write attention with a memory, and show that it changes nothing but the time,
# - say what the memory costs, and why the positions have to move on.
#
# *Thirty minutes. Before it: [a block, a model](03_a_block_a_model.ipynb).*

# %% [markdown]
# ## A guess before we begin
#
# A text has 100 tokens, and the model is to write 100 more, one at a time. If it reads the whole text anew for each of
# them: how many tokens does it read in all? And if it never reads a token twice? Write both down.

# %% tags=["setup"]
import time

import torch
import torch.nn.functional as F

from minipeft import GPT2
from minipeft.attention import lower_right_mask
from minipeft.checks import check
from minipeft.course.controls import Slider, explore
from minipeft.course.figures import bar_columns, curves
from minipeft.course.real import real_gpt2
from minipeft.generate import generate
from minipeft.sampling import Sampling, choose

model = GPT2.from_pretrained("nano")
tokenizer = model.tokenizer

# %% [markdown]
# ## From logits to a token
#
# The model reads a beginning and gives each of the 8,257 tokens of its vocabulary a number, the logit. Softmax turns
# them into probabilities. Divide the logits by a *temperature* $\tau$ first:
#
# $$p_i = \frac{e^{z_i / \tau}}{\sum_j e^{z_j / \tau}}$$

# %%
beginning = torch.tensor([tokenizer.encode("Once upon a time there was a")])
with torch.no_grad():
    logits = model(beginning)[0, -1]  # [V], after the last token
assert logits.shape == (8257,)

likeliest = logits.topk(8).indices.tolist()
temperatures = {
    f"temperature {t}": (logits / t).softmax(dim=0)[likeliest].tolist() for t in (0.5, 1.0, 1.5)
}
assert (
    temperatures["temperature 0.5"][0]
    > temperatures["temperature 1.0"][0]
    > temperatures["temperature 1.5"][0]
)
words = [tokenizer.decode([token]) for token in likeliest]
bar_columns(
    temperatures,
    words,
    'After "Once upon a time there was a": cold sharpens, hot flattens',
    "probability",
)

# %% [markdown]
# Temperature zero means: always the likeliest. One trouble with high temperatures is the long tail: thousands of tokens
# that are each very unlikely, and together are not. `top_k` cuts them off.


# %%
def draw(logits: torch.Tensor, temperature: float, top_k: int, generator: torch.Generator) -> int:
    """One token, drawn among the `top_k` likeliest."""
    logits = logits / temperature
    logits[logits < logits.topk(top_k).values[-1]] = float("-inf")
    return int(torch.multinomial(logits.softmax(dim=0), 1, generator=generator))


drawn = [draw(logits, 0.8, 20, torch.Generator().manual_seed(seed)) for seed in range(50)]
sampling = Sampling(temperature=0.8, top_k=20)
package = [
    choose(logits[None], sampling, [torch.Generator().manual_seed(seed)]) for seed in range(50)
]
assert drawn == [token for (token,) in package]
print(sorted({tokenizer.decode([token]) for token in drawn}))
tail = 1 - float(logits.softmax(dim=0).topk(20).values.sum())
print(f"beyond the 20 likeliest lie {tail:.0%} of the probability")
assert tail > 0.4

# %% [markdown]
# Move the controls. Where does it begin to repeat itself, and where to talk nonsense?


# %%
def try_out(temperature, top_k):
    cut = logits / max(temperature, 1e-3)
    cut[cut < cut.topk(top_k).values[-1]] = float("-inf")
    shares = {
        f"temperature {temperature:.1f}, top_k {top_k}": cut.softmax(dim=0)[likeliest].tolist()
    }
    bar_columns(shares, words, "Who may come next, of the eight likeliest", "probability")
    sampling = Sampling(max_new_tokens=40, temperature=temperature, top_k=int(top_k), seed=1)
    print(generate(model, "Once upon a time there was a", sampling))


explore(try_out, temperature=Slider(0.8, 0.0, 2.0, 0.1), top_k=Slider(20, 1, 200, 1))

# %% [markdown]
# ## Reading everything again, and again
#
# The plain loop: read the whole text, take the last logits, append a token, repeat. Count what it reads.

# %%
text, new = 100, 100
without = sum(text + n for n in range(new))
with_memory = text + new - 1  # the text once, then each new token but the last
print(f"tokens read: {without:,} without a memory, {with_memory} with one")
assert (text, new, without, with_memory) == (100, 100, 14950, 199)

# %% [markdown]
# That answers the guess: 14,950 against 199. And it is allowed to read each token only once, because in a causal model
# nothing that was computed for a token ever changes when another is appended. What a *new* token needs of the old ones
# is their keys and values, in each block:
#
# $$\text{output} = \text{softmax}\!\left(\frac{q\,[k_\text{past};\,k]^\top}{\sqrt{D_h}}\right) [v_\text{past};\,v]$$
#
# The semicolon means: one below the other.
#
# ## Exercise: attention that remembers
#
# *Difficulty 2 of 3, fifteen minutes.* T new tokens come with their queries, keys and values; `past` holds the keys and
# values of all earlier ones, or is `None`. T is mostly one, but not always: the beginning of a text is read in one go.
# `lower_right_mask(queries, keys)[0, 0]` is the mask of lesson two, for so many queries and so many keys, those of the
# past among them.


# %% tags=["exercise"]
def cached_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    past: tuple[torch.Tensor, torch.Tensor] | None,
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """q, k, v [H, T, Dh] and the past keys and values [H, S, Dh] give the output [H, T, Dh] and the new past."""
    # BEGIN SOLUTION
    if past is not None:
        k = torch.cat([past[0], k], dim=1)  # [H, S + T, Dh]
        v = torch.cat([past[1], v], dim=1)
    mask = lower_right_mask(q.shape[1], k.shape[1])[0, 0]  # [T, S + T]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask), (k, v)
    # END SOLUTION


# %% tags=["check"]
check("05", cached_attention)  # in steps of one and of several = all at once; for help: hint("05")

# %% [markdown]
# ## A common wrong answer
#
# Leaving the mask to PyTorch. For a whole text at once it is right. For one new token it is disastrous: the triangle
# starts at the upper left, and the new token sees nothing but the very first one.


# %%
def mask_of_pytorch(q, k, v, past):
    if past is not None:
        k, v = torch.cat([past[0], k], dim=1), torch.cat([past[1], v], dim=1)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True), (k, v)


assert lower_right_mask(1, 5).all()  # the last of five tokens may look at all five
seen = F.scaled_dot_product_attention(
    torch.zeros(1, 1, 4), torch.zeros(1, 5, 4), torch.eye(5)[None], is_causal=True
)
assert seen[0, 0].tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]
check("05", mask_of_pytorch)

# %% [markdown]
# ## The same text, token by token
#
# In the package the memory is `model.new_cache`, and is passed as `memory=`. Read a text at once, and then
# again one token after the other:

# %%
text = torch.tensor(
    [tokenizer.encode("The king said to the queen that the garden was full of roses.")]
)
T = text.shape[1]
with torch.no_grad():
    at_once = model(text)
    cache = model.new_cache(batch=1, capacity=T)
    one_by_one = torch.cat([model(text[:, t : t + 1], memory=cache) for t in range(T)], dim=1)
print(f"{T} tokens; the logits differ by at most {(one_by_one - at_once).abs().max():.1e}")
torch.testing.assert_close(one_by_one, at_once, rtol=0, atol=1e-3)

# %% [markdown]
# One thing must not be forgotten. The token that comes alone is *not* at position zero: its position is the number of
# tokens in the memory. If each new token is given position zero, the keys are all there, and the text is still wrong:

# %%
positions = model.wpe.weight.detach().clone()
with torch.no_grad():
    cache = model.new_cache(batch=1, capacity=T)
    wrong = []
    for t in range(T):
        model.wpe.weight[t] = positions[
            0
        ]  # what the package would have looked up, replaced by position zero
        wrong.append(model(text[:, t : t + 1], memory=cache))
    model.wpe.weight.copy_(positions)
off = (torch.cat(wrong, dim=1) - at_once).abs().amax(dim=-1)[0]  # [T]
print(f"the first token is right ({off[0]:.0e}), the last is off by {off[-1]:.1f}")
assert off[0] < 1e-3
assert off[-1] > 1

# %% [markdown]
# ## What it saves
#
# The time for one more token, measured here and now, against the length of the text so far:

# %% tags=["figure"]
long = torch.randint(1000, (1, 250), generator=torch.Generator().manual_seed(0))
lengths = list(range(10, 250, 24))


def milliseconds(step) -> float:
    """The median of seven runs."""
    times = []
    for _ in range(7):
        started = time.perf_counter()
        step()
        times.append(1000 * (time.perf_counter() - started))
    return sorted(times)[3]


plain, cached = [], []
with torch.no_grad():
    for length in lengths:
        cache = model.new_cache(batch=1, capacity=257)
        model.hidden(long[:, :length], memory=cache)

        def one_more(cache=cache, length=length):
            cache.length = length  # forget the token of the run before
            model.logits(model.hidden(long[:, length : length + 1], memory=cache)[:, -1])

        cached.append(milliseconds(one_more))
        plain.append(
            milliseconds(lambda n=length: model.logits(model.hidden(long[:, : n + 1])[:, -1]))
        )

assert sum(plain[-3:]) > sum(cached[-3:])
curves(
    lengths,
    {"reading it all": plain, "with the cache": cached},
    "With a cache, one more token costs nearly the same however long the text is",
    "tokens so far",
    "milliseconds for one more",
)

# %% [markdown]
# ## What it costs
#
# Two vectors for each token in each block. For GPT-2 small, with four bytes for a number, a token takes 73,728 bytes,
# and a full window of 1,024 tokens takes 75 million.

# %%
per_token = 2 * 12 * 768 * 4
print(f"{per_token:,} bytes for a token, {1024 * per_token / 1e6:.1f} MB for a full window")
assert per_token == 73728
assert round(1024 * per_token / 1e6) == 75

# %% [markdown]
# One thought to take with you. The model does not ask where the keys and values in its memory come from. They came
# from a text just now. What if we *learned* them instead? That is prefix tuning, and lesson nine does it.
#
# ## In the package
#
# `minipeft/generate.py` is one loop for all: the text is read once into a cache, then each new token alone. `choose`
# draws it. `KVCache` in `minipeft/attention.py` sets its memory aside beforehand, and its neighbour `FixedMemory` is
# the learned one. `next_positions` there is the one place that decides where a token stands.
#
# ## What was left out, and what to read next
#
# Beam search, and `top_p`, which keeps the likeliest tokens up to a *share*: Holtzman et al. (2020), *The Curious Case
# of Neural Text Degeneration*, whose first figure shows what beam search does to a text.
#
# ## On the real GPT-2

# %%
if (gpt2 := real_gpt2()) is not None:
    for temperature in (0.0, 0.8):
        print(
            generate(
                gpt2,
                "Once upon a time there was a",
                Sampling(40, temperature=temperature, top_k=50),
            )
        )
