"""The tokenizer: GPT-2's ids, from disk, with all or some of its merges."""

import hashlib
import json
import os
import random
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minipeft import tokenizer
from minipeft.tokenizer import END_OF_TEXT, VOCAB_FILE, Tokenizer

# As OpenAI's own encoder has it.
KARPATHY = "Hello!! I'm Andrej Karpathy. It's 2022. w00t :D 🤗"
KARPATHY_IDS = [15496, 3228, 314, 1101, 10948, 73, 509, 5117, 10036, 13, 632, 338, 33160, 13]
KARPATHY_IDS += [266, 405, 83, 1058, 35, 12520, 97, 245]
ENCODER_JSON_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"

CUTS = [
    *("the", "The", " quick", "fox's", "I'll", "WE'VE", "don't", "x'", "''s", "naïve", "Straße", "œuvre", "Ångström"),
    *("Привет", " мир", "你好", "世界。", "こんにちは", "שלום", "مرحبا", "नमस्ते", "สวัสดี", "🤗", "👩‍👩‍👧", "é", "ﬁ"),
    *("1", "2022", " 3.14159", "1,000,000", "½", "²", "IV", "٣", "def f(x):", "\treturn x**2", "==", "!=", "...", "--"),
    *("http://a.b/c?d=e&f", "{[()]}", "<|endoftext|", "|>", "\\n", '"', "`", "~", "#!", "@you", "$5", "%", "^", "_"),
    *(" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n ", "\u00a0", "\u3000", "\u200b", "\x00", "\x7f", "\ufeff"),
]


@lru_cache
def with_merges(merges: int) -> Tokenizer:
    return Tokenizer.gpt2(merges)


@pytest.fixture
def gpt2() -> Tokenizer:
    return with_merges(50_000)


@pytest.fixture
def small() -> Tokenizer:
    return with_merges(8_000)


each_size = pytest.mark.parametrize("merges", [50_000, 8_000])


def encoder_of(tok: Tokenizer) -> dict[str, int]:
    """OpenAI's encoder.json: every token in `transformers`' printable characters -> its id."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    printable = bytes_to_unicode()
    words = ("".join(printable[byte] for byte in tok.token_bytes(token)) for token in range(tok.vocab_size - 1))
    return {**{word: token for token, word in enumerate(words)}, END_OF_TEXT: tok.vocab_size - 1}


def peer_of(tok: Tokenizer, folder: Path) -> Any:
    """`transformers`' tokenizer from a vocab.json and the merges that this vocabulary has."""
    from transformers import GPT2Tokenizer

    lines = VOCAB_FILE.read_text(encoding="utf-8").split("\n")
    (folder / "vocab.json").write_text(json.dumps(encoder_of(tok)), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(lines[: tok.vocab_size - 256]) + "\n", encoding="utf-8")
    return GPT2Tokenizer.from_pretrained(folder)


def varied_strings(count: int) -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choices(CUTS, k=draw.randint(1, 12))) for _ in range(count)]


def test_ids_are_gpt2s(gpt2: Tokenizer) -> None:
    assert gpt2.encode(KARPATHY) == KARPATHY_IDS
    assert gpt2.decode(KARPATHY_IDS) == KARPATHY
    assert (gpt2.vocab_size, gpt2.eot) == (50257, 50256)


def test_the_vocabulary_is_openais_encoder_to_the_byte(gpt2: Tokenizer) -> None:
    assert hashlib.sha256(json.dumps(encoder_of(gpt2)).encode()).hexdigest() == ENCODER_JSON_SHA256


@pytest.mark.parametrize("merges", [50_000, 8_000, 100])
def test_varied_strings_get_the_ids_of_transformers(merges: int, tmp_path: Path) -> None:
    tok = Tokenizer.gpt2(merges)
    peer = peer_of(tok, tmp_path)
    strings = varied_strings(200)
    assert len(set(strings)) > 190
    for text in strings:
        assert tok.encode(text) == peer(text)["input_ids"], repr(text)
    assert tok.encode_batch(strings) == peer(strings)["input_ids"]


def test_fewer_merges_keep_gpt2s_ids_and_put_the_end_of_text_last(gpt2: Tokenizer, small: Tokenizer) -> None:
    assert (small.vocab_size, small.eot) == (8257, 8256)
    assert all(small.token_bytes(token) == gpt2.token_bytes(token) for token in range(8256))
    assert small.token_bytes(8256) == gpt2.token_bytes(50256) == END_OF_TEXT.encode()


