"""The simulated tokenizer, which is a rule and not a vocabulary, and the words of the simulated answers.

A token is the first of these that matches, as long as it can be, left to right: up to eight letters, with one space or
underscore before them; up to three digits; up to four punctuation marks, with one space before them; one underscore; up
to sixteen white-space characters. Every string has exactly one reading; English prose and source code come to 3.5 to 4
characters a token.
"""

import re
from array import array
from collections.abc import Iterable, Iterator
from functools import lru_cache
from hashlib import blake2b
from typing import TypeAlias
from zlib import crc32

from loadgen.simulator.kv_cache import KV_BLOCK_TOKENS

_PIECE = re.compile(r"[ _]?[^\W\d_]{1,8}|\d{1,3}| ?[^\w\s]{1,4}|_|\s{1,16}")
_VOCABULARY = 128_000
_START, _END_OF_HEADER, _END_OF_MESSAGE = _VOCABULARY, _VOCABULARY + 1, _VOCABULARY + 2

_TEXT = """
the of and to in is that it for on with as are this be by from at or an was not have has but they which one all
can more when there use each how their will other about many then them these some her would make like him into
time look two write go see number no way could people than first water been call who now find long down day did get
"""

WORDS = tuple(_TEXT.split())
"""Words that are one token each, with or without a space before it."""


TokenIds: TypeAlias = "array[int]"
"""Unsigned integers of 32 bits."""

_border = re.compile(r"(?<=\S) ").search
"""Finds a place where a token ends whatever else stands around it."""
_CHUNK_CHARACTERS = 4096
_CHUNKS = 4096
"""Chunks of prompts that are kept with their ids: about 35 MB, for 3.7 million tokens."""


@lru_cache(maxsize=65536)
def _token(piece: str) -> int:
    return crc32(piece.encode("utf-8", "surrogatepass")) % _VOCABULARY


def _tokens(text: str) -> bytes:
    return array("I", map(_token, _PIECE.findall(text))).tobytes()


_kept_tokens = lru_cache(maxsize=_CHUNKS)(_tokens)


def tokenize(text: str) -> TokenIds:
    """Return token ids: a checksum of each piece. Never fails; every character is in exactly one token.

    The prompts of a session begin with the same text, so a text is read in chunks whose ids are kept. They end where a
    token does in any case, and their borders depend on the text before them alone.
    """
    ids = array("I")
    begin = 0
    while border := _border(text, begin + _CHUNK_CHARACTERS):
        end = border.start()
        chunk = text[begin:end]
        ids.frombytes(_kept_tokens(chunk) if len(chunk) < 2 * _CHUNK_CHARACTERS else _tokens(chunk))
        begin = end
    ids.frombytes(_tokens(text[begin:]))
    return ids


def chat_tokens(messages: Iterable[tuple[str, str]], add_generation_prompt: bool = True) -> TokenIds:
    """Apply the simulated chat template to (role, content) pairs: three tokens and the role's around each message."""
    ids = array("I")
    for role, content in messages:
        ids += array("I", (_START, *tokenize(role), _END_OF_HEADER))
        ids += tokenize(content)
        ids.append(_END_OF_MESSAGE)
    if add_generation_prompt:
        ids += array("I", (_START, *tokenize("assistant"), _END_OF_HEADER))
    return ids


def answer_words(seed: int) -> Iterator[str]:
    """Yield an endless answer word by word. Any n words from the start, joined, are n tokens."""
    index, stride = seed % len(WORDS), 1 + 2 * (seed // len(WORDS) % 16)
    yield WORDS[index].capitalize()
    while True:
        index = (index + stride) % len(WORDS)
        yield " " + WORDS[index]


def answer_tokens(seed: int, tokens: int) -> TokenIds:
    """Return the token ids of the first `tokens` words of an answer."""
    index, stride = seed % len(WORDS), 1 + 2 * (seed // len(WORDS) % 16)
    ids = array("I", (_token(f" {word}") for word in WORDS))
    answer = array("I", (ids[(index + stride * i) % len(WORDS)] for i in range(tokens)))
    answer[0] = _token(WORDS[index].capitalize())
    return answer


def block_hashes(ids: TokenIds) -> tuple[bytes, ...]:
    """Return one hash per full block of the tokens, of all of them up to its end: equal hashes mean equal prefixes."""
    data, step = ids.tobytes(), KV_BLOCK_TOKENS * ids.itemsize
    hashes: list[bytes] = []
    parent = b""
    for begin in range(0, len(data) - step + 1, step):
        parent = blake2b(parent + data[begin : begin + step], digest_size=16).digest()
        hashes.append(parent)
    return tuple(hashes)
