# %% [markdown]
# # Beyond language
#
# **Nothing in soft prompts, LoRA or adapters is about language. After this lesson you have put the same ideas into a
# ResNet that reads handwritten digits, and met the one trap that language models do not have.**
#
# You will be able to
#
# - say which of the three doors a ResNet has, and what goes through each,
# - train a border of pixels around an image while the network behind it stays as it is, to the last bit,
# - tell why freezing the weights does not freeze a network with BatchNorm.
#
# *Forty minutes. Before it: [soft prompts](07_hard_to_soft.ipynb), convolutions.*

# %% [markdown]
# ## A guess before we begin
#
# A small ResNet has learned to tell the digits 0 to 4 apart, on images with a blank border. Now it gets the digits 5
# to 9, which it has never seen. You may change no weight, and add no layer: its five outputs must stand for the five
# new digits. All that you may choose is the border, 192 pixels, the same around every image. Always saying the same
# digit is right in 20 percent of the images. How many percent can a border reach? Write it down.

# %% tags=["setup"]
import copy
import json

import torch
import torch.nn.functional as F

from minipeft import GPT2
from minipeft.checks import check
from minipeft.compare.statistics import differences
from minipeft.course.dots import dots_over_numbers
from minipeft.course.notebooks import folder
from minipeft.course.real import real_gpt2
from minipeft.vision import (
    FIRST,
    SECOND,
    Border,
    ConvLoRA,
    Full,
    NormAndBias,
    Probe,
    ResidualAdapter,
    ResNet,
    Tuned,
    VisualPrompt,
    accuracy,
    digits,
    fit,
    matched,
)

old, new = digits(FIRST), digits(SECOND)

# %% [markdown]
# ## The base
#
# scikit-learn ships 1,797 handwritten digits of 8 by 8 pixels. Our ResNet puts 4 blank pixels on every side of an image
# and has a convolution, three blocks of two convolutions with a way past them, the mean over all places, and a linear
# head. It learns the digits 0 to 4 here and now.

# %%
base = ResNet(seed=0)
fit(base, old["train"], steps=200, lr=3e-3)
images, labels = new["train"]  # [N, 1, 8, 8] from 0, paper, to 1, ink; and [N] from 0 to 4
print(f"{list(images.shape)} images to adapt to, {len(new['dev'][1])} to choose with")
print(f"on digits that it has learned: {accuracy(base, old['test']):.0%} of the test images right")
assert sum(len(split[1]) for task in (old, new) for split in task.values()) == 1797
assert (list(images.shape), len(new["dev"][1]), len(new["test"][1])) == ([447, 1, 8, 8], 175, 274)
assert (FIRST, SECOND) == ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9))
assert sum(weights.numel() for weights in base.parameters()) == 77_429
assert base.pad == 4
assert accuracy(base, old["test"]) > 0.9

# %% [markdown]
# It has 77,429 numbers. The 447 new images train, 175 choose the learning rate, and 274 test, once. The splits are
# stretches of the file, which seems to be sorted by writer, so that few wrote for two of them.
#
# ## Two doors of three
#
# | door | in GPT-2 | in a ResNet |
# |---|---|---|
# | input | vectors in front of the tokens: soft prompt | pixels around the image: *visual prompt* |
# | memory | keys and values in every block: prefix | there is none: nothing here attends to anything |
# | weights | LoRA, adapters, biases | LoRA for convolutions, *residual adapters*, BatchNorm's scales and biases |
#
# A prefix has no counterpart. It needs a softmax that shares itself out between what is learned and what is there, and
# a convolution has fixed weights for its neighbours. The other two doors are here, and a new head is a third thing to
# train, where one wants it.
#
# ## The input door
#
# The smallest case: an image of 2 by 2 pixels, and a border of 1.

# %%
tiny = torch.tensor([[0.0, 0.6], [0.9, 0.3]])[None, None]  # [B, 1, h, w] = [1, 1, 2, 2]
x = F.pad(tiny, (1, 1, 1, 1))
M = F.pad(torch.zeros(1, 1, 2, 2, dtype=torch.bool), (1, 1, 1, 1), value=True)
print(
    f"{list(tiny.shape)} -> {list(x.shape)}, where {int(M.sum())} pixels are free:\n{M[0, 0].int()}"
)
assert x.shape == (1, 1, 4, 4)
assert M.sum() == 4 * 4 - 2 * 2 == 12
assert torch.equal(x[:, :, 1:3, 1:3], tiny)

