# %% [markdown]
# # Attention, three ways: loops, matrices, fused
#
# **Attention is a weighted average. After this lesson you have computed it in three ways that agree, and you know the
# one mask that goes wrong as soon as something stands in front of the text.**
#
# You will be able to
#
# - compute attention with plain loops, with matrices, and with PyTorch's fused kernel,
# - write the causal mask for any number of queries and keys,
# - see at a glance why `is_causal=True` is a trap once there is a memory, or a prefix.
#
# *Thirty minutes. Before it: [text to tokens](01_text_to_tokens.ipynb), and matrix products.*

# %% [markdown]
# ## A guess before we begin
#
# Three keys are remembered from before, then come two tokens. PyTorch's attention is told `is_causal=True`. How many of
# the five keys can the **first** of the two tokens look at? And how many should it? Write both numbers down.

# %% tags=["setup"]
import math

import torch
import torch.nn.functional as F

from minipeft import GPT2
from minipeft.attention import explicit_attention, fused_attention, lower_right_mask
from minipeft.checks import check
from minipeft.course.figures import heat_maps
from minipeft.course.real import real_gpt2

# %% [markdown]
# ## The smallest case
#
# Three tokens. Each has a *query* (what it looks for), a *key* (what it can be found by) and a *value* (what it gives),
# two numbers each. A model makes all three from the token's vector by one linear layer, which lesson three shows; here
# they are simply given.

