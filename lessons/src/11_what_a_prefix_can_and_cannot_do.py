# %% [markdown]
# # What a prefix can and cannot do
#
# **Attention with a prefix is two attentions and a gate. After this lesson you can compute the gate of every head,
# and say what follows: in a layer, for the same queries and keys, a prefix turns the text down and adds something, and
# never changes which word of the text is heard more than which.**
#
# You will be able to
#
# - take attention with a prefix apart into two attentions and a gate λ, and put it together again exactly,
# - measure what a prefix leaves alone in its layer and LoRA does not,
# - tell a task that a prefix brings out from one that it would have to teach, and say where "cannot" ends.
#
# *Forty-five minutes. Before it: [prefix tuning](09_prefix_tuning.ipynb).*

# %% [markdown]
# ## A guess before we begin
#
# A model of one layer has learned to sort six digits upwards, and has seen nothing else. You may tune 1,024 numbers so
# that it sorts downwards: as a prefix of 8 vectors, or as LoRA of rank 1, a column times a row beside every linear
# layer. How many of a hundred answers will be right with each? And if the model had seen both orders, so that it knows
# them and cannot tell which one is wanted? Write four numbers down.

# %% tags=["setup"]
import json

import torch
import torch.nn.functional as F

from minipeft import GPT2, GPT2Config, LoRA, Prefix, attach, load
from minipeft.attention import explicit_attention, lower_right_mask
from minipeft.checks import check
from minipeft.course.controls import Choice, explore
from minipeft.course.dots import before_and_after
from minipeft.course.figures import bars_in_groups, heat_maps
from minipeft.course.notebooks import folder
from minipeft.course.real import real_gpt2
from minipeft.inspect.attention import attention_mass
from minipeft.tuned import SHIPPED_ADAPTERS

model = GPT2.from_pretrained("nano")
tokenizer = model.tokenizer

# %% [markdown]
# ## Five keys
#
# One query, two keys of a prefix, three of a text. Each value is a single number. Here are the exponentials of the
# scores, so that everything can be done in the head:

# %%
on_prefix, prefix_v = torch.tensor([3.0, 1.0]), torch.tensor([0.0, 8.0])  # [P], [P]
on_text, v = torch.tensor([1.0, 2.0, 1.0]), torch.tensor([10.0, 20.0, 30.0])  # [T], [T]

joint = torch.cat([on_prefix, on_text])  # [P + T]
weights = joint / joint.sum()
head = weights @ torch.cat([prefix_v, v])
of_text, of_prefix = on_text / on_text.sum() @ v, on_prefix / on_prefix.sum() @ prefix_v
gate = on_prefix.sum() / joint.sum()
print("weights of all five:", weights.tolist())
print(f"together {head:.0f}; the text alone {of_text:.0f}, the prefix alone {of_prefix:.0f}")
print(f"the prefix has {gate:.2f} of the weight")
assert weights.shape == (2 + 3,)
assert (head, of_text, of_prefix, gate) == (11, 20, 2, 0.5)
assert head == (1 - gate) * of_text + gate * of_prefix
alone, beside = on_text / on_text.sum(), weights[2:]
print("the text's weights without the prefix:", alone.tolist(), "and with it:", beside.tolist())
assert torch.equal(beside, (1 - gate) * alone)

# %% [markdown]
# The prefix has half the weight, so the head gives half of what the text alone would give and half of what the prefix
# alone would give: 11 from 20 and 2. Of the text, the second word has twice the weight of the first, with the prefix
# and without.
#
# ## In general
#
# He et al. (2022) write it so. Both attentions have a softmax of their own, and
# $Z_P = \sum_i e^{q \cdot P_{k,i} / \sqrt{D_h}}$, $Z_T = \sum_{j \le t} e^{q \cdot k_j / \sqrt{D_h}}$ are what each
# would divide by:
#
# $$\text{head} = (1 - \lambda)\, \text{softmax}\!\left(\frac{q\,k^\top}{\sqrt{D_h}}\right) v +
# \lambda\, \text{softmax}\!\left(\frac{q\,P_k^\top}{\sqrt{D_h}}\right) P_v
# \qquad \lambda = \frac{Z_P}{Z_P + Z_T} = \sigma(\log Z_P - \log Z_T)$$
#
# Nothing is approximated. One softmax over all keys divides by $Z_P + Z_T$; take $Z_T$ out of the text's part and
# $Z_P$ out of the prefix's, and this is what stands there. λ depends on $q$: every token has its own, in every head.
#
# ## Exercise a: the gated sum
#
# *Difficulty 2 of 3, fifteen minutes.* Make the two attentions and the gate (one softmax over all keys would give the
# same, and show nothing). `explicit_attention(q, k, v)` is causal attention to the text. Every token sees the whole
# prefix. Scores may be in the hundreds, and `exp` of that is infinite: `torch.logsumexp` gives $\log Z$ without
# computing $Z$.