# %% [markdown]
# The 12 free pixels become parameters $v$, and every image gets the same:
#
# $$\tilde x = \mathrm{pad}_p(x) + M \odot v$$
#
# Here $M$ is 1 in the border and 0 in the middle. Elsayed et al. (2019) did this to make a network do what it was not
# made for, and called it *reprogramming*; Bahng et al. (2022) call it a *visual prompt*. A soft prompt is a part of the
# input that was learned, and so is this.
#
# ## Exercise a: the border
#
# *Difficulty 1 of 3, ten minutes.* The values lie in one row, as many as there are free pixels; they run along the rows
# of the canvas. A gradient must find its way to them.


# %% tags=["exercise"]
def with_border(images: torch.Tensor, values: torch.Tensor, p: int) -> torch.Tensor:
    """images [B, 1, h, w], values [(h + 2p)(w + 2p) - h w]: every image in its border, [B, 1, h + 2p, w + 2p]."""
    # BEGIN SOLUTION
    M = F.pad(
        torch.zeros_like(images[:1], dtype=torch.bool), (p, p, p, p), value=True
    )  # [1, 1, H, W]
    canvas = torch.zeros(M.shape).masked_scatter(M, values)
    return F.pad(images, (p, p, p, p)) + canvas
    # END SOLUTION


# %% tags=["check"]
check("14a", with_border)  # pixel by pixel, in plain loops; for help: hint("14a")

# %% [markdown]
# ## Exercise b: train it, and nothing else
#
# *Difficulty 2 of 3, ten minutes.* `border = Border(p)` holds the values, and `border()` makes the canvas `[1, 1, H,
# W]` of them; `net(images, canvas)` gives the logits. The net comes to you straight from its own training. When you are
# done it must be what it was: every tensor in its `state_dict`, to the last bit; and no weight of it may hold a
# gradient.


