"""A run starts only against a server whose model, fields and token counts are settled."""

from collections.abc import Callable
from typing import Any

import pytest

from loadgen.client.token_counts import PROBE_TOKENS
from loadgen.errors import LoadgenError
from loadgen.workload.prompts import estimate_vocabulary, probe_text
from loadgen.workload.schedule import ScheduledRequest
from support.fake_api import CHARS_PER_TOKEN, TEMPLATE_TOKENS, FakeServer, probed, refusal

pytestmark = pytest.mark.usefixtures("no_pauses")


def test_a_check_that_fails_comes_before_tokens_are_counted() -> None:
    fake = FakeServer()
    too_long = [ScheduledRequest(index=0, offset_ns=0, workload="chat", input_tokens=100, output_tokens=29)]
    with pytest.raises(LoadgenError, match=r"request 0 needs 100 \+ 29 tokens, but m takes 128"):
        probed(fake, check=lambda server: server.check_fits(too_long))
    assert len(fake.bodies) == 1, "the dialect's"


@pytest.mark.parametrize("shape", ["vllm", "llamacpp"])
def test_with_a_tokenizer_on_the_server_the_overhead_is_what_it_counts_beyond_the_prompt(shape: str) -> None:
    fake = FakeServer()
    shapes: dict[str, Callable[[dict[str, Any]], Any]] = {
        "vllm": lambda body: {"count": fake.count(body["prompt"])},
        "llamacpp": lambda body: {"tokens": list(range(fake.count(body["content"])))},
    }
    fake.tokenize = shapes[shape]
    result = probed(fake)
    assert result.lengths_from == "/tokenize"
    prompt_tokens = fake.count(fake.bodies[-1]["messages"][0]["content"])
    assert result.vocabularies["chat"].overhead == prompt_tokens + TEMPLATE_TOKENS - PROBE_TOKENS


@pytest.mark.parametrize("answer", [{"count": 0}, {"tokens": []}, {}, {"count": None}])
def test_a_tokenizer_that_does_not_count_is_not_used(answer: Any) -> None:
    fake = FakeServer()
    fake.tokenize = lambda body: answer
    assert probed(fake).lengths_from == "probe"


def test_without_a_tokenizer_two_probes_give_overhead_and_tokens_per_character() -> None:
    result = probed(FakeServer())
    vocabulary, text = result.vocabularies["chat"], probe_text("chat")
    assert result.lengths_from == "probe"
    assert vocabulary.overhead == TEMPLATE_TOKENS
    assert vocabulary == estimate_vocabulary(
        "chat", (len(text) // CHARS_PER_TOKEN - 1) / (len(text) - 3), TEMPLATE_TOKENS
    )


def test_without_usage_a_token_is_four_characters() -> None:
    fake = FakeServer()
    fake.has_usage = False
    vocabulary = probed(fake).vocabularies["chat"]
    assert vocabulary == estimate_vocabulary("chat", 0.25, 0)


@pytest.mark.parametrize("reported", [0, 20])
def test_a_count_that_is_the_same_for_every_prompt_is_none(reported: int) -> None:
    fake = FakeServer()
    fake.reports = reported
    assert probed(fake).vocabularies["chat"] == estimate_vocabulary("chat", 0.25, 0)
    fake.tokenize = lambda body: {"count": fake.count(body["prompt"])}
    assert probed(fake).vocabularies["chat"].overhead == 0


def test_a_server_that_fails_while_tokens_are_counted_is_an_error() -> None:
    fake = FakeServer()
    fake.refuses = lambda body: refusal(500) if len(fake.bodies) > 1 else None
    with pytest.raises(LoadgenError, match=r"failed a one-token request to /chat/completions \(http: 500"):
        probed(fake)


@pytest.mark.parametrize(
    ("specials", "counted"), [(1, True), (2, True), (None, False)], ids=["one", "two", "an empty text is refused"]
)
def test_special_tokens_that_a_server_always_adds_are_not_the_prompts(specials: int | None, counted: bool) -> None:
    def tokenize(body: dict[str, Any]) -> Any:
        if not body["inputs"]:
            return {"error": "empty"} if specials is None else [{"id": 0}] * specials
        return [{"id": i} for i in range(len(body["inputs"].split(" ")) + (specials or 1))]

    fake = FakeServer(tokenize=tokenize)
    result = probed(fake)
    assert result.lengths_from == ("/tokenize" if counted else "probe")
    if counted:
        prompt = fake.bodies[-1]["messages"][0]["content"]
        assert result.vocabularies["chat"].overhead == fake.count(prompt) + TEMPLATE_TOKENS - PROBE_TOKENS


@pytest.mark.parametrize("base", ["/v1", "/openai/v1", "/api"])
def test_where_no_models_are_listed_the_request_itself_finds_the_api_below_v1(base: str) -> None:
    fake, lines = FakeServer(base=base, models=(404, {})), []
    server = probed(fake, base.removesuffix("/v1"), model="m", say=lines.append).server
    assert server.base_url.endswith(base)
    assert len(lines) == (1 if base.endswith("/v1") else 0)


def test_every_probe_has_a_request_id_of_its_own() -> None:
    fake = FakeServer()
    for _ in range(2):
        probed(fake)
    ids = [fields["X-Request-Id"] for line, fields in fake.seen if line.startswith("POST /v1")]
    assert len(ids) == len(set(ids)) == 6
    assert all(request_id.startswith("loadgen-probe-") for request_id in ids)


@pytest.mark.parametrize(
    "path", ["/openai/deployments/d", "/openai/deployments/d/", "/openai/deployments/d/chat/completions"]
)
def test_a_query_in_the_url_is_part_of_every_request_and_of_nothing_that_is_written(path: str) -> None:
    fake = FakeServer(base="/openai/deployments/d", models=(404, {}), tokenize=lambda body: {})
    server = probed(fake, path + "?api-version=2024-10-21", model="m", headers={"api-key": "k-123"}).server
    assert all(line.endswith("?api-version=2024-10-21") for line, _ in fake.seen)
    assert "POST /openai/deployments/d/chat/completions?api-version=2024-10-21" in {line for line, _ in fake.seen}
    assert "api-version" not in repr(server)