# %% tags=["exercise"]
def gated_sum(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    prefix_k: torch.Tensor,
    prefix_v: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """q, k, v [B, H, T, Dh] and the prefix's [H, P, Dh] give the heads' output [B, H, T, Dh] and λ [B, H, T]."""
    # BEGIN SOLUTION
    T, Dh = q.shape[2:]
    later = ~lower_right_mask(T, T)[0, 0]  # [T, T]
    on_text = (q @ k.mT / Dh**0.5).masked_fill(later, float("-inf"))  # [B, H, T, T]
    on_prefix = q @ prefix_k.mT / Dh**0.5  # [B, H, T, P]
    gate = torch.sigmoid(on_prefix.logsumexp(dim=-1) - on_text.logsumexp(dim=-1))  # [B, H, T]
    of_text, of_prefix = explicit_attention(q, k, v), on_prefix.softmax(dim=-1) @ prefix_v
    return (1 - gate[..., None]) * of_text + gate[..., None] * of_prefix, gate
    # END SOLUTION


# %% tags=["check"]
check("11a", gated_sum)  # one softmax over all keys, in plain loops; for help: hint("11a")

# %% [markdown]
# ## A common wrong answer
#
# The two attentions are added. It looks natural, "the prefix comes on top", and LLaMA-Adapter does so, behind a gate
# that it learns. But then the weights of a token sum to two, and a softmax has a fixed amount to give: what the prefix
# gets, the text loses.


# %%
def parts(q, k, v, prefix_k, prefix_v):
    """The text's attention, the prefix's, and all weights of the one softmax, [B, H, T, P + T]."""
    (B, _, T, _), P = q.shape, prefix_k.shape[1]
    keys = torch.cat([prefix_k.expand(B, -1, -1, -1), k], dim=2)
    weights = explicit_attention(q, keys, torch.eye(P + T).expand(B, len(prefix_k), -1, -1))
    of_prefix = (q @ prefix_k.mT / q.shape[-1] ** 0.5).softmax(dim=-1) @ prefix_v
    return explicit_attention(q, k, v), of_prefix, weights


def added(q, k, v, prefix_k, prefix_v):
    of_text, of_prefix, weights = parts(q, k, v, prefix_k, prefix_v)
    return of_text + of_prefix, weights[..., : prefix_k.shape[1]].sum(dim=-1)


check("11a", added)

# %% [markdown]
# The next one knows about the gate and takes one λ for each text, the mean over its tokens and heads. And the last
# one cuts the text's weights out of the softmax over all keys. They sum to $1 - \lambda$ already, so the gate is in
# them, and it is laid on a second time.


# %%
def one_gate_for_a_row(q, k, v, prefix_k, prefix_v):
    of_text, of_prefix, weights = parts(q, k, v, prefix_k, prefix_v)
    gate = weights[..., : prefix_k.shape[1]].sum(dim=-1)
    gate = gate.mean(dim=(1, 2), keepdim=True).expand_as(gate)
    return (1 - gate[..., None]) * of_text + gate[..., None] * of_prefix, gate


def gated_twice(q, k, v, prefix_k, prefix_v):
    _, of_prefix, weights = parts(q, k, v, prefix_k, prefix_v)
    P = prefix_k.shape[1]
    gate = weights[..., :P].sum(dim=-1)
    return (1 - gate[..., None]) * (weights[..., P:] @ v) + gate[..., None] * of_prefix, gate


check("11a", one_gate_for_a_row)
check("11a", gated_twice)

# %% [markdown]
# ## λ in a real model
#
# The nano model with the prefix `shakespeare`, 10 vectors in each of 6 blocks. In every block, what the model computes
# with the prefix in front is compared with the gated sum:


# %%
def through(tuned, tokens):
    """Of every block behind a prefix: q, k, v [B, H, T, Dh] and the prefix's keys and values [H, P, Dh]."""
    memory, T, found = tuned.doors().memory, tokens.shape[1], []
    x = tuned.base.embed(tokens, memory.length + torch.arange(T)[None])
    for layer, block in enumerate(tuned.base.blocks):
        q, k, v = (
            part.unflatten(-1, (tuned.base.config.n_head, -1)).transpose(1, 2)
            for part in block.attn.c_attn(block.ln_1(x)).chunk(3, dim=-1)
        )
        prefix_k, prefix_v = (part[0] for part in memory.of(layer))
        found.append((q, k, v, prefix_k, prefix_v))
        x = block(x, None, memory, layer)
    return found


def compare(tuned, tokens):
    """The largest difference between attention and the gated sum in each block; λ of all blocks, [L, B, H, T]."""
    errors, gates = [], []
    with torch.no_grad():
        for q, k, v, prefix_k, prefix_v in through(tuned, tokens):
            together = explicit_attention(
                q, torch.cat([prefix_k[None], k], dim=2), torch.cat([prefix_v[None], v], dim=2)
            )
            of_text, of_prefix, weights = parts(q, k, v, prefix_k, prefix_v)
            gate = weights[..., : len(prefix_k[0])].sum(dim=-1)
            summed = (1 - gate[..., None]) * of_text + gate[..., None] * of_prefix
            errors.append(float((together - summed).abs().max()))
            gates.append(gate)
    return errors, torch.stack(gates)


prefixes = {
    name: load(SHIPPED_ADAPTERS / name, model).eval()
    for name in ("shakespeare", "positive", "negative")
}
sentence = "It is a story of a man who goes home after the war."
tokens = torch.tensor([tokenizer.encode(sentence)])
errors, gates = compare(prefixes["shakespeare"], tokens)
print(f"largest difference in a block: {', '.join(f'{error:.0e}' for error in errors)}")
for layer, gate in enumerate(gates):
    least, most = gate.mean(dim=(0, 2)).min(), gate.mean(dim=(0, 2)).max()
    print(f"h.{layer}: λ is {gate.mean():.0%}; the heads have from {least:.0%} to {most:.0%}")
told = attention_mass(prefixes["shakespeare"], tokens)  # [L, H], by the package
torch.testing.assert_close(gates.mean(dim=(1, 3)), told, rtol=0, atol=1e-5)
assert max(errors) < 1e-5
assert (gates.shape[0], prefixes["shakespeare"].method.length) == (6, 10)
assert told.max() - told.min() > 0.8
assert (round(float(told.min()), 2) < 0.1, round(float(told.max()), 2) > 0.9) == (True, True)

# %% [markdown]
# They are the same, to 1e-5 and better. One head gives the prefix more than nine tenths of its attention, another
# less than one tenth. `recipes/theory_gated_sum.py` did this for 64 reviews, four prefixes and every head:

# %%
results = folder().parent / "docs" / "results"
measured = json.loads((results / "theory_gated_sum.json").read_text())
for name, found in measured["prefixes"].items():
    layers = ", ".join(f"{share:.0%}" for share in found["mean_lambda_by_layer"])
    print(f"{name}: λ by layer {layers}; largest error {max(found['largest_error_by_layer']):.0e}")
shipped = [measured["prefixes"][name]["mean_lambda_by_layer"] for name in prefixes]
assert measured["texts"] == 64
assert len(measured["prefixes"]) == 4
assert max(max(found["largest_error_by_layer"]) for found in measured["prefixes"].values()) < 1e-5
assert all(min(layers) == layers[3] and round(100 * layers[3]) in (24, 31) for layers in shipped)
assert all(51 <= round(100 * layers[5]) <= 61 and layers[5] > layers[3] for layers in shipped)

# %% [markdown]
# All three prefixes that ship are heard least in `h.3`, with 24 or 31 percent. Move through prefixes and texts
# yourself: as a text goes on, more of its own keys compete, and λ tends to fall.


# %%
def show_gates(prefix: str, text: str) -> None:
    if not (ids := tokenizer.encode(text)[:24]):
        print("write a few words")
        return
    _, gates = compare(prefixes[prefix], torch.tensor([ids]))
    shares = 100 * gates.mean(dim=(1, 2))  # [L, T], over the heads
    first, last = shares[:, 0].mean(), shares[:, -1].mean()
    heat_maps(
        [shares],
        ["λ in %, mean of the heads"],
        f"{prefix} has {first:.0f} % of the first token's attention, {last:.0f} % of the last one's",
        [f"h.{layer}" for layer in range(len(shares))],
        [tokenizer.decode([token]).strip() for token in ids],
        "block",
        "token that looks back",
        numbers=True,
        darkest=100,
        number="{:.0f}",
    )


explore(show_gates, prefix=Choice("shakespeare", tuple(prefixes)), text=sentence)
early, late = gates[..., :3].mean(), gates[..., -3:].mean()
assert early > late

# %% [markdown]
# ## What follows
#
# In the gated sum the prefix appears in two places: in λ, and in what is added. It does not appear in
# $\text{softmax}(q\,k^\top/\sqrt{D_h})$. Each query gives every word of the text $1 - \lambda$ times what it gave
# before: all are turned down alike. Petrov et al. (2024) conclude that a prefix can bring out what a layer can do
# already, and cannot make it look elsewhere. This holds within one layer, for the same queries and keys; keep that in
# mind. And at the same *positions*: behind a prefix of 10 a text begins at position 10, which makes other queries and
# keys of it, in GPT-2 already in the first layer. So whatever is compared below stands at the same positions.
#
# LoRA, which [a later lesson](13_the_rest_of_the_family.ipynb) takes apart, changes $q$ and $k$ themselves. So there is
# something to measure: take the weights that go to the text, divide them by their sum, and see whether these *shares*
# are those of the frozen model.
#
# ## Exercise b: what moved
#
# *Difficulty 1 of 3, ten minutes.* The weights of a frozen model and those of a tuned one, for the same text at the
# same positions; the tuned one may have $P = S - T$ keys in front, and $P$ may be zero.


# %% tags=["exercise"]
def shares_moved(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """before [B, H, T, T] and after [B, H, T, S]: the largest change of a text token's share of what text gets."""
    # BEGIN SOLUTION
    text = after[..., -before.shape[-1] :]  # [B, H, T, T]
    return (text / text.sum(dim=-1, keepdim=True) - before).abs().max()
    # END SOLUTION


# %% tags=["check"]
check("11b", shares_moved)  # share by share, in plain loops; for help: hint("11b")

# %% [markdown]
# ## Another common wrong answer
#
# The weights are compared as they are. Then a prefix seems to move a lot, because λ takes its part of every weight, and
# the theorem looks false.


# %%
def not_renormalised(before, after):
    return (after[..., -before.shape[-1] :] - before).abs().max()


check("11b", not_renormalised)

# %% [markdown]
# ## Bring out, or teach
#
# Now the guess, live and small. A text is six digits, a separator, and the same digits in order. Nothing in it says
# which order is meant; where both were seen, the first digit of the answer decides. One layer, 64 wide, four heads.
# While pretraining, half of the texts begin at position 0 and half at 8, where they will stand behind a prefix of 8.

# %%
n, P, SEPARATOR = 6, 8, 10
WIDTH, DOWN = 64, {"upwards": False, "downwards": True}


def texts(orders: list[str], rows: int, generator: torch.Generator) -> torch.Tensor:
    """Random digits, the separator, and the digits in one of the orders: [rows, n + 1 + n]."""
    x = torch.randint(10, (rows, n), generator=generator)
    y = torch.stack([x.sort(dim=1, descending=DOWN[order]).values for order in orders])
    y = y[torch.randint(len(orders), (rows,), generator=generator), torch.arange(rows)]
    return torch.cat([x, torch.full((rows, 1), SEPARATOR), y], dim=1)


def answer_loss(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits[:, n:-1].flatten(0, 1), tokens[:, n + 1 :].flatten())


def fit(parameters, loss_at, steps: int, lr: float) -> None:
    optimizer = torch.optim.AdamW(parameters, lr, weight_decay=0.0)
    fade = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 20, 1 - step / steps)
    )
    for _ in range(steps):
        optimizer.zero_grad()
        loss_at().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        fade.step()


