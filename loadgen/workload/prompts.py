"""Prompts of a known token count, deterministic per seed: conversation text for chat, source code for code.

A prompt is composed of *units* (a sentence, a function) whose token counts were measured once on the server's own
tokenizer, and filled up with *fillers* (single words of one token each). Tokenizers split text before a space and after
a newline, so the counts of units add up; `loadgen.client.token_counts` verifies that on whole prompts before a
run relies on it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import shake_128
from itertools import product
from typing import Literal

PromptKind = Literal["chat", "code"]


def prompt_kind(workload: str) -> PromptKind:
    """Return "code" for a workload with "code" in its name, otherwise "chat"."""
    return "code" if "code" in workload.lower() else "chat"


_TOPICS = (
    "garden", "budget", "trip", "recipe", "contract", "server", "lesson", "kitchen", "engine", "report", "meeting",
    "story", "camera", "market", "school", "battery", "bridge", "novel", "team", "project", "painting", "bicycle",
    "weather", "library", "island", "coffee", "network", "hospital", "river", "museum", "planet", "orchestra",
)  # fmt: skip
_SENTENCES = (
    " Could you explain how the {} works and why people care about it?",
    " I have been thinking about the {} since last week, but I am not sure where to start.",
    " My friend told me that a {} like this one is hard to find, is that true?",
    " Please give me three ideas for the {}, and say which one you would choose.",
    " The {} was fine until this morning, then everything changed.",
    " What would you do if the {} took twice as long as planned?",
    " Let us go through the {} step by step, and keep each step short.",
    " In the end we want a {} that is simple, cheap and easy to look after.",
)
_NOUNS = (
    "item", "user", "order", "token", "node", "line", "path", "value", "event", "record", "frame", "batch",
    "query", "index", "cache", "state", "buffer", "window", "count", "table", "image", "point", "field", "group",
)  # fmt: skip
_FUNCTIONS = (
    "def load_{0}(path):\n    with open(path) as source:\n        return [make_{0}(row) for row in source]\n\n",
    "def find_{0}(rows, key):\n    for {0} in rows:\n        if {0}.key == key:\n            return {0}\n\n",
    "class {1}Store:\n    def __init__(self):\n        self.items = {{}}\n        self.size = 0\n\n",
    "def update_{0}(self, name, value):\n    if name in self:\n        raise KeyError\n    self[name] = value\n\n",
    "def count_{0}(rows):\n    total = 0\n    for row in rows:\n        total += row.{0}\n    return total\n\n",
    "async def send_{0}(client, data):\n    reply = await client.post('/{0}', json=data)\n    return reply.json()\n\n",
)
_WORDS = (
    "the", "of", "and", "to", "in", "is", "that", "for", "it", "as", "with", "on", "be", "at", "by", "this",
    "have", "from", "or", "one", "had", "not", "but", "what", "all", "were", "when", "we", "there", "can", "an",
    "your", "which", "their", "if", "do", "will", "each", "about", "how", "up", "out", "them", "then", "she",
    "many", "some", "so", "these", "would", "other", "into", "has", "more", "her", "two", "like", "him", "see",
    "time", "could", "no", "make", "than", "first", "been", "its", "who", "now", "people", "my", "made", "over",
    "did", "down", "only", "way", "find", "use", "may", "water", "long", "little", "very", "after", "words",
    "called", "just", "where", "most", "know",
)  # fmt: skip

UNITS: dict[PromptKind, tuple[str, ...]] = {
    "chat": tuple(sentence.format(topic) for sentence, topic in product(_SENTENCES, _TOPICS)),
    "code": tuple(function.format(noun, noun.title()) for function, noun in product(_FUNCTIONS, _NOUNS)),
}
"""Text that can follow any other unit of its kind. Chat units open with a space, code units close with a newline."""

FILLERS: dict[PromptKind, tuple[str, ...]] = {kind: tuple(f" {word}" for word in _WORDS) for kind in UNITS}
"""Candidates for words of exactly one token; `measure_vocabulary` keeps those that are."""

_OPENING: dict[PromptKind, str] = {"chat": "About", "code": "#"}
_OPENING_END: dict[PromptKind, str] = {"chat": ".\n", "code": "\n"}
_FILLER_LEAD: dict[PromptKind, str] = {"chat": "", "code": "#"}
"""Fillers close a code prompt as a comment."""

_OPENERS = 16
"""Fillers that are tried as first words, without their space."""

BLOCK_TOKENS = 512
"""Tokens of one prefix id where a trace does not say: the block size of Mooncake's, from which hash_ids comes."""

