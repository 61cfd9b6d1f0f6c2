"""The simulated tokenizer, which is a rule and not a vocabulary, and the words of the simulated answers.

A token is the first of these that matches, as long as it can be, left to right: up to eight letters, with one space or
underscore before them; up to three digits; up to four punctuation marks, with one space before them; one underscore; up
to sixteen white-space characters. Every string has exactly one reading; English prose and source code come to 3.5 to 4
characters a token.
"""

import re
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from zlib import crc32

from loadgen.simulator.engine import KV_BLOCK_TOKENS

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


def tokenize(text: str) -> list[int]:
    """Return token ids: a checksum of each piece. Never fails; every character is in exactly one token."""
    return [crc32(piece.encode("utf-8", "surrogatepass")) % _VOCABULARY for piece in _PIECE.findall(text)]


def chat_tokens(messages: Iterable[tuple[str, str]], add_generation_prompt: bool = True) -> list[int]:
    """Apply the simulated chat template to (role, content) pairs: three tokens and the role's around each message."""
    ids: list[int] = []
    for role, content in messages:
        ids += [_START, *tokenize(role), _END_OF_HEADER, *tokenize(content), _END_OF_MESSAGE]
    return [*ids, _START, *tokenize("assistant"), _END_OF_HEADER] if add_generation_prompt else ids


def answer_words(seed: int) -> Iterator[str]:
    """Yield an endless answer word by word. Any n words from the start, joined, are n tokens."""
    index, stride = seed % len(WORDS), 1 + 2 * (seed // len(WORDS) % 16)
    yield WORDS[index].capitalize()
    while True:
        index = (index + stride) % len(WORDS)
        yield " " + WORDS[index]


def block_hashes(ids: list[int]) -> tuple[bytes, ...]:
    """Return one hash per full block of the prompt, of all tokens up to its end: equal hashes mean equal prefixes."""
    hashes: list[bytes] = []
    parent = b""
    for end in range(KV_BLOCK_TOKENS, len(ids) + 1, KV_BLOCK_TOKENS):
        parent = blake2b(parent + repr(ids[end - KV_BLOCK_TOKENS : end]).encode(), digest_size=16).digest()
        hashes.append(parent)
    return tuple(hashes)