def pretrain(orders: list[str]) -> GPT2:
    small = GPT2(GPT2Config(1, 4, WIDTH, n_positions=P + 2 * n + 1, vocab_size=11), seed=0)
    generator = torch.Generator().manual_seed(0)

    def loss_at() -> torch.Tensor:
        tokens = texts(orders, 64, generator)
        starts = P * torch.randint(2, (len(tokens), 1), generator=generator)
        x = small.embed(tokens, starts + torch.arange(tokens.shape[1]))
        return answer_loss(small.logits(small.ln_f(small.through_blocks(x, None, None))), tokens)

    fit(list(small.parameters()), loss_at, 500, 5e-3)
    return small.eval()


@torch.no_grad()
def right(model, order: str) -> float:
    """Percent of answers that are wholly right: every digit the likeliest, given those before it."""
    tokens = texts([order], 1000, torch.Generator().manual_seed(1))
    return 100 * float(
        (model(tokens)[:, n:-1].argmax(-1) == tokens[:, n + 1 :]).all(1).float().mean()
    )


example = texts(["downwards"], 1, torch.Generator().manual_seed(3))
print("a text:", *example[0].tolist())
models = {"both orders": pretrain(["upwards", "downwards"]), "upwards alone": pretrain(["upwards"])}
for seen, small in models.items():
    print(
        f"seen {seen}: {right(small, 'upwards'):.0f} % right upwards, {right(small, 'downwards'):.0f} % downwards"
    )
