"""The simulated tokenizer at the edges of its rule."""

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
    assert len(block_hashes(list(range(tokens)))) == blocks


def test_a_hash_covers_every_token_up_to_the_end_of_its_block() -> None:
    ids = list(range(48))
    assert block_hashes(ids)[0] == block_hashes([*ids[:16], *[9] * 32])[0]
    changed = block_hashes([9, *ids[1:]])
    assert all(one != other for one, other in zip(block_hashes(ids), changed, strict=True))
