# %% [markdown]
# # Public weights
#
# **A model is its numbers, and they come in a file that somebody else wrote. After this lesson you have read such a
# file into a GPT-2 and got the same logits as the library everybody uses.**
#
# You will be able to
#
# - say what a file of GPT-2 weights contains, and under which names,
# - bring its names and matrices into the form that PyTorch wants,
# - recognise a matrix that was not transposed, or was reshaped instead, before it costs you a week.
#
# *Thirty minutes. Before it: [a block, a model](03_a_block_a_model.ipynb).*

# %% [markdown]
# ## A guess before we begin
#
# GPT-2's files store every linear layer the other way round from PyTorch. Suppose you forget that for one matrix of
# each block: the square one at the end of attention. Which error will you see? Write your guess down.

# %% tags=["setup"]
import torch
import torch.nn.functional as F

from minipeft import GPT2
from minipeft.checkpoint import open_model
from minipeft.checks import check
from minipeft.course.figures import bars, maps
from minipeft.course.real import real_gpt2

# %% [markdown]
# ## What the file contains
#
# Names, shapes, numbers; nothing else. The small model of this course is stored by the names and in the layouts of the
# public ones; where their files differ, the table below says so.

# %%
stored = {name: tensor.read().float() for name, tensor in open_model("nano").tensors.items()}
for name, tensor in stored.items():
    if ".h." not in name or ".h.0." in name:  # the other blocks look like the first
        print(f"{name:40} {list(tensor.shape)}")
assert stored["transformer.h.0.attn.c_attn.weight"].shape == (256, 768)
assert stored["transformer.h.0.attn.c_proj.weight"].shape == (256, 256)

# %% [markdown]
# A vector of 256 numbers goes into `c_attn` and 768 come out: query, key and value. So the file has it as `[in, out]`.
# OpenAI wrote their linear layers as convolutions of width one in TensorFlow, which keeps weights that way round.
# PyTorch's `nn.Linear` keeps them as `[out, in]`. The smallest case, two numbers in and three out:

# %%
x = torch.tensor([1.0, 10.0])
in_out = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])  # as the file has it
out_in = in_out.T  # as nn.Linear wants it
print(f"{x.tolist()} becomes {(x @ in_out).tolist()}")
assert (x @ in_out).tolist() == F.linear(x, out_in).tolist() == [41.0, 52.0, 63.0]
assert F.linear(x, in_out.reshape(3, 2)).tolist() == [
    21.0,
    43.0,
    65.0,
]  # the right shape, and wrong numbers

# %% [markdown]
# `reshape` gives the right *shape*, too, and other numbers: it keeps the numbers in their old order and only starts new
# rows at other places. Remember that one.
#
# ## What has to be done
#
# | in the file | in our model |
# |---|---|
# | `transformer.` before every name, in some files | no such word |
# | `c_attn`, `c_fc` and both `c_proj`: weights `[in, out]` | `[out, in]` |
# | `wte.weight`, `wpe.weight`: a row for each token, or position | the same |
# | `lm_head.weight`, in some files: a copy of `wte.weight` | nothing: the head *is* `wte` |
# | `h.N.attn.bias`, `.masked_bias`, in gpt2's own file: the causal mask, a number for it | nothing: no weights |
# | everything else | the same |
#
# ## Exercise: from their names to ours
#
# *Difficulty 2 of 3, fifteen minutes.* What comes out goes into `model.load_state_dict`.