assert example.shape == (1, 6 + 1 + 6)
assert right(models["upwards alone"], "upwards") > 90
assert right(models["upwards alone"], "downwards") < 1
assert 0 < right(models["both orders"], "downwards") < 95

# %% [markdown]
# Both are tuned to sort downwards, with a prefix and with LoRA of rank 1 beside every linear layer. Each trains 1,024
# numbers on batches of 32 texts, at a learning rate of its own: first, for 300 steps, the model that has seen both
# orders.

# %%
LINEAR = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
METHODS = {
    "prefix": (Prefix(P, reparam=None, init="vocab"), 0.1),
    "LoRA": (LoRA(rank=1, alpha=1, targets=LINEAR), 0.06),
}
ROWS = 32


@torch.no_grad()
def weights_of(model, tokens, first: int, prefix_k: torch.Tensor | None = None) -> torch.Tensor:
    """Attention weights in the first block of texts that begin at position `first`, [B, H, T, P + T]."""
    x = model.embed(tokens, first + torch.arange(tokens.shape[1])[None])
    block = model.blocks[0]
    q, k, _ = (
        part.unflatten(-1, (model.config.n_head, -1)).transpose(1, 2)
        for part in block.attn.c_attn(block.ln_1(x)).chunk(3, dim=-1)
    )
    if prefix_k is not None:
        k = torch.cat([prefix_k.expand(len(tokens), -1, -1, -1), k], dim=2)
    S = k.shape[2]
    return explicit_attention(q, k, torch.eye(S).expand(*q.shape[:2], -1, -1))


