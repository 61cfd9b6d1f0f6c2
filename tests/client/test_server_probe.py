"""A run starts only against a server whose model, extensions and token counts are settled."""

import asyncio
import json
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from loadgen.client.client import Client
from loadgen.client.server_probe import DIALECTS, ServerInfo, ServerProbe, probe
from loadgen.client.token_counts import PROBE_TOKENS
from loadgen.errors import LoadgenError
from loadgen.workload.prompts import estimate_vocabulary, probe_text
from loadgen.workload.schedule import ScheduledRequest

TEMPLATE_TOKENS = 5
CHARS_PER_TOKEN = 4


class FakeServer:
    """Answers like an OpenAI-compatible server; its fields say how. `bodies` holds each completion's request."""

    def __init__(self) -> None:
        self.models: tuple[int, Any] = (200, {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 128}]})
        self.tokenize: Callable[[str], Any] | None = None
        self.refuses: Callable[[dict[str, Any]], int | None] = lambda body: None
        self.has_usage = True
        self.bodies: list[dict[str, Any]] = []

    def completion(self, body: dict[str, Any]) -> tuple[int, bytes]:
        self.bodies.append(body)
        if status := self.refuses(body):
            return status, b'{"error":{"message":"not accepted"}}'
        prompt = body["messages"][0]["content"]
        events: list[Any] = [{"choices": [{"delta": {"content": "a"}, "finish_reason": "length"}]}]
        if self.has_usage:
            usage = {"prompt_tokens": TEMPLATE_TOKENS + self.count(prompt), "completion_tokens": 1}
            events.append({"choices": [], "usage": usage})
        return 200, b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events)

    def count(self, text: str) -> int:
        if self.tokenize:
            return len(text.split(" "))
        return 1 if text == "the" else len(text) // CHARS_PER_TOKEN


