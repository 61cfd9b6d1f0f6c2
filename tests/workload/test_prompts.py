"""A prompt has the requested number of tokens, on a tokenizer that merges as real ones do; and no two start alike."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from loadgen.workload import prompts as prompts_module
from loadgen.workload.prompts import (
    FILLERS,
    UNITS,
    PromptKind,
    Vocabulary,
    draws_of,
    estimate_vocabulary,
    measure_vocabulary,
    prompt_kind,
    texts_to_count,
)

KINDS: tuple[PromptKind, ...] = ("chat", "code")


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Byte-level BPE trained on this project's own text: merges letters, splits before spaces, as GPT-like ones do."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=3000, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    root = Path(__file__).parents[2]
    bpe.train_from_iterator([path.read_text() for path in sorted(root.glob("loadgen/**/*.py"))[:60]], trainer)
    return bpe


def count(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False).ids)


def measured(tokenizer: Tokenizer, kind: PromptKind, overhead: float = 0) -> Vocabulary:
    return measure_vocabulary(kind, {text: count(tokenizer, text) for text in texts_to_count(kind)}, overhead)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [30, 31, 32, 57, 100, 1000, 4083])
def test_prompts_have_exactly_the_requested_tokens(tokenizer: Tokenizer, kind: PromptKind, tokens: int) -> None:
    vocabulary = measured(tokenizer, kind)
    assert vocabulary.exact
    for index in range(20):
        assert count(tokenizer, vocabulary.prompt(tokens, draws_of(1, index))) == tokens


@pytest.mark.parametrize("kind", KINDS)
def test_the_template_is_part_of_the_requested_tokens(tokenizer: Tokenizer, kind: PromptKind) -> None:
    assert count(tokenizer, measured(tokenizer, kind, overhead=11).prompt(500, draws_of(0, 0))) == 489


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [1, 2, 5, 12])
def test_short_prompts_are_plain_words(tokenizer: Tokenizer, kind: PromptKind, tokens: int) -> None:
    prompt = measured(tokenizer, kind).prompt(tokens, draws_of(0, 0))
    assert len(prompt.split()) == tokens


def test_a_prompt_shorter_than_the_template_is_one_word(tokenizer: Tokenizer) -> None:
    assert len(measured(tokenizer, "chat", overhead=20).prompt(5, draws_of(0, 0)).split()) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_prompt_and_no_two_open_alike(tokenizer: Tokenizer, kind: PromptKind) -> None:
    vocabulary = measured(tokenizer, kind)
    prompts = [vocabulary.prompt(200, draws_of(3, index)) for index in range(300)]
    assert prompts == [vocabulary.prompt(200, draws_of(3, index)) for index in range(300)]
    assert prompts[0] != vocabulary.prompt(200, draws_of(4, 0))
    firsts = {tuple(tokenizer.encode(prompt).ids[:12]) for prompt in prompts}
    assert len(firsts) == 300, "a prefix cache with blocks of 16 tokens must find nothing in common"


def test_chat_reads_as_talk_and_code_as_code(tokenizer: Tokenizer) -> None:
    chat = measured(tokenizer, "chat").prompt(400, draws_of(0, 0))
    code = measured(tokenizer, "code").prompt(400, draws_of(0, 0))
    assert chat.count("?") + chat.count(".") >= 5
    assert "def " not in chat
    compile(code, "prompt", "exec")


def test_estimates_are_close_when_the_ratio_is(tokenizer: Tokenizer) -> None:
    text = "".join(UNITS["chat"])
    vocabulary = estimate_vocabulary("chat", count(tokenizer, text) / len(text), overhead=0)
    assert not vocabulary.exact
    lengths = [count(tokenizer, vocabulary.prompt(1000, draws_of(0, i))) for i in range(50)]
    assert np.mean(lengths) == pytest.approx(1000, rel=0.05)


def test_a_tokenizer_without_single_token_words_says_it_is_not_exact() -> None:
    letters = {text: len(text) for text in texts_to_count("chat")}
    vocabulary = measure_vocabulary("chat", letters, overhead=0)
    assert not vocabulary.exact
    assert vocabulary.fillers == FILLERS["chat"]


@pytest.mark.parametrize(
    ("workload", "kind"), [("code", "code"), ("Code-completion", "code"), ("chat", "chat"), ("x", "chat")]
)
def test_kind_of(workload: str, kind: PromptKind) -> None:
    assert prompt_kind(workload) == kind


def shared(a: str, b: str) -> int:
    """Characters from the start on that two texts have in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_share_as_many_blocks_as_their_ids_do(tokenizer: Tokenizer, kind: PromptKind) -> None:
    vocabulary = measured(tokenizer, kind)

    def make(tokens: int, index: int, *ids: int) -> str:
        return vocabulary.prompt(tokens, draws_of(1, index), ids, 1)

    for tokens, ids in ((1300, (7, 8)), (1024, (7, 8)), (1300, (7, 8, 9)), (600, (-3,)), (100, (7, 8)), (1, (7,))):
        assert count(tokenizer, make(tokens, 0, *ids)) == tokens
    block, two_blocks = make(512, 0, 7), make(1024, 0, 7, 8)
    assert make(1300, 1, 7, 8)[: len(two_blocks)] == make(1300, 2, 7, 8)[: len(two_blocks)] == two_blocks
    assert shared(make(1300, 1, 7, 8), make(1300, 2, 7, 8)) < len(two_blocks) + 40, "the rest is unique"
    assert len(block) <= shared(make(1300, 1, 7, 8), make(1300, 1, 7, 9)) < len(block) + 40
    assert make(1300, 1, 7, 8, 9) == make(1300, 2, 7, 8, 9), "ids that cover the prompt say all of it"
    assert block.startswith(make(100, 1, 7, 8)), "and so they do where they cover more than it"