UNIQUE_WORDS = 10
"""Words drawn at the very start of a prompt: about 65 bits, so that no two prompts share a cacheable first block."""

KEPT_TOKENS = 2**21
"""Tokens of blocks that are kept, the ones that were used last: about 16 MB."""

_FIRST_BYTES = 168
"""Bytes that SHAKE-128 produces at once."""


class Draws:
    """Stream of bytes that depends on `key` alone, in whatever portions it is taken.

    There is one for every request, and a random.Random takes longer to seed than a short prompt does to generate.
    """

    def __init__(self, key: str) -> None:
        self._shake = shake_128(key.encode())
        self._bytes = self._shake.digest(_FIRST_BYTES)
        self._position = 0

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        begin, self._position = self._position, self._position + count
        if self._position > len(self._bytes):
            self._bytes = self._shake.digest(max(self._position, 4 * len(self._bytes)))
        return self._bytes[begin : self._position]


def _join_words(words: Sequence[str], data: bytes) -> str:
    """Return the word of each byte, so that a longer text begins as a shorter one does."""
    return "".join(map(words.__getitem__, data))


@lru_cache(maxsize=8)
def _kept_blocks(words: tuple[str, ...], tokens: int) -> Callable[[int, int], str]:
    """Return a function from (seed, id) to the text of a block, which keeps what it made: a turn of a session repeats
    nearly all blocks of the turn before."""

    @lru_cache(maxsize=max(1, KEPT_TOKENS // tokens))
    def block(seed: int, block_id: int) -> str:
        return _join_words(words, Draws(f"block {seed} {block_id}").take(tokens))

    return block


@dataclass(frozen=True)
class Vocabulary:
    """Units and fillers of one kind, with their token counts on the tokenizer in use.

    `exact` is true if the counts were measured on it, false if they are estimated from a probe's tokens per character.
    `overhead` is the number of tokens that the chat template and special tokens add to every prompt.
    """

    kind: PromptKind
    units: tuple[str, ...]
    unit_tokens: tuple[float, ...]
    fillers: tuple[str, ...]
    openers: tuple[str, ...]
    """Words of one token at the start of a text, where fillers would have a space before them."""
    lead_tokens: float
    opening_tokens: float
    overhead: float
    exact: bool

    @property
    def common_tokens(self) -> float:
        """Tokens with which every prompt begins: at most those of the template and of the opening words."""
        return self.overhead + self.opening_tokens

    def prompt(
        self,
        tokens: int,
        draws: Draws,
        prefix_ids: Sequence[int] = (),
        seed: int = 0,
        text_id: int | None = None,
        text_tokens: int = 0,
        block_tokens: int = BLOCK_TOKENS,
    ) -> str:
        """Generate text of `tokens` tokens, template included. The shortest prompt is one filler word.

        Its first `text_tokens` tokens are the beginning of text (seed, text_id). Each of `prefix_ids` is the text of
        the next `block_tokens` tokens, the same wherever (seed, id) is the same; so two prompts share as long a prefix
        as their ids do. The remainder comes from `draws` and is unique.
        """
        remaining: float = tokens - self.overhead
        blocks: list[str] = []
        if text_id is not None and (size := round(min(text_tokens, remaining))) >= 1:
            blocks.append(self._words(size, Draws(f"text {seed} {text_id}")))
            remaining -= size
        if prefix_ids and remaining >= 1:
            whole = min(len(prefix_ids), int(remaining // block_tokens))
            block = _kept_blocks(self._word_of_byte, block_tokens)
            blocks += [block(seed, block_id) for block_id in prefix_ids[:whole]]
            remaining -= whole * block_tokens
            if whole < len(prefix_ids):
                draws = Draws(f"block {seed} {prefix_ids[whole]}")
        if blocks:
            # Only words, in blocks and after them: one token each wherever they stand, so that every border is exact.
            return self._opened("".join([*blocks, self._words(round(remaining), draws)]))
        if remaining - self.lead_tokens < self.opening_tokens + UNIQUE_WORDS + 1 or prefix_ids:
            return self._opened(self._words(max(1, round(remaining)), draws))
        opening = [_OPENING[self.kind], self._words(UNIQUE_WORDS, draws), _OPENING_END[self.kind]]
        remaining -= self.lead_tokens + self.opening_tokens + UNIQUE_WORDS
        units: list[str] = []
        for pick in draws.take(int(remaining / self._fewest_unit_tokens) + 1):
            unit = pick * len(self.units) >> 8
            if self.unit_tokens[unit] > remaining:
                break
            units.append(self.units[unit])
            remaining -= self.unit_tokens[unit]
        return "".join([*opening, *units, _FILLER_LEAD[self.kind], self._words(round(remaining), draws)])

    @cached_property
    def _fewest_unit_tokens(self) -> float:
        return min(self.unit_tokens)

    def _words(self, count: int, draws: Draws) -> str:
        return _join_words(self._word_of_byte, draws.take(count))

    def _opened(self, words: str) -> str:
        """Return words as the start of a text, where servers remove a space: the first becomes one of `openers`."""
        end = words.find(" ", 1)
        return self._opener_of[words[:end]] + words[end:] if end > 0 else self._opener_of[words]

    @cached_property
    def _opener_of(self) -> dict[str, str]:
        return {word: self.openers[i % len(self.openers)] for i, word in enumerate(self.fillers)}

    @cached_property
    def _word_of_byte(self) -> tuple[str, ...]:
        return tuple(self.fillers[byte * len(self.fillers) >> 8] for byte in range(256))


@dataclass(frozen=True)
class _Texts:
    """Texts whose token counts differ by the tokens of a part in its place: between text, where tokenizers cut."""

    kind: PromptKind

    @property
    def preceding(self) -> str:
        return UNITS[self.kind][0]

    @property
    def following(self) -> str:
        return UNITS[self.kind][1]

    @property
    def ending(self) -> str:
        return self.preceding + _FILLER_LEAD[self.kind] + FILLERS[self.kind][0]

    @property
    def opened(self) -> str:
        return (
            _OPENING[self.kind]
            + FILLERS[self.kind][0] * UNIQUE_WORDS
            + _OPENING_END[self.kind]
            + self.preceding
            + self.following
        )


def texts_to_count(kind: PromptKind) -> list[str]:
    """Return every text whose count `measure_vocabulary` needs."""
    texts = _Texts(kind)
    units = [texts.preceding + unit + texts.following for unit in UNITS[kind]]
    fillers = [texts.ending + word for word in FILLERS[kind]]
    openers = [word.lstrip() for word in FILLERS[kind][:_OPENERS]]
    return [
        *(texts.following, texts.preceding + texts.following, texts.ending, texts.opened),
        *units,
        *fillers,
        *openers,
    ]


def measure_vocabulary(kind: PromptKind, counts: Mapping[str, int], overhead: float) -> Vocabulary:
    """Build a vocabulary from the server's own tokenizer.

    `counts` has the tokens of every text of `texts_to_count`, without a template.
    """
    texts = _Texts(kind)
    surrounding_tokens = counts[texts.preceding + texts.following]
    singles = tuple(word for word in FILLERS[kind] if counts[texts.ending + word] - counts[texts.ending] == 1)
    openers = tuple(word.lstrip() for word in FILLERS[kind][:_OPENERS])
    return Vocabulary(
        kind=kind,
        units=UNITS[kind],
        unit_tokens=tuple(
            counts[texts.preceding + unit + texts.following] - surrounding_tokens for unit in UNITS[kind]
        ),
        fillers=singles or FILLERS[kind],
        openers=tuple(word for word in openers if counts[word] == 1) or openers,
        lead_tokens=counts[texts.ending] - (surrounding_tokens - counts[texts.following]) - 1,
        opening_tokens=counts[texts.opened] - surrounding_tokens - UNIQUE_WORDS,
        overhead=overhead,
        exact=bool(singles),
    )


def estimate_vocabulary(kind: PromptKind, tokens_per_char: float, overhead: float) -> Vocabulary:
    """Build a vocabulary for a server that reports only the length of one probe.

    Common words are one token in nearly every tokenizer.
    """
    return Vocabulary(
        kind=kind,
        units=UNITS[kind],
        unit_tokens=tuple(len(unit) * tokens_per_char for unit in UNITS[kind]),
        fillers=FILLERS[kind],
        openers=tuple(word.lstrip() for word in FILLERS[kind]),
        lead_tokens=1.0 if _FILLER_LEAD[kind] else 0.0,
        opening_tokens=2.0,
        overhead=overhead,
        exact=False,
    )


def probe_text(kind: PromptKind) -> str:
    """Return a text of about 700 tokens whose length on the server gives `tokens_per_char`."""
    return "".join(UNITS[kind][::6])


def draws_of(seed: int, index: int) -> Draws:
    """Return the draws of request `index`: its prompt does not depend on the number or order of other requests."""
    return Draws(f"request {seed} {index}")