def tune(small: GPT2, name: str, steps: int):
    """Percent right after tuning; the weights on the text in the first block before and after, [B, H, T, T] each."""
    method, lr = METHODS[name]
    tuned, generator = attach(small, method, seed=0), torch.Generator().manual_seed(2)

    def loss_at() -> torch.Tensor:
        tokens = texts(["downwards"], ROWS, generator)
        return answer_loss(tuned(tokens), tokens)

    fit(list(tuned.trainable_parameters().values()), loss_at, steps, lr)
    assert tuned.num_trainable() == 1_024
    score, memory = right(tuned.eval(), "downwards"), tuned.doors().memory
    first = 0 if memory is None else memory.length
    before = weights_of(small, example, first)
    after = weights_of(tuned.model, example, first, None if memory is None else memory.of(0)[0])
    tuned.detach()
    return score, before, after[..., first:]


def shares(weights: torch.Tensor) -> torch.Tensor:
    return weights / weights.sum(dim=-1, keepdim=True)


def outcome(seen: str, steps: int) -> dict:
    found = {name: tune(models[seen], name, steps) for name in METHODS}
    moved_by = {
        name: (shares(after) - before).abs().max() for name, (_, before, after) in found.items()
    }
    for name, (score, _, _) in found.items():
        print(
            f"seen {seen}, {name}: {score:.0f} % right; shares moved by up to {moved_by[name]:.0e}"
        )
    assert moved_by["prefix"] < 1e-5 < 0.01 < moved_by["LoRA"]
    return found