def test_servers_that_remove_the_space_of_the_first_word_count_the_same(tokenizer: Tokenizer) -> None:
    """The first word is chosen for that: a word may be one token behind a space, and several without it."""
    counts = {text: count(tokenizer, text) for text in texts_to_count("chat")}
    vocabulary = measure_vocabulary("chat", counts, overhead=0)
    assert all(count(tokenizer, word) == 1 for word in vocabulary.openers)
    for index in range(200):
        prompt = vocabulary.prompt(40, draws_of(1, index), (index,), 1, block_tokens=64)
        assert prompt == prompt.strip() and count(tokenizer, prompt) == 40


@pytest.mark.parametrize("block_tokens", [16, 64, 512])
def test_a_prompt_of_150_000_tokens_has_its_blocks_whatever_was_made_before(
    monkeypatch: pytest.MonkeyPatch, block_tokens: int
) -> None:
    """A session that grows, one that was compacted, and again, with less room for blocks than one prompt has."""
    vocabulary = estimate_vocabulary("chat", 0.25, overhead=7)
    blocks = 150_000 // block_tokens
    turns = [range(blocks // 2), range(blocks), [0, *range(blocks + 1, blocks + 9)], range(blocks)]

    lengths = [min(150_000, len(ids) * block_tokens + 20) for ids in turns]

    def prompts() -> list[str]:
        return [
            vocabulary.prompt(tokens, draws_of(1, i), tuple(ids), 1, block_tokens=block_tokens)
            for i, (tokens, ids) in enumerate(zip(lengths, turns, strict=True))
        ]

    kept = prompts()
    words = [prompt.split() for prompt in kept]
    assert [len(each) + 7 for each in words] == lengths
    for one, other, common in ((0, 1, blocks // 2), (1, 2, 1)):
        end = common * block_tokens
        assert words[one][:end] == words[other][:end]
        assert words[one][end : end + 12] != words[other][end : end + 12]
    assert words[1][: (blocks - 1) * block_tokens] == words[3][: (blocks - 1) * block_tokens]
    prompts_module._kept_blocks.cache_clear()
    monkeypatch.setattr(prompts_module, "KEPT_TOKENS", 3 * block_tokens)
    assert prompts() == kept
    prompts_module._kept_blocks.cache_clear()


def test_what_is_kept_does_not_grow_with_the_number_of_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts_module._kept_blocks.cache_clear()
    monkeypatch.setattr(prompts_module, "KEPT_TOKENS", 6400)
    vocabulary = estimate_vocabulary("chat", 0.25, overhead=0)
    for index in range(50):
        vocabulary.prompt(640, draws_of(1, index), tuple(range(10 * index, 10 * index + 10)), 1, block_tokens=64)
    info = prompts_module._kept_blocks(vocabulary._word_of_byte, 64).cache_info()
    assert (info.currsize, info.misses) == (100, 500)
    prompts_module._kept_blocks.cache_clear()
