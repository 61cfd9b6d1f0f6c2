"""The simulated tokenizer at the edges of its rule."""

from array import array
from itertools import accumulate

import pytest

from loadgen.simulator.tokens import block_hashes, chat_tokens, tokenize

PIECES = [
    ("nothing", "", 0),
    ("eight letters are one token", "abcdefgh", 1),
    ("nine letters are two", "abcdefghi", 2),
    ("a space belongs to the word after it", " abcdefgh", 1),
    ("an underscore belongs to the word after it", "_abcdefgh", 1),
    ("three digits are one token", "123", 1),
    ("four digits are two", "1234", 2),
    ("a space does not belong to a number", " 123", 2),
    ("four punctuation marks are one token", "....", 1),
    ("five are two", ".....", 2),
    ("a space belongs to the punctuation after it", " ....", 1),
    ("an underscore alone is a token", "_", 1),
    ("sixteen white-space characters are one token", " " * 16, 1),
    ("seventeen are two", " " * 17, 2),
]


@pytest.mark.parametrize(("rule", "text", "tokens"), PIECES, ids=[row[0] for row in PIECES])
def test_tokens_of_a_text(rule: str, text: str, tokens: int) -> None:
    assert len(tokenize(text)) == tokens


def test_a_chat_has_three_template_tokens_and_the_role_around_each_message() -> None:
    messages = [("user", "hi"), ("user", "hi")]
    assert len(chat_tokens(messages, add_generation_prompt=False)) == 2 * (3 + 1 + 1)
    assert len(chat_tokens(messages)) == 10 + 2 + len(tokenize("assistant"))
    assert chat_tokens(messages)[:10] == chat_tokens(messages, add_generation_prompt=False)


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (15, 0), (16, 1), (17, 1), (31, 1), (32, 2)])
def test_only_full_blocks_have_a_hash(tokens: int, blocks: int) -> None:
    assert len(block_hashes(array("I", range(tokens)))) == blocks


def test_a_hash_covers_every_token_up_to_the_end_of_its_block() -> None:
    ids = array("I", range(48))
    assert block_hashes(ids)[0] == block_hashes(ids[:16] + array("I", [9] * 32))[0]
    changed = block_hashes(array("I", [9]) + ids[1:])
    assert all(one != other for one, other in zip(block_hashes(ids), changed, strict=True))


TEXTS = [
    ("words", "one two, three; " * 2000),
    ("code with long indents", "def f(x):\n" + " " * 40 + "return x\n\n\n" + "\t  \n  y = 1\n" * 900),
    ("no spaces at all", "x1_" * 9000),
    ("only spaces", " " * 20_000),
    ("several scripts", "na\u00efve \u6f22\u5b57 \U0001f600 \u00bd\u00a0 " * 1500),
]


@pytest.mark.parametrize(("kind", "text"), TEXTS, ids=[row[0] for row in TEXTS])
def test_a_long_text_has_the_tokens_of_its_pieces(kind: str, text: str) -> None:
    """Wherever a text is cut before a space that follows something else, the tokens of the parts are those of it."""
    cuts = [i for i in range(1, len(text)) if text[i] == " " and not text[i - 1].isspace()][:: len(text) // 700 + 1]
    parts = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert len(text) > 8192 and "".join(parts) == text
    expected = list(accumulate((tokenize(part) for part in parts), lambda ids, more: ids + more))[-1]
    assert tokenize(text) == expected
    assert tokenize(text) == tokenize(text), "what is kept is what was read"