@contextmanager
def serving(fake: FakeServer) -> Any:
    class Handler(BaseHTTPRequestHandler):
        def reply(self, status: int, content: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            status, page = fake.models if self.path == "/v1/models" else (404, {})
            self.reply(status, page if isinstance(page, bytes) else json.dumps(page).encode(), "application/json")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/v1/chat/completions":
                status, content = fake.completion(body)
                self.reply(status, content, "text/event-stream" if status == 200 else "application/json")
            elif self.path == "/tokenize" and fake.tokenize:
                self.reply(200, json.dumps(fake.tokenize(body["prompt"])).encode(), "application/json")
            else:
                self.reply(404, b"{}", "application/json")

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()


def probed(fake: FakeServer, **options: Any) -> ServerProbe:
    async def main(url: str) -> ServerProbe:
        async with Client(url, timeout_s=10) as client:
            return await probe(client, "chat", {"chat"}, **options)

    with serving(fake) as url:
        return asyncio.run(main(url))


def test_the_only_model_is_found_with_its_engine_and_context() -> None:
    server = probed(FakeServer()).server
    assert (server.model, server.engine, server.max_model_len) == ("m", "vllm", 128)
    assert server.root_url + "/v1" == server.base_url
    assert not server.simulated


@pytest.mark.parametrize(
    ("entry", "context"),
    [({"meta": {"n_ctx": 64}}, 64), ({"meta": None}, None), ({"max_model_len": "128"}, None), ({}, None)],
    ids=["llama.cpp", "no meta", "not a number", "not reported"],
)
def test_the_context_is_the_one_that_the_server_reports(entry: dict[str, Any], context: int | None) -> None:
    fake = FakeServer()
    fake.models = (200, {"data": [{"id": "m", **entry}]})
    server = probed(fake).server
    assert (server.max_model_len, server.engine) == (context, None)


@pytest.mark.parametrize(
    ("models", "model", "reason"),
    [
        ((200, {"data": [{"id": "a"}, {"id": "b"}]}), None, r"has 2 models \(a, b\); choose one with --model"),
        ((200, {"data": [{"id": "a"}, {"id": "b"}]}), "c", "has no model 'c'; it has: a, b"),
        ((200, {"data": []}), None, "GET /models: 200, no model in its list"),
        ((200, {"data": [{"name": "a"}]}), None, "no model in its list"),
        ((200, b"<html>"), None, "no model in its list"),
        ((404, {"detail": "Not Found"}), None, "GET /models: 404, Not Found"),
        ((401, {}), None, r"wants another API key \(401\)"),
        ((403, {}), "a", r"wants another API key \(403\)"),
    ],
)
def test_a_model_that_cannot_be_told_is_an_error(models: tuple[int, Any], model: str | None, reason: str) -> None:
    fake = FakeServer()
    fake.models = models
    with pytest.raises(LoadgenError, match=reason):
        probed(fake, model=model)
    assert fake.bodies == [], "nothing is sent to a server that may be the wrong one"


@pytest.mark.parametrize("models", [(404, {}), (200, {"data": []}), (200, b"<html>")])
def test_a_named_model_needs_no_list(models: tuple[int, Any]) -> None:
    fake = FakeServer()
    fake.models = models
    server = probed(fake, model="mine").server
    assert server == ServerInfo(server.base_url, "mine", None, None, DIALECTS[0])


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize("accepted", range(4))
def test_the_richest_dialect_that_is_accepted_is_used(accepted: int, status: int) -> None:
    fake = FakeServer()
    dialect = DIALECTS[accepted]

    def refuses(body: dict[str, Any]) -> int | None:
        richer = (
            ("min_tokens" in body and not dialect.min_tokens)
            or ("ignore_eos" in body and not dialect.ignore_eos)
            or ("stream_options" in body and not dialect.include_usage)
        )
        return status if richer else None

    fake.refuses = refuses
    assert probed(fake).server.dialect == dialect
    assert all(body["max_tokens"] == 1 for body in fake.bodies)


@pytest.mark.parametrize(("status", "attempts"), [(400, 4), (422, 4), (500, 1), (404, 1)])
def test_only_a_refusal_of_the_extensions_makes_it_try_fewer(status: int, attempts: int) -> None:
    fake = FakeServer()
    fake.refuses = lambda body: status
    with pytest.raises(LoadgenError, match=rf"failed a one-token request to /chat/completions \(http: {status}"):
        probed(fake)
    assert len(fake.bodies) == attempts


def test_a_check_that_fails_comes_before_tokens_are_counted() -> None:
    fake = FakeServer()
    too_long = [ScheduledRequest(index=0, offset_ns=0, workload="chat", input_tokens=100, output_tokens=29)]
    with pytest.raises(LoadgenError, match=r"request 0 needs 100 \+ 29 tokens, but m takes 128"):
        probed(fake, check=lambda server: server.check_fits(too_long))
    assert len(fake.bodies) == 1, "the dialect's"


@pytest.mark.parametrize(
    ("limit", "lengths", "index"),
    [
        (128, [(100, 28)], None),
        (128, [(100, 29)], 0),
        (128, [(100, 28), (1, 128), (2, 128)], 1),
        (None, [(10**9, 10**9)], None),
        (128, [], None),
    ],
    ids=["exactly as long", "one longer", "the first that is longer", "no limit known", "no requests"],
)
def test_requests_fit_up_to_the_context(limit: int | None, lengths: list[tuple[int, int]], index: int | None) -> None:
    server = ServerInfo("http://h/v1", "m", None, limit)
    requests = [
        ScheduledRequest(index=i, offset_ns=0, workload="chat", input_tokens=n, output_tokens=o)
        for i, (n, o) in enumerate(lengths)
    ]
    if index is None:
        server.check_fits(requests)
    else:
        with pytest.raises(LoadgenError, match=f"^request {index} needs"):
            server.check_fits(requests)


@pytest.mark.parametrize("shape", ["vllm", "llamacpp"])
def test_with_a_tokenizer_on_the_server_the_overhead_is_what_it_counts_beyond_the_prompt(shape: str) -> None:
    fake = FakeServer()
    fake.tokenize = lambda text: (
        {"count": fake.count(text)} if shape == "vllm" else {"tokens": list(range(fake.count(text)))}
    )
    result = probed(fake)
    assert result.lengths_from == "/tokenize"
    prompt_tokens = fake.count(fake.bodies[-1]["messages"][0]["content"])
    assert result.vocabularies["chat"].overhead == prompt_tokens + TEMPLATE_TOKENS - PROBE_TOKENS


@pytest.mark.parametrize("answer", [{"count": 0}, {"tokens": []}, {}, {"count": None}])
def test_a_tokenizer_that_does_not_count_is_not_used(answer: Any) -> None:
    fake = FakeServer()
    fake.tokenize = lambda text: answer
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


def test_a_server_that_fails_while_tokens_are_counted_is_an_error() -> None:
    fake = FakeServer()
    fake.refuses = lambda body: 500 if len(fake.bodies) > 1 else None
    with pytest.raises(LoadgenError, match=r"failed a one-token request to /chat/completions \(http: 500"):
        probed(fake)


def test_a_server_that_does_not_exist_is_named_with_the_reason() -> None:
    async def main() -> None:
        async with Client("http://me:secret@127.0.0.1:1/v1", timeout_s=5) as client:
            await probe(client, "chat", {"chat"})

    with pytest.raises(LoadgenError, match=r"no server at http://127.0.0.1:1/v1 \(Connection refused\)"):
        asyncio.run(main())