def test_without_merges_every_byte_is_a_token() -> None:
    bare = Tokenizer.gpt2(merges=0)
    text = "naïve 🤗"
    assert bare.vocab_size == 257
    assert b"".join(map(bare.token_bytes, bare.encode(text))) == text.encode()
    assert len(bare.encode(text)) == len(text.encode())


@each_size
@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=st.text())
def test_any_text_comes_back(merges: int, text: str) -> None:
    tok = with_merges(merges)
    ids = tok.encode(text)
    assert tok.decode(ids) == text
    assert all(token < tok.eot for token in ids)


@each_size
def test_the_end_of_text_is_plain_text_unless_asked(merges: int) -> None:
    tok = with_merges(merges)
    text = f"one{END_OF_TEXT}two"
    assert tok.eot not in tok.encode(text)
    assert tok.encode(text, allow_special=True) == [*tok.encode("one"), tok.eot, *tok.encode("two")]
    assert tok.decode(tok.encode(text)) == tok.decode(tok.encode(text, allow_special=True)) == text
    assert tok.eot not in tok.encode_batch([text])[0]


def test_a_split_character_is_shown_as_unknown(gpt2: Tokenizer) -> None:
    assert gpt2.decode(gpt2.encode("🤗")[:1]) == "\ufffd"


@pytest.mark.parametrize("merges", [-1, 50_001])
def test_impossible_numbers_of_merges_are_refused(merges: int) -> None:
    with pytest.raises(ValueError, match="merges must be between 0 and 50,000, got"):
        Tokenizer.gpt2(merges)


@pytest.mark.parametrize(("vocab_size", "merges"), [(50257, 50_000), (8257, 8_000), (257, 0)])
def test_an_embedding_finds_its_tokenizer(vocab_size: int, merges: int) -> None:
    found = Tokenizer.for_vocab_size(vocab_size)
    assert found.vocab_size == vocab_size
    assert found.encode(KARPATHY) == Tokenizer.gpt2(merges).encode(KARPATHY)


@pytest.mark.parametrize("vocab_size", [256, 50258])
def test_an_embedding_of_another_size_has_no_tokenizer(vocab_size: int) -> None:
    with pytest.raises(ValueError, match=f"no GPT-2 vocabulary has {vocab_size:,} tokens"):
        Tokenizer.for_vocab_size(vocab_size)


@pytest.mark.parametrize("token", [-1, 8257, 50256])
def test_ids_outside_the_vocabulary_are_refused(small: Tokenizer, token: int) -> None:
    with pytest.raises(ValueError, match=f"token id {token} is outside this vocabulary of 8,257 tokens"):
        small.decode([5, token])


def test_an_altered_vocabulary_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(VOCAB_FILE.read_bytes())
    data[1000] ^= 1
    altered = tmp_path / "vocab.bpe"
    altered.write_bytes(data)
    monkeypatch.setattr(tokenizer, "VOCAB_FILE", altered)
    tokenizer._ranks.cache_clear()
    with pytest.raises(ValueError, match=r"vocab\.bpe is not GPT-2's vocabulary"):
        Tokenizer.gpt2()


def test_no_network_is_used(tmp_path: Path) -> None:
    program = f"""
import socket

def refuse(*_, **__):
    raise RuntimeError("the tokenizer asked for the network")

class Refusing(socket.socket):
    __init__ = refuse

socket.socket, socket.getaddrinfo = Refusing, refuse
from minipeft.tokenizer import Tokenizer
print(Tokenizer.gpt2().encode({KARPATHY!r}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TIKTOKEN_CACHE_DIR": str(tmp_path)},  # empty: nothing downloaded before helps
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == KARPATHY_IDS


def test_an_array_holds_the_ids_of_the_list(gpt2: Tokenizer, small: Tokenizer) -> None:
    for tok in (gpt2, small):
        for string in ("", *varied_strings(300)):
            found = tok.encode_to_array(string)
            assert (found.dtype, found.tolist()) == (np.uint32, tok.encode(string))


def test_the_fingerprint_tells_tokenizers_apart(gpt2: Tokenizer, small: Tokenizer) -> None:
    others = [gpt2, small, Tokenizer.gpt2(7_999), Tokenizer.gpt2(0)]
    assert len({tok.fingerprint() for tok in others}) == len(others)
    assert Tokenizer.gpt2(8_000).fingerprint() == small.fingerprint()
