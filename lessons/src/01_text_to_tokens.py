# %% [markdown]
# # Text to tokens
#
# **A model reads numbers. After this lesson you know exactly which numbers, and why " banana" and "banana" are not the
# same ones.**
#
# You will be able to
#
# - say what a token is, and count those of any text,
# - carry out byte-pair encoding by hand, one merge at a time,
# - explain why spaces, digits and other alphabets cost what they cost.
#
# *Twenty minutes. You need Python; no machine learning yet.*

# %% [markdown]
# ## A guess before we begin
#
# GPT-2 knows the word " banana", with the space in front of it, as **one** token. How many tokens is "banana" at the
# very beginning of a text, without a space? Write your guess down; the answer comes below.

# %% tags=["setup"]
from itertools import pairwise

from minipeft import GPT2Config, Tokenizer
from minipeft.checks import check
from minipeft.course.figures import token_strips

tokenizer = Tokenizer.gpt2()

# %% [markdown]
# ## Everything is bytes
#
# A computer stores text as bytes: numbers from 0 to 255. English letters take one byte each, most others take more.

# %%
for text in ("banana", "naïve", "言葉"):
    print(f"{text}: {len(text)} characters, {len(text.encode())} bytes: {list(text.encode())}")

    assert all(0 <= byte <= 255 for byte in text.encode())

assert len("naïve".encode()) == 6
assert len("言葉".encode()) == 6

# %% [markdown]
# One number a byte would do: 256 numbers, every text can be written, nothing is ever unknown. But it is long. A model
# that reads 1,024 numbers at a time would see half a page. So GPT-2 joins bytes that often stand together into longer
# pieces, and gives each piece a number of its own. A piece with its number is a **token**.

# %%
for text in (" banana", "banana", "言葉"):
    ids = tokenizer.encode(text)
    print(f"{text!r}: {ids}, in bytes {[tokenizer.token_bytes(i) for i in ids]}")

assert GPT2Config().n_positions == 1_024
assert len(tokenizer.encode(" banana")) == 1
assert len(tokenizer.encode("banana")) == 2
assert len(tokenizer.encode("言葉")) == 6
assert tokenizer.decode(tokenizer.encode("言葉")) == "言葉"

# %% [markdown]
# That is the answer to the guess: **two**, `ban` and `ana`. Words rarely begin a text, so the piece with the space in
# front of it was worth a number, and the one without was not. And GPT-2 saw little Japanese: each byte of 言葉 stays
# alone.
#
# ## How a text falls into pieces
#
# The vocabulary is a list of merges, the earliest first. To encode a word, start from its bytes and repeat:
#
# > among all neighbours $(a, b)$ whose joined piece $ab$ is in the vocabulary, take the one with the **lowest rank**,
# > and join it **everywhere** in the word;
#
# until no two neighbours can be joined. (The text was first cut into words, each with the space in front of it, so no
# token ever spans two words.) This is *byte-pair encoding*. In code, with the rank of a piece being its number:

# %% tags=["setup"]
RANKS = {tokenizer.token_bytes(token): token for token in range(tokenizer.eot)}


def best_pair(pieces):
    """The two neighbours to be joined next, or None if there are none."""
    pairs = [pair for pair in pairwise(pieces) if pair[0] + pair[1] in RANKS]
    return min(pairs, key=lambda pair: RANKS[pair[0] + pair[1]]) if pairs else None


# %%
pieces = [bytes([byte]) for byte in b" banana"]
print(pieces)
print("first to be joined:", best_pair(pieces), "with rank", RANKS[b"an"])

assert best_pair(pieces) == (b"a", b"n")
assert RANKS[b"an"] == 272

# %% [markdown]
# ## Exercise: one merge
#
# *Difficulty 1 of 3, ten minutes.* Join a pair everywhere in a word, from left to right. A piece that was joined is
# used up: `a a a` with the pair `(a, a)` becomes `aa a`.