# %%
q = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])  # [T, Dh]
k = torch.tensor([[1.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
v = torch.tensor([[10.0, 0.0], [0.0, 10.0], [5.0, 5.0]])
T, Dh = q.shape
print(f"{T} tokens, {Dh} numbers each")
assert (T, Dh) == (3, 2)

# %% [markdown]
# A token compares its query with the key of every token that is not later than itself. The products, divided by
# $\sqrt{D_h}$, become shares that add up to one, and the shares weigh the values:
#
# $$\text{weights} = \text{softmax}\!\left(\frac{q\,k^\top}{\sqrt{D_h}}\right), \qquad
# \text{output} = \text{weights}\; v$$
#
# **First way: loops.** One line for each word of the sentence above.

# %%
loops = torch.zeros(T, T)
for query in range(T):
    for key in range(query + 1):  # no later than itself
        loops[query, key] = math.exp(q[query] @ k[key] / math.sqrt(Dh))
    loops[query] /= loops[query].sum()

print(loops)
print(loops @ v)
assert torch.allclose(loops.sum(dim=1), torch.ones(T))
assert loops[0].tolist() == [1.0, 0.0, 0.0]  # the first token has only itself to look at

# %% [markdown]
# **Second way: matrices.** All products at once; what must not be seen gets the score $-\infty$, of which softmax makes
# an exact zero.

# %%
may_look = torch.ones(T, T, dtype=torch.bool).tril()
scores = (q @ k.T / math.sqrt(Dh)).masked_fill(~may_look, float("-inf"))  # [T, T]
matrices = scores.softmax(dim=-1)
torch.testing.assert_close(matrices, loops)

# %% [markdown]
# **Third way: fused.** One call, which never writes the weights down: for a long text they would be the largest thing
# in memory. To see them all the same, give it values that are the identity matrix, so that the output *is* the weights.

# %%
fused = F.scaled_dot_product_attention(q[None], k[None], torch.eye(T)[None], is_causal=True)[0]
torch.testing.assert_close(fused, loops)

heat_maps(
    [loops, matrices, fused], ["loops", "matrices", "fused"], "Three ways, one result", numbers=True
)

# %% [markdown]
# ## When something stands in front of the text
#
# While a text is written, the keys and values of earlier tokens are kept, and only the new tokens bring queries. Later
# in this course a *prefix* puts learned keys and values in front of everything. Then there are more keys than queries,
# and the question of the guess arises: which corner does the triangle start in?

# %%
T, P = 2, 3
S = P + T
q, k, v = torch.zeros(1, T, 4), torch.zeros(1, S, 4), torch.eye(S)[None]
fused = F.scaled_dot_product_attention(q, k, v, is_causal=True)[0]
seen = (fused > 0).sum(dim=1).tolist()
print(f"is_causal=True: the tokens see {seen} of {S} keys; they should see {[P + 1, P + 2]}")
assert seen == [1, 2]
assert [P + 1, P + 2] == [4, 5]

# %% [markdown]
# That is the answer to the guess: PyTorch lets the first token see **1** key, and it should see **4**, the three from
# before and its own. PyTorch starts the triangle in the *upper left* corner, which is right only for as many queries as
# keys. We need the *lower right* one, where the last query meets the last key. No error is raised, and the text that
# comes out still looks like text.
#
# ## Exercise: the mask
#
# *Difficulty 2 of 3, ten minutes.* Write the mask for T queries and S keys, of which the first S - T stand in front of
# the text. Rows are queries, columns are keys, `True` means that the query may look at the key.


# %% tags=["exercise"]
def causal_mask(T: int, S: int) -> torch.Tensor:
    """Which of S keys each of T queries may look at, [T, S], where the last query meets the last key."""
    # BEGIN SOLUTION
    query = torch.arange(S - T, S)[:, None]  # where each query stands among the keys
    key = torch.arange(S)[None, :]
    return key <= query
    # END SOLUTION


# %% tags=["check"]
check("02", causal_mask)  # every entry against a loop, then attention itself; for help: hint("02")

# %% [markdown]
# ## A common wrong answer
#
# `torch.tril` with nothing else is PyTorch's own corner, and equal to the right one only while T = S:


# %% tags=["figure"]
def upper_left(T, S):
    return torch.ones(T, S, dtype=torch.bool).tril()


assert torch.equal(upper_left(3, 3), lower_right_mask(3, 3)[0, 0])
assert not torch.equal(upper_left(2, 5), lower_right_mask(2, 5)[0, 0])
check("02", upper_left)
heat_maps(
    [upper_left(2, 5), lower_right_mask(2, 5)[0, 0]],
    ["upper left: the text hides from itself", "lower right"],
    "Two queries, five keys: only one corner lets the text see what came before",
)

# %% [markdown]
# ## How wrong is it?
#
# With random numbers in six heads, and ten keys of memory: not a rounding error.

# %%
torch.manual_seed(0)
q, k, v = (
    torch.randn(1, 6, 8, 32),
    torch.randn(1, 6, 18, 32),
    torch.randn(1, 6, 18, 32),
)  # [B, H, T or S, Dh]
right = explicit_attention(q, k, v)
wrong = F.scaled_dot_product_attention(q, k, v, is_causal=True)
torch.testing.assert_close(fused_attention(q, k, v), right)
print(f"farthest apart: {(wrong - right).abs().max():.1f}, where values are about 1 in size")
assert (wrong - right).abs().max() > 1

# %% [markdown]
# ## In the package
#
# `minipeft/attention.py` has one function that makes masks, `lower_right_mask`, and the second and third way of this
# lesson, `explicit_attention` and `fused_attention`. Every block of the model uses one of the two, with several *heads*
# side by side, each with its own queries, keys and values. Here is what three heads of nano do with a sentence. Nobody
# told them to; training did.

# %%
model = GPT2.from_pretrained("nano")
heads, positions = model.config.n_head, model.config.n_positions
tokens = torch.tensor([model.tokenizer.encode(" The king said that the queen was in the garden")])
T = tokens.shape[1]
weights = []
with torch.no_grad():
    x = model.wte(tokens) + model.wpe(torch.arange(T))  # [1, T, D]
    for layer, block in enumerate(model.blocks):
        q, k, _ = block.attn.c_attn(block.ln_1(x)).chunk(3, dim=-1)
        q, k = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k))  # [1, H, T, Dh]
        weights.append(
            explicit_attention(q, k, torch.eye(T).expand(1, heads, -1, -1))[0]
        )  # [H, T, T]
        x = block(x, None, None, layer)

before, first, itself = weights[4][3], weights[1][3], weights[5][0]
assert before.diagonal(-1).mean() > 0.4  # what the average token gives to the word before it
assert first[2:, 0].mean() > 0.35
assert itself.diagonal()[1:].mean() > 0.3

words = [model.tokenizer.decode([token]).strip() for token in tokens[0].tolist()]
heat_maps(
    [before, first, itself],
    [
        "the word before (block 4, head 3)",
        "often the first word (1, 3)",
        "often the word itself (5, 0)",
    ],
    "Heads have habits",
    words,
    words,
    darkest=0.7,
)

# %% [markdown]
# ## What was left out, and what to read next
#
# Padding (rows of unequal length share a batch; their masks differ), dropout, and why the fused kernel is fast. For
# that read Dao, Fu, Ermon, Rudra & Ré (2022), *FlashAttention*; for attention itself, the section on scaled dot
# products in Vaswani et al. (2017).
#
# ## On the real GPT-2
#
# Its logits, the numbers that it gives each token that may come next, by the fused kernel and by the function above:

# %%
if (gpt2 := real_gpt2()) is not None:
    tokens = torch.tensor(
        [gpt2.tokenizer.encode(" The king said that the queen was in the garden")]
    )
    with torch.no_grad():
        difference = (
            (gpt2(tokens) - GPT2.from_pretrained("gpt2", attention="explicit")(tokens)).abs().max()
        )
    print(f"fused and explicit logits differ by at most {difference:.1e}")
    assert difference < 1e-3