# %% tags=["exercise"]
def train_border(
    net: ResNet,
    border: Border,
    images: torch.Tensor,
    labels: torch.Tensor,
    steps: int,
    lr: float,
) -> None:
    """`steps` of `torch.optim.Adam` on the border, each on the cross-entropy of all images [B, 1, 8, 8]."""
    # BEGIN SOLUTION
    net.eval().requires_grad_(False)
    optimizer = torch.optim.Adam(border.parameters(), lr=lr)
    for _ in range(steps):
        loss = F.cross_entropy(net(images, border()), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # END SOLUTION


# %% tags=["check"]
check("14b", train_border)  # against Adam written out by hand; for help: hint("14b")

# %% [markdown]
# ## A common wrong answer
#
# Freeze all weights, give the optimizer the border alone, train. It looks right, and no weight moves:


# %%
def in_training_mode(net, border, images, labels, steps, lr):
    net.requires_grad_(False)
    net.train()  # "we are training, are we not?"
    optimizer = torch.optim.Adam(border.parameters(), lr=lr)
    for _ in range(steps):
        loss = F.cross_entropy(net(images, border()), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


check("14b", in_training_mode)

# %% [markdown]
# BatchNorm keeps two kinds of numbers. Its scale and bias are parameters. The mean and the variance by which it
# normalises are not: in training mode it takes those of the batch, and counts them into a running average, which
# evaluation will use. `requires_grad` has no say in that. What does it do to our base?

# %%
victim, border = copy.deepcopy(base), Border(base.pad)
in_training_mode(victim, border, images[:64], labels[:64], steps=60, lr=0.3)
victim.eval()
weights = all(
    torch.equal(a, b) for a, b in zip(base.parameters(), victim.parameters(), strict=True)
)
moved = [
    name for name, a in victim.state_dict().items() if not torch.equal(a, base.state_dict()[name])
]
before, after = accuracy(base, old["test"]), accuracy(victim, old["test"])
print(f"all weights as they were: {weights}; tensors that changed: {len(moved)}, first {moved[0]}")
print(f"the digits that it knew, without any border: {before:.0%} before, {after:.0%} after")
assert weights
assert {name.split(".")[-1] for name in moved} == {
    "running_mean",
    "running_var",
    "num_batches_tracked",
}
assert after < before - 0.1

# %% [markdown]
# Not one weight is different, and the base has forgotten what it knew: its BatchNorm now expects images with *that*
# border. Every other task that shares the base is broken, and nothing said so. The border itself was trained with one
# network and will be used with another. So a frozen base is in evaluation mode while something beside it is trained.
# The one exception below is full finetuning, which has a copy to itself.
#
# ## The answer to the guess
#
# First, which output stands for which digit? The base says something about every new image, wrong as it must be. Take
# the pairing of digits and outputs that is right most often on the training images; it trains nothing. We do it once;
# Chen et al. (2023) do it anew while the border changes. Then the border, for 200 steps of 32 images, at the rate that
# was best on the development split, on other bases than this one.

# %%
found = json.loads((folder().parent / "docs" / "results" / "vision.json").read_text())
results = {row["method"]: row for row in found["methods"]}
before = {name: tensor.clone() for name, tensor in base.state_dict().items()}

outputs = matched(base, new["train"])
print(
    "  ".join(
        f"a {digit} is called {FIRST[old]}" for digit, old in zip(SECOND, outputs, strict=True)
    )
)
tuned = Tuned(base, VisualPrompt(), classes=outputs, seed=0)
untrained = accuracy(tuned, new["test"])
fit(tuned, new["train"], steps=200, lr=results["border, no new head"]["rate"], seed=0)
trained = accuracy(tuned, new["test"])
canvas = tuned.border().detach()[0, 0]  # [16, 16]
print(
    f"{tuned.num_trainable()} numbers: {untrained:.0%} with a blank border, {trained:.0%} with a trained one"
)
assert tuned.num_trainable() == 16 * 16 - 8 * 8 == 192
assert untrained < 0.5 < trained
assert all(
    torch.equal(tensor, before[name]) for name, tensor in tuned.detach().state_dict().items()
)
assert all(weights.grad is None for weights in base.parameters())

# %% [markdown]
# A border alone takes a network that has never seen these digits well beyond half of them. The base is bit-identical,
# statistics included, and reads the old digits as before.
#
# ## The weights door
#
# LoRA beside a convolution: $A$ is a convolution with the same window to $r$ channels, and $B$ goes back, pixel by
# pixel. Because a convolution is linear, the two are one convolution with another kernel, as in the linear layers of
# GPT-2:
#
# $$W * x + \tfrac{\alpha}{r}\, B\,(A * x) = \left(W + \tfrac{\alpha}{r}\, B A\right) * x$$
#
# A residual adapter, of Rebuffi et al. (2018), is a matrix $A$ from channels to channels at every pixel, beside the
# kernel. It too can be folded away, since a kernel of $1 \times 1$ is one of $3 \times 3$ with zeros around its middle:
#
# $$W * x + A\,x = \left(W + \mathrm{pad}_1(A)\right) * x$$

# %%
generator = torch.Generator().manual_seed(0)
W, r, alpha = base.blocks[1].conv2.weight.detach(), 2, 4.0  # [32, 32, 3, 3]
x = torch.randn(1, 32, 8, 8, generator=generator)
A, B = torch.randn(r, 32, 3, 3, generator=generator), torch.randn(32, r, 1, 1, generator=generator)
two = F.conv2d(x, W, padding=1) + alpha / r * F.conv2d(F.conv2d(x, A, padding=1), B)
BA = (B.flatten(1) @ A.flatten(1)).view_as(W)  # [32, r] @ [r, 32 * 3 * 3]
torch.testing.assert_close(two, F.conv2d(x, W + alpha / r * BA, padding=1), rtol=0, atol=1e-2)

A = torch.randn(32, 32, 1, 1, generator=generator)
two = F.conv2d(x, W, padding=1) + F.conv2d(x, A)
torch.testing.assert_close(
    two, F.conv2d(x, W + F.pad(A, (1, 1, 1, 1)), padding=1), rtol=0, atol=1e-2
)

print(
    f"this kernel: {W.numel():,} numbers; LoRA of rank 1 {32 * 9 + 32}, residual adapter {A.numel():,}"
)
assert (W.numel(), 32 * 9 + 32, A.numel()) == (9216, 320, 1024)

# %% [markdown]
# For this kernel of 9,216 numbers that is 320 numbers of LoRA with rank 1, or 1,024 of a residual adapter. LoRA's
# second factor and the residual adapter begin at zero, where they change nothing. The cheapest at this door, akin to
# the biases in GPT-2, are the scales and biases of BatchNorm, with its statistics left alone.
#
# ## All of them
#
# Each once on our base, with a new head of 325 numbers, and then a whole ResNet of its own that may change all it has:

# %%
METHODS = {
    "linear probe": Probe(),
    "border and head": VisualPrompt(),
    "BatchNorm and head": NormAndBias(),
    "LoRA and head": ConvLoRA(rank=1),
    "residual adapters and head": ResidualAdapter(),
    "everything": Full(),
}
live = {"border, no new head": 100 * trained}
for name, method in METHODS.items():
    tuned = Tuned(base, method, classes=5, seed=0)
    assert tuned.num_trainable() == results[name]["trained"]
    fit(tuned, new["train"], steps=200, lr=results[name]["rate"], seed=0)
    live[name] = 100 * accuracy(tuned, new["test"])
    print(f"{name:27} {tuned.num_trainable():6,} numbers trained: {live[name]:.0f} %")
assert live["border, no new head"] < live["linear probe"] < live["everything"]
assert all(abs(live[name] - 100 * results[name]["test"][0]) < 8 for name in live)
assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
assert results["linear probe"]["trained"] == 64 * 5 + 5 == 325

# %% [markdown]
# All seven, and the base is still what it was; even full finetuning had only a copy. One run a method is no comparison,
# though. So ten bases from ten seeds, and each method on each: on five of them the learning rate of a method is chosen,
# the best of four on the development split in their mean, and the other five are trained at that rate and see the test
# images, once. One standard error of such a score is about 1.8 points from the choice of test images alone. All of it
# takes some ten minutes: `python recipes/vision.py`.

# %% tags=["figure"]
scores = {name: [100 * score for score in row["test"]] for name, row in results.items()}
mean = {name: sum(values) / len(values) for name, values in scores.items()}
for name, value in mean.items():
    print(
        f"{name:27} {results[name]['trained']:6,} numbers, rate {results[name]['rate']}: {value:.1f} %"
    )
example = F.pad(new["test"][0][0, 0], (4, 4, 4, 4))  # [16, 16]
dots_over_numbers(
    {name: (row["trained"], scores[name]) for name, row in results.items()},
    ("linear probe, mean", mean["linear probe"]),
    f"always the same digit: {100 * found['majority']:.0f} %, far below this axis",
    {"a 7 in a blank border": example, "with the learned border": example + canvas},
    "The methods carry over; but a border alone does less than a linear probe",
    "numbers trained",
    "right answers in %, test split, five seeds",
)
assert (found["test_seeds"], found["steps"]) == ([0, 1, 2, 3, 4], 200)
assert not set(found["test_seeds"]) & set(found["dev_seeds"])
assert all(len(row["dev"]) == 4 for row in results.values())
assert round(100 * (0.9 * 0.1 / 274) ** 0.5, 1) == 1.8
assert round(100 * found["majority"]) == 20
rounded = {name: round(value) for name, value in mean.items()}
assert rounded["border, no new head"] == 78
assert (rounded["linear probe"], rounded["border and head"]) == (89, 90)
assert all(
    a < b for a, b in zip(scores["border, no new head"], scores["linear probe"], strict=True)
)
more = [a - b for a, b in zip(scores["border and head"], scores["linear probe"], strict=True)]
assert (sum(gain > 0.1 for gain in more), sum(gain < -0.1 for gain in more)) == (3, 1)
assert (rounded["LoRA and head"], rounded["residual adapters and head"]) == (96, 95)
assert (rounded["BatchNorm and head"], rounded["everything"]) == (92, 98)
assert results["LoRA and head"]["trained"] == 2158
assert round(100 * 2158 / 77_429) == 3

# %% [markdown]
# So yes, it works for a model that is no language model. LoRA trains 2,158 numbers, 3 percent of the network, and gets
# 96 percent of the images right where full finetuning gets 98. Which of these steps are more than luck between seeds?
# Seed for seed, as in [lesson twelve](12_prompt_against_prefix.ipynb), and corrected for six questions:

# %%
steps_up = [
    *(("linear probe", "border, no new head"), ("border and head", "linear probe")),
    *(("BatchNorm and head", "border and head"), ("LoRA and head", "BatchNorm and head")),
    *(("LoRA and head", "residual adapters and head"), ("everything", "LoRA and head")),
]
by_seed = {name: dict(enumerate(values)) for name, values in scores.items()}
gaps = differences(by_seed, steps_up)
for gap in gaps:
    print(
        f"{gap.one} − {gap.other}: {gap.mean.value:+.1f} ± {gap.mean.half:.1f}, corrected p {gap.adjusted:.3f}"
    )
assert len(gaps) == 6
assert [gap.one for gap in gaps if gap.adjusted < 0.05] == ["everything"]
assert gaps[4].p < 0.05

# %% [markdown]
# One of six: full finetuning is ahead of LoRA. The others point where you would expect, and five seeds do not settle
# them by this test. LoRA against the residual adapters, which have four times its numbers, would have passed for a
# finding had nobody counted the questions.
#
# And what about the border? Alone it gets 78 percent, far above the 20 of always the same digit and, for every seed,
# below the 89 of a linear probe. With a new head it gets 90, better than the probe for 3 seeds and worse for 1. But it
# asks for less. A probe needs the features inside the network; a border only sends images and hears answers, as long as
# somebody hands the gradient back. Nor is this network made to be prompted: Bahng et al. find borders particularly
# effective for CLIP, which learned from pictures and their captions, and there competitive with linear probes.
#
# ## In the package
#
# `minipeft/vision.py` has all of it. The border is a parameter for each free pixel; the lines that keep the statistics
# where they were are these two of `Tuned.train`:
#
# ```python
# super().train(mode)
# self.net.train(mode and self.counts_on)  # counts_on: full finetuning, in its own copy
# ```
#
# ## What was left out, and what to read next
#
# BatchNorm statistics of its own for each task, which cost no trained number; limits for the pixels, of which some of
# ours are far from any ink (Elsayed et al. keep theirs within bounds by a tanh); larger images and networks; saving to
# files; and vision transformers, which do have the memory door: Jia et al. (2022), *Visual
# Prompt Tuning*, put soft prompts and deep ones into them. Read Rebuffi et al. (2018), *Efficient Parametrization of
# Multi-Domain Deep Neural Networks*: ten tasks on one frozen ResNet.
#
# ## On the real GPT-2
#
# Does the trap exist there? GPT-2 has LayerNorm, which normalises each token by itself and keeps no statistics. A model
# without buffers has nothing that could drift. And its linear layers are convolutions with a window of one token, so
# that LoRA for convolutions is LoRA.

# %%
for gpt2 in filter(None, (GPT2.from_pretrained("nano"), real_gpt2())):
    layer, D = gpt2.blocks[0].attn.c_attn, gpt2.config.n_embd
    A, B = torch.randn(4, D, generator=generator), torch.randn(3 * D, 4, generator=generator) / D
    x = torch.randn(1, 10, D, generator=generator)  # [B, T, D]
    with torch.no_grad():
        linear = layer(x) + x @ A.T @ B.T
        kernel = (layer.weight + B @ A)[:, :, None]  # [3 D, D, 1]
        convolution = F.conv1d(x.mT, kernel, layer.bias).mT
    difference = (linear - convolution).abs().max()
    print(
        f"width {D}: {len(list(gpt2.buffers()))} buffers; both forms of LoRA differ by {difference:.0e}"
    )
    assert not list(gpt2.buffers())
    torch.testing.assert_close(convolution, linear, rtol=0, atol=1e-2)