# %% tags=["exercise"]
def from_public(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a public file, by the names and in the shapes of our GPT2."""
    # BEGIN SOLUTION
    linear = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    no_weights = (".attn.bias", ".attn.masked_bias", "lm_head.weight")
    ours = {}
    for name, tensor in stored.items():
        if not name.endswith(no_weights):
            ours[name.removeprefix("transformer.")] = tensor.T if name.endswith(linear) else tensor
    return ours
    # END SOLUTION


# %% tags=["check"]
check(
    "04", from_public
)  # against the logits of transformers, for a new file and an old one; for help: hint("04")

# %% [markdown]
# ## A common wrong answer
#
# "Transpose what does not fit." It loads without a complaint:


# %%
def whatever_fits(stored):
    shapes = {
        name: tensor.shape for name, tensor in GPT2.from_pretrained("nano").state_dict().items()
    }
    bare = {name.removeprefix("transformer."): tensor for name, tensor in stored.items()}
    return {
        name: bare[name] if bare[name].shape == shape else bare[name].T
        for name, shape in shapes.items()
    }


model = GPT2.from_pretrained("nano")
print(model.load_state_dict(whatever_fits(stored)))
text = (
    "The king was in the garden with his daughter, and the old man asked her to come home before the evening, "
    "because it was cold and the way was long. She did not answer him, but went on."
)
tokens = torch.tensor([model.tokenizer.encode(text)])


def loss() -> float:
    """How surprised the model is: the mean of -log p of the text's tokens, in nats (of the natural logarithm)."""
    with torch.no_grad():
        return float(model.loss(tokens, tokens))


square_forgotten = loss()

# %% [markdown]
# That is the answer to the guess: **no error at all**. A square matrix fits either way. The others, which a shape would
# have given away, can be wrong as quietly, if they are reshaped:

# %%
right = GPT2.from_pretrained("nano").state_dict()


def with_reshaped(*endings: str) -> dict[str, torch.Tensor]:
    """The model's tensors, those with such names reshaped where they should be transposed."""
    return {
        name: t.T.reshape(t.shape) if name.endswith(endings) else t for name, t in right.items()
    }


losses = {}
model.load_state_dict(right)
losses["right"] = loss()
losses["the square ones forgotten"] = square_forgotten
model.load_state_dict(with_reshaped("c_attn.weight"))
losses["c_attn reshaped"] = loss()
losses["all tokens alike, guessed"] = float(torch.tensor(model.config.vocab_size).log())
model.load_state_dict(with_reshaped("c_attn.weight", "c_fc.weight", "c_proj.weight"))
losses["everything reshaped"] = loss()
bars(
    losses,
    "Read the wrong way: every file loads, and the model is worse, or gone",
    "loss in nats per token",
    "{:.2f}",
)
assert losses["right"] < 3.5
assert min(losses["the square ones forgotten"], losses["c_attn reshaped"]) > losses["right"] + 1
assert losses["everything reshaped"] > losses["all tokens alike, guessed"]

# %% [markdown]
# So look at a matrix before you trust it. Here is the first block's `c_attn`, dark where its numbers are large. The
# right one has bands: 256 rows of queries, 256 of keys, 256 of values, and in each of them the heads as narrower bands.
# The reshaped one has its bands the wrong way round, and every third row is pale: each row of the file became three,
# one of queries, one of keys, one of values.

# %% tags=["figure"]
c_attn = stored["transformer.h.0.attn.c_attn.weight"]
maps(
    [c_attn, c_attn.T, c_attn.reshape(768, 256)],
    ["stored [256, 768]", "transposed [768, 256]", "reshaped [768, 256]"],
    "Transposed, each head's queries, keys and values are rows; reshaped, all are mixed",
)
rows = c_attn.T.abs().mean(dim=1)
assert c_attn.T.shape == (3 * 256, 256)
assert (
    rows[512:].mean() < rows[:512].mean() / 2
)  # the values are much smaller than queries and keys

# %% [markdown]
# ## The map of positions
#
# `wpe` has a row for each position. Nobody told the model that position 100 lies next to 101, yet compare every row
# with every other, and the numbers know: neighbours are more alike than distant ones, and far ends point away from each
# other. Only the very first position stands alone.

# %%
positions = F.normalize(stored["transformer.wpe.weight"], dim=1)
alike = positions @ positions.T  # [256, 256], from -1 to 1
maps(
    [alike],
    ["cosine similarity, red below zero"],
    "Positions that are near are alike: nobody said so",
    "position",
    "position",
    True,
)
assert alike.shape == (256, 256)
assert alike[100, 101] > 0.3 > alike[100, 200]
assert alike[20, 250] < -0.2

# %% [markdown]
# ## In the package
#
# `minipeft/checkpoint.py` does what you did, and trusts nothing: each name, shape and type is checked against the model
# before any number is copied, anything missing or extra is reported by name, a head that is *not* a copy of `wte` is
# refused, and files are never unpickled into anything but tensors. `minipeft/formats/` reads what others write: shards,
# OpenAI's own files, nanoGPT's and minGPT's.
#
# ```
# minipeft inspect DIR     # what a file of weights holds
# ```
#
# ## What was left out, and what to read next
#
# How a download is checked (`minipeft/downloads/`), and types of numbers: nano is stored in half precision and computed
# in single. Read the format of [safetensors](https://github.com/huggingface/safetensors): a header of JSON, then the
# numbers, which is all that a file of weights should be.
#
# ## On the real GPT-2

# %%
if (gpt2 := real_gpt2()) is not None:
    public = {name: tensor.read() for name, tensor in open_model("gpt2").tensors.items()}
    print(
        f"{len(public)} tensors, among them {sum(name.endswith('.attn.bias') for name in public)} masks"
    )
    alike = F.normalize(gpt2.wpe.weight.detach(), dim=1)
    maps([alike @ alike.T], ["cosine similarity"], "The real GPT-2", "position", "position", True)