few, many = 300, 1000
brought_out = outcome("both orders", few)
assert min(score for score, _, _ in brought_out.values()) > 80

# %% [markdown]
# And now the model that has never seen an answer fall. It gets 1000 steps:

# %%
taught = outcome("upwards alone", many)
assert (few, many, ROWS, P) == (300, 1000, 32, 8)
assert taught["prefix"][0] < 20 < 40 < taught["LoRA"][0]

# %% [markdown]
# Here are your four numbers, in small. What the model has seen, both bring out: more than 80 of a hundred answers are
# right. What it has not seen, LoRA teaches, to more than 40 (how much more varies with the seed), and the prefix leaves
# below 20. Why? Here is where the answer looks, in the head that LoRA changed most: first frozen, then tuned. The 8
# keys of the prefix are one column.

# %%
_, before, after = taught["LoRA"]
head = int((shares(after) - before).abs().amax(dim=(0, 2, 3)).argmax())
digits = [str(int(token)) for token in example[0]]
digits[n] = ":"
for name, title in (
    ("prefix", "Behind a prefix the answer looks where it looked, only less"),
    ("LoRA", "With LoRA it looks elsewhere"),
):
    maps = []
    for weights in taught[name][1:]:
        on_text = weights[0, head, n:-1]  # [n, T]: from the separator and the answer
        on_prefix = 1 - on_text.sum(dim=-1, keepdim=True)
        maps.append(torch.cat([on_prefix, on_text], dim=-1)[:, : 2 * n + 1])
    heat_maps(
        maps,
        [f"frozen, head {head}", f"with {'a ' * (name == 'prefix')}{name}, head {head}"],
        title,
        digits[n:-1],
        ["P", *digits[:-1]],
        "from the answer's token",
        "to the prefix, or a token of the text",
    )
    assert (maps[1][:, 0].max() > 0.1) == (name == "prefix")

# %% [markdown]
# And in all heads at once. A dot is one token of the text, as seen by one head from one place of the answer:

# %%
pairs = {}
for name, label in (("LoRA", "LoRA moves them"), ("prefix", "a prefix moves none")):
    _, before, after = taught[name]
    seen_from = lower_right_mask(2 * n + 1, 2 * n + 1)[0, 0, n:]  # queries of the answer
    pairs[label] = tuple(
        100 * part[0, :, n:][:, seen_from].flatten() for part in (before, shares(after))
    )
before_and_after(
    pairs,
    0.01,
    "Each token's share of the attention that goes to the text: only LoRA changes it",
    "share in the frozen model, in %",
    "share in the tuned model, in %",
)
nano_moves = 100 * (weights_of(model, tokens, 10) - weights_of(model, tokens, 0)).abs().max()
print(
    f"nano without any prefix, its text 10 positions later: a share moves by {nano_moves:.0f} points"
)
assert round(float(nano_moves)) == 20

# %% [markdown]
# (And why at the same positions? Moving a text by 10 moves a share by 20 points in nano's first block, with no prefix
# at all. That is not what a prefix says; it is where it puts the text.)
#
# ## With everything, and with a second layer
#
# One seed, one learning rate and six digits are not much. `recipes/theory_elicit_or_teach.py` takes eight digits, three
# learning rates for each method, three seeds, a soft prompt, too, and a prefix with 8 times the numbers. The model that
# has seen it has seen four tasks (sorted upwards, sorted downwards, plus one, plus two); the others have only sorted
# upwards. And it asks what happens with one layer more, where each method has 2,048 numbers:

