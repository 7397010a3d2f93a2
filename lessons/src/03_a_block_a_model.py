# %% [markdown]
# # A block, a model
#
# **GPT-2 is one block, twelve times over. After this lesson you have computed a block by hand, written its two small
# functions yourself, and counted every number of the model.**
#
# You will be able to
#
# - write layer norm and GPT-2's GELU, and know which GELU it is,
# - put a block together from its parts and get the model's own numbers,
# - say where the parameters of a GPT-2 are, for all four sizes.
#
# *Thirty minutes. Before it: [attention, three ways](02_attention_three_ways.ipynb).*

# %% [markdown]
# ## A guess before we begin
#
# GPT-2 small has 124,439,808 parameters. How many percent of them are its table of token embeddings, one row for each
# token? Write your guess down.

# %% tags=["setup"]
import math

import torch
import torch.nn.functional as F

from minipeft import GPT2
from minipeft.attention import explicit_attention
from minipeft.checks import check
from minipeft.course.figures import curves, stacked_bars
from minipeft.course.real import real_gpt2
from minipeft.downloads import PUBLIC

# %% [markdown]
# ## Layer norm
#
# Before each half of a block, every token's vector is moved and stretched so that its numbers have mean 0 and variance
# 1. Then each place gets a learned factor (weight) and a learned shift (bias):
#
# $$\text{LayerNorm}(x) =
# \frac{x - \text{mean}(x)}{\sqrt{\text{variance}(x) + \epsilon}} \cdot \text{weight} + \text{bias}$$
#
# The smallest case, with weight 1 and bias 0:

# %%
x = torch.tensor([1.0, 2.0, 3.0, 6.0])
mean = x.mean()
variance = ((x - mean) ** 2).mean()
y = (x - mean) / (variance + 1e-5).sqrt()
print(f"mean {mean}, variance {variance}: {y}")
assert (float(mean), float(variance)) == (3.0, 3.5)
assert abs(float(y.mean())) < 1e-6  # 0 up to rounding
torch.testing.assert_close(y, F.layer_norm(x, (4,)))

# %% [markdown]
# ## Exercise a: layer norm
#
# *Difficulty 1 of 3, ten minutes.* Every token by itself: the mean goes over the last axis only.


# %% tags=["exercise"]
def layer_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """Layer norm over the last axis: x [..., D], weight [D] and bias [D] give [..., D]."""
    # BEGIN SOLUTION
    difference = x - x.mean(dim=-1, keepdim=True)
    variance = (difference**2).mean(dim=-1, keepdim=True)
    return difference / (variance + epsilon).sqrt() * weight + bias
    # END SOLUTION


# %% tags=["check"]
check("03a", layer_norm)  # against PyTorch's own; for help: hint("03a")

# %% [markdown]
# ## GELU, and which one
#
# Between the two matrices of the MLP stands a bend, GELU: $x\,\Phi(x)$, where $\Phi$ is the distribution function of
# the normal distribution. GPT-2 was trained with an approximation of it:
#
# $$\text{gelu}(x) = \tfrac{1}{2}\,x\left(1 + \tanh\!\left(\sqrt{2/\pi}\,\left(x + 0.044715\,x^3\right)\right)\right)$$
#
# ## Exercise b: the GELU of GPT-2
#
# *Difficulty 1 of 3, five minutes.*


# %% tags=["exercise"]
def gelu(x: torch.Tensor) -> torch.Tensor:
    """The tanh form of GELU, place by place."""
    # BEGIN SOLUTION
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    # END SOLUTION


# %% tags=["check"]
check("03b", gelu)  # for help: hint("03b")

# %% [markdown]
# ## A common wrong answer
#
# The exact GELU. It is what `torch.nn.GELU()` gives, it is better mathematics, and it is not what GPT-2 was trained
# with:


# %%
def exact_gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


check("03b", exact_gelu)
x = torch.linspace(-4, 4, 401, dtype=torch.float64)
difference = F.gelu(x, approximate="tanh") - F.gelu(x)
assert 4e-4 < difference.abs().max() < 5e-4
curves(
    x,
    {"tanh - exact": 1e4 * difference},
    "The two GELUs differ by less than a thousandth: enough to be wrong, too little to be seen in text",
    "x",
    "difference, times ten thousand",
)

# %% [markdown]
# In the small model that difference moves the logits, the numbers that it gives each token that may come next: too
# little to change which of them is the largest here, and enough to fail a test. This is why such a mistake lives long:
# the text still reads well.

# %%
model = GPT2.from_pretrained("nano")
tokens = torch.tensor([model.tokenizer.encode(" The king said that the queen was in the garden")])
with torch.no_grad():
    right = model(tokens)
    for block in model.blocks:
        block.mlp.gelu = "none"  # PyTorch's name for the exact form
    wrong = model(tokens)
    for block in model.blocks:
        block.mlp.gelu = "tanh"