# %% tags=["exercise"]
def merge(pieces: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    """The pieces of a word, with every neighbouring `pair` joined into one piece; a new list."""
    # BEGIN SOLUTION
    joined, place = [], 0
    while place < len(pieces):
        if tuple(pieces[place : place + 2]) == pair:
            joined.append(pair[0] + pair[1])
            place += 2
        else:
            joined.append(pieces[place])
            place += 1
    return joined
    # END SOLUTION


# %% tags=["check"]
check("01", merge)  # 200 texts, against the library that GPT-2's users use; for help: hint("01")

# %% [markdown]
# ## A common wrong answer
#
# Walking over all neighbours and forgetting that a joined piece is used up: every letter is looked at as the left one
# of a pair, also the one that has just been joined. So the middle one of `a a a` is taken twice:


# %%
def merge_used_twice(pieces, pair):
    joined = []
    for left, right in pairwise([*pieces, b""]):
        joined.append(left + right if (left, right) == pair else left)
    return joined


wrong = merge_used_twice([b"a", b"a", b"a"], (b"a", b"a"))
print(wrong)
assert wrong == [b"aa", b"aa", b"a"]  # five letters out of three
check("01", merge_used_twice)

# %% [markdown]
# ## The whole word
#
# Twelve merges turn the thirteen bytes of " unbelievable" into one token. Every row below is one merge; the label is
# the rank of the piece that it made. The common pieces come first, for they have the lowest ranks.


# %% tags=["figure"]
def merges_of(word):
    """The pieces after each merge, and the rank of what was joined. (`bytes.replace` will do for one figure.)"""
    pieces, steps = [bytes([byte]) for byte in word.encode()], []
    while (pair := best_pair(pieces)) is not None:
        marked = b"|".join(pieces).replace(b"|".join(pair), b"".join(pair))
        pieces = marked.split(b"|")
        steps.append((RANKS[b"".join(pair)], pieces))
    return steps


steps = merges_of(" unbelievable")
assert len(steps) == 12
assert len(b" unbelievable") == 13
assert len(steps[-1][1]) == 1

token_strips(
    [list(" unbelievable")] + [[piece.decode() for piece in pieces] for _, pieces in steps],
    ["bytes"] + [f"rank {rank:,}" for rank, _ in steps],
    "Common pieces join first: twelve merges make one token",
    "␣ is a space; a row is one merge",
)

# %% [markdown]
# ## What it costs
#
# The same rule explains what readers of GPT-2 wonder about: numbers fall apart at odd places, capitals cost extra, and
# another alphabet takes one to three tokens for a character, where an English word takes about one.

# %%
examples = [
    "It is a banana.",
    "IT IS A BANANA.",
    "In 1789, 12345 people",
    "naïve café",
    "言葉 is Japanese",
]
pieces = [[tokenizer.token_bytes(i) for i in tokenizer.encode(text)] for text in examples]
token_strips(
    [[piece.decode(errors="backslashreplace") for piece in row] for row in pieces],
    [f"{len(row)} tokens" for row in pieces],
    "A space joins its word; capitals, digits and other alphabets fall apart",
    "\\xe8 is a byte that is no character of its own",
)

assert [len(row) for row in pieces] == [5, 7, 7, 3, 8]

# %% [markdown]
# ## In the package
#
# All of this is `minipeft/tokenizer.py`, where the library tiktoken does the merging. Its one liberty: the small model
# that ships with this course, *nano*, keeps only the first 8,000 merges of GPT-2's 50,000, which is a valid smaller
# vocabulary. Its 8,257 tokens are 256 bytes, 8,000 merges and `<|endoftext|>`.

# %%
small = Tokenizer.gpt2(merges=8_000)
print(tokenizer, small, sep="\n")
assert tokenizer.vocab_size == 256 + 50_000 + 1 == 50_257
assert small.vocab_size == 256 + 8_000 + 1 == 8_257
assert small.encode(" unbelievable") != tokenizer.encode(" unbelievable")
assert [small.decode([i]) for i in small.encode(" unbelievable")] == [
    " un",
    "bel",
    "ie",
    "v",
    "able",
]

# %% [markdown]
# Five tokens instead of one: the merges that would have gone on have ranks beyond 8,000.
#
# ## What was left out, and what to read next
#
# Where do the merges come from? From counting: start with bytes, count all neighbouring pairs in a large text, give the
# most frequent pair the next number, and repeat. Read Sennrich, Haddow & Birch (2016), *Neural Machine Translation of
# Rare Words with Subword Units*, algorithm 1: it fits on half a page, and you have now written its other half.
#
# ## On the real GPT-2
#
# Nothing changes: the vocabulary you used above is GPT-2's own and ships with this course. The model has one row of
# numbers for each of its 50,257 tokens, and what it does with those rows is lesson three.