# %% tags=["figure"]
measured = json.loads((results / "theory_elicit_or_teach.json").read_text())
names = {
    "seen": "seen in pretraining,\none layer",
    "unseen": "never seen,\none layer",
    "unseen, two layers": "never seen,\ntwo layers",
}
exact = {
    case: {
        name: [100 * one for one in found["exact"]]
        for name, found in measured[case]["methods"].items()
    }
    for case in names
}
mean = {
    case: {name: sum(seeds) / len(seeds) for name, seeds in methods.items()}
    for case, methods in exact.items()
}
bars_in_groups(
    {names[case]: methods for case, methods in exact.items()},
    [100 * measured[case]["by_itself"]["descending"] for case in names],
    "In one layer a prefix brings a task out and cannot teach it; in two it learns much of it",
    "sorted downwards, answers wholly right in %",
    "nothing tuned",
)
assert [measured[case]["layers"] for case in names] == [1, 1, 2]
assert len(measured["seen"]["tasks"]) == 4
assert [measured[case]["tasks"] for case in names][1:] == [["ascending"]] * 2
assert measured["seen"]["digits"] == 8
assert round(mean["seen"]["prefix"]) == 94
assert round(mean["unseen"]["prefix"]) == 4
assert round(mean["unseen"]["prefix, 8 times the numbers"]) == 1
assert [round(mean[case]["LoRA"]) for case in names] == [98, 97, 100]
deep = measured["unseen, two layers"]["methods"]["prefix"]
assert measured["unseen, two layers"]["methods"]["LoRA"]["trained"] == deep["trained"] == 2_048
assert [round(seed) for seed in exact["unseen, two layers"]["prefix"]] == [41, 68, 82]
assert deep["share_moved_by_layer"][0] < 1e-6
assert round(100 * deep["share_moved_by_layer"][1]) == 99

# %% [markdown]
# One layer: a prefix gets 94 percent of a task that was seen and 4 of one that was not, and 8 times as many vectors do
# not help. LoRA gets 98 and 97.
#
# Two layers: with the same theorem, the prefix gets 41, 68 and 82 percent, by seed. In the first layer it moves no
# share, as it must, by less than 1e-6. But what comes out of that layer has been turned down and added to, so the
# second layer has other queries and other keys than before. There a share moves by 99 points. The theorem compares a
# layer with itself *for the same input*, and only the first layer, at the same positions, has that. "A prefix cannot
# teach" is a sentence about one layer, not about GPT-2. How much it learns in two varies a lot with the seed, while
# LoRA learns all of it each time.
#
# Nor does this show that LoRA of rank 1 teaches anything one likes: it is one new task and one pretrained model a case.
#
# ## In the package
#
# λ is measured in `minipeft/inspect/attention.py`, out of the weights that a running model uses:
#
# ```python
# shares = scores.masked_fill(~allowed, float("-inf")).softmax(dim=-1)
# masses.append(shares[:, :, -T:, :P].sum(dim=-1).mean(dim=(0, 2)))
# ```
#
# ```
# minipeft inspect shakespeare --text "It is a story of a man"
# python recipes/theory_elicit_or_teach.py --runs runs/theory
# ```
#
# All three theorems, with their tables: `docs/theory.md`.
#
# ## What was left out, and what to read next
#
# Many prefixes of many layers together can do a great deal in principle; whether training finds them is another
# question. And He et al. go on from the gated sum: if a prefix is a second attention that is added through a gate, then
# an adapter has nearly the same form, and one can mix the two. Read sections 4 and 5 of Petrov, Torr & Bibi (2024),
# *When Do Prompting and Prefix-Tuning Work? A Theory of Capabilities and Limitations*, and section 3 of He et al.
# (2022), *Towards a Unified View of Parameter-Efficient Transfer Learning*.
#
# ## On the real GPT-2

# %%
if (gpt2 := real_gpt2()) is not None:
    words = Prefix(10, reparam=None, init="text:The following is a review of a film that I liked.")
    its_prefix = attach(gpt2, words).eval()
    its_tokens = torch.tensor([gpt2.tokenizer.encode(sentence)])
    errors, gates = compare(its_prefix, its_tokens)
    print(f"attention and the gated sum differ by at most {max(errors):.0e}")
    print("λ by layer:", ", ".join(f"{gate.mean():.0%}" for gate in gates))
    assert max(errors) < 1e-4
    its_prefix.detach()