print(f"the logits move by up to {(wrong - right).abs().max():.4f}")
assert (wrong - right).abs().max() > 1e-4
assert torch.equal(wrong[0, -1].argmax(), right[0, -1].argmax())

# %% [markdown]
# ## A block
#
# A block adds to what comes in, twice: first what attention finds in the tokens before, then what the MLP makes of it.
#
# $$x \leftarrow x + \text{attention}(\text{LayerNorm}_1(x)), \qquad
# x \leftarrow x + \text{MLP}(\text{LayerNorm}_2(x))$$
#
# What comes in first is a token's vector from the table `wte`, plus one for its place from `wpe`: attention takes its
# keys as a heap, and without the second would not know in which order they stand. In attention one linear layer,
# `c_attn`, makes query, key and value of every token. Each is cut into heads of D / H numbers, which attend side by
# side as in lesson two, and are joined again; `c_proj` mixes what they found. With the model's own weights, and
# PyTorch's two functions where yours would do as well:

# %%
block, D, heads = model.blocks[0], model.config.n_embd, model.config.n_head
with torch.no_grad():
    x = model.wte(tokens) + model.wpe(torch.arange(tokens.shape[1]))  # [1, T, D]
    expected = block(x, None, None, 0)
    normal = F.layer_norm(x, (D,), block.ln_1.weight, block.ln_1.bias, 1e-5)
    q, k, v = block.attn.c_attn(normal).chunk(3, dim=-1)  # [1, T, D] each
    q, k, v = (
        part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v)
    )  # [1, H, T, D / H]
    found = explicit_attention(q, k, v).transpose(1, 2).flatten(2)  # [1, T, D]
    x = x + block.attn.c_proj(found)
    normal = F.layer_norm(x, (D,), block.ln_2.weight, block.ln_2.bias, 1e-5)
    wide = F.gelu(block.mlp.c_fc(normal), approximate="tanh")  # [1, T, 4 D]
    x = x + block.mlp.c_proj(wide)
print(tuple(normal.shape), "->", tuple(wide.shape), "->", tuple(x.shape))
assert wide.shape[-1] == 4 * D
torch.testing.assert_close(x, expected)

# %% [markdown]
# ## Where the parameters are
#
# The model is: embeddings, blocks, one last layer norm, and the token embeddings once more as the output layer, which
# is called the head, so that they count once. On PyTorch's *meta* device a model has shapes but no numbers, so even the
# largest is counted at once:

# %% tags=["figure"]
sizes = {}
for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"):
    with torch.device("meta"):
        big = GPT2(PUBLIC[name].config)
    count = lambda *modules: sum(p.numel() for module in modules for p in module.parameters())  # noqa: E731
    sizes[name] = {
        "token embeddings": count(big.wte),
        "position embeddings": count(big.wpe),
        "attention": count(*(block.attn for block in big.blocks)),
        "MLPs": count(*(block.mlp for block in big.blocks)),
        "layer norms": count(
            big.ln_f, *(norm for block in big.blocks for norm in (block.ln_1, block.ln_2))
        ),
    }
    assert sum(sizes[name].values()) == big.num_parameters() == PUBLIC[name].config.num_parameters()

totals = {name: sum(parts.values()) for name, parts in sizes.items()}
assert list(totals.values()) == [124_439_808, 354_823_168, 774_030_080, 1_557_611_200]
assert round(100 * sizes["gpt2"]["token embeddings"] / totals["gpt2"]) == 31
assert round(100 * sizes["gpt2-xl"]["MLPs"] / totals["gpt2-xl"]) == 63
stacked_bars(
    {name: {part: number / 1e6 for part, number in parts.items()} for name, parts in sizes.items()},
    "The larger the model, the more of it is MLP",
    "million parameters",
)

# %% [markdown]
# So the guess: 31 percent of the small model is its vocabulary. Of the largest one, 63 percent is MLPs.
#
# ## In the package
#
# `minipeft/gpt2.py` is this lesson as one file: `Block`, `MLP`, `CausalSelfAttention` and `GPT2`, with the names of the
# public weights. `minipeft/checkpoint.py` fills it from files, which is the next lesson.
#
# ## What was left out, and what to read next
#
# Dropout, and how the numbers start before training: the layers that write into the sum start smaller, the more of them
# there are. Read the short section on the model in Radford et al. (2019), and then `minipeft/gpt2.py` from top to
# bottom.
#
# ## On the real GPT-2

# %%
if (gpt2 := real_gpt2()) is not None:
    print(f"{gpt2.num_parameters():,} parameters, {gpt2.config.n_layer} blocks")
    assert gpt2.num_parameters() == 124_439_808
    assert gpt2.config.gelu == "tanh"
