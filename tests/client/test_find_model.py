"""The model, its API and its engine are what the server itself tells, or the user."""

import asyncio
import errno
import socket
import ssl
from typing import Any

import pytest

from loadgen.client.client import Client
from loadgen.client.find_model import find_model, unreachable
from loadgen.client.http1 import HTTPError
from loadgen.client.openai_api import Dialect
from loadgen.client.server_info import ServerInfo
from loadgen.client.server_probe import probe
from loadgen.client.surroundings import Proxy
from loadgen.errors import LoadgenError
from support.fake_api import Answer, FakeServer, probed, refusal, serving

pytestmark = pytest.mark.usefixtures("no_pauses")

LISTED: Answer = (200, {"data": [{"id": "m", "owned_by": "vllm"}]})


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
    ("models", "reason"),
    [
        ((200, {"data": [{"id": "a"}, {"id": "b"}]}), r"has 2 models \(a, b\); choose one with --model"),
        ((200, {"data": []}), "GET /models: 200, no model in its list"),
        ((200, {"data": None}), "no model in its list"),
        ((200, {"data": [{"name": "a"}]}), "its answer is no list of models"),
        ((200, b"<html>"), "its answer is no list of models"),
        ((404, {"detail": "Not Found"}), "GET /models: 404, Not Found"),
        ((404, b"<html>\n<h1>no</h1>\n"), "GET /models: 404, <html> <h1>no</h1>"),
        ((500, {"error": {"message": "no GPU"}}), "GET /models: 500, no GPU"),
        ((503, {"error": {"message": "Loading model"}}), "GET /models: 503, Loading model"),
        ((204, b""), "GET /models: 204"),
        ((401, {}), r"wants an API key \(401: {}\): set OPENAI_API_KEY or --api-key"),
    ],
)
def test_a_model_that_cannot_be_told_is_an_error(models: Answer, reason: str) -> None:
    fake = FakeServer(models=models)
    with pytest.raises(LoadgenError, match=reason) as error:
        probed(fake)
    assert fake.bodies == [], "nothing is sent to a server that may be the wrong one"
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "models", [(404, {}), (200, {"data": []}), (200, b"<html>"), (500, {}), (503, {}), (401, {}), (403, b"closed")]
)
def test_a_named_model_needs_no_list(models: Answer) -> None:
    fake = FakeServer(models=models)
    server = probed(fake, model="mine").server
    assert server == ServerInfo(server.base_url, "mine", None, None, Dialect(), addresses=("127.0.0.1",))


@pytest.mark.parametrize(
    ("model", "lines"),
    [("a", 0), ("a:latest", 0), ("b", 0), ("openai/gpt", 1), ("latest", 1)],
)
def test_a_named_model_is_requested_whatever_the_list_says(model: str, lines: int) -> None:
    fake, said = FakeServer(models=(200, {"data": [{"id": "a:latest"}, {"id": "b"}]})), []
    assert probed(fake, model=model, say=said.append).server.model == model
    assert {body["model"] for body in fake.bodies} == {model}
    assert len(said) == lines
    assert not said or f"serves {model!r}, though it lists a:latest, b" in said[0]


@pytest.mark.parametrize("status", [400, 404, 422])
def test_a_model_that_is_neither_listed_nor_served_is_an_error_with_those_that_are(status: int) -> None:
    fake = FakeServer(models=LISTED, refuses=lambda body: refusal(status, "no such model"))
    with pytest.raises(LoadgenError, match=rf"has no model 'c'; it has: m \({status} .*: no such model\)"):
        probed(fake, model="c")


@pytest.mark.parametrize(
    ("given", "base", "lines"),
    [
        ("", "/v1", 1),
        ("/", "/v1", 1),
        ("/v1/", "/v1", 0),
        ("/v1/chat/completions", "/v1", 1),
        ("/v1/completions/", "/v1", 1),
        ("/v1/models", "/v1", 1),
        ("/chat/completions", "/v1", 1),
        ("/openai", "/openai/v1", 1),
        ("/api", "/api", 0),
        ("", "", 0),
        ("/v1beta/openai", "/v1beta/openai", 0),
    ],
)
@pytest.mark.parametrize("missing", [(404, {}), (200, b"<html>"), (401, {})], ids=["404", "a page", "401"])
def test_the_api_is_found_below_what_was_given_and_a_guess_is_said(
    given: str, base: str, lines: int, missing: Answer
) -> None:
    fake, said = FakeServer(base=base, pages={"/models": missing, "/openai/models": missing}), []
    server = probed(fake, given, say=said.append).server
    assert server.base_url.partition("://")[2].partition("/")[2] == base.lstrip("/")
    assert len(said) == lines
    assert not said or said[0].startswith(f"the API is at {server.base_url}, not at http://")


OLLAMA: dict[str, Answer] = {"/api/version": (200, {"version": "0.12.3"})}
TGI: dict[str, Answer] = {"/info": (200, {"model_id": "org/m", "max_total_tokens": 4096, "max_input_tokens": 4000})}


@pytest.mark.parametrize(
    ("owner", "pages", "engine", "limits"),
    [
        ("vllm", TGI | OLLAMA, "vllm", (None, None)),
        ("m", TGI, "tgi", (4096, 4000)),
        ("m", {"/info": (200, {"model_id": "m", "max_total_tokens": 9})}, "tgi", (9, None)),
        ("m", {"/info": (200, {"model_id": "m"})}, None, (None, None)),
        ("m", {}, None, (None, None)),
        ("library", {}, "ollama", (None, None)),
        ("someone", OLLAMA, "ollama", (None, None)),
        ("openai", {"/info": (200, b"<html>"), "/api/version": (500, {})}, "openai", (None, None)),
        ("nvidia", {"/info": (200, []), "/api/version": (200, [])}, "nvidia", (None, None)),
        (None, {}, None, (None, None)),
        (7, {}, None, (None, None)),
    ],
)
def test_the_engine_is_the_one_whose_own_pages_answer(
    owner: Any, pages: dict[str, Answer], engine: str | None, limits: tuple[int | None, int | None]
) -> None:
    fake = FakeServer(models=(200, {"data": [{"id": "m", "owned_by": owner}]}), pages=pages)
    server = probed(fake).server
    assert (server.engine, server.max_model_len, server.max_input_tokens) == (engine, *limits)


@pytest.mark.parametrize(
    ("owner", "pages", "version"),
    [
        ("vllm", {"/version": (200, {"version": "0.20.2"})}, "0.20.2"),
        ("vllm", {"/version": (404, {})}, None),
        ("vllm", {"/version": (200, ["0.20.2"])}, None),
        ("vllm", {"/version": (200, {"version": 20})}, None),
        ("vllm", {"/version": (200, {"version": "9" * 1000})}, "9" * 100),
        ("sglang", {"/get_server_info": (200, {"version": "0.5.1", "model_path": "m"})}, "0.5.1"),
        ("llamacpp", {"/props": (200, {"build_info": "b6000-abc"})}, "b6000-abc"),
        ("library", OLLAMA, "0.12.3"),
        ("someone", OLLAMA, "0.12.3"),
        ("m", {"/info": (200, {"model_id": "m", "max_total_tokens": 9, "version": "3.3.1"})}, "3.3.1"),
        ("m", TGI, None),
        ("openai", {"/version": (200, {"version": "1"})}, None),
    ],
)
def test_the_version_is_that_of_the_engines_own_page(owner: str, pages: dict[str, Answer], version: str | None) -> None:
    fake = FakeServer(models=(200, {"data": [{"id": "m", "owned_by": owner}]}), pages=pages)
    assert probed(fake).server.engine_version == version


@pytest.mark.parametrize(
    ("headers", "api_key", "words"),
    [
        ({}, None, r"wants an API key \(403: no\)"),
        ({"X-Tenant": "t"}, None, r"wants an API key \(403: no\)"),
        ({}, "sk-secret", r"refuses this API key \(403: no\)"),
        ({"api-key": "sk-secret"}, None, r"refuses this API key \(403: no\)"),
        ({"authorization": "Basic x"}, None, r"refuses this API key \(403: no\)"),
    ],
)
@pytest.mark.parametrize("model", [None, "m"], ids=["of the list", "of the request"])
def test_a_key_that_is_missing_or_wrong_is_named(
    headers: dict[str, str], api_key: str | None, words: str, model: str | None
) -> None:
    fake = FakeServer(models=refusal(403, "no"), refuses=lambda body: refusal(403, "no"))
    with pytest.raises(LoadgenError, match=words):
        probed(fake, headers=headers, api_key=api_key, model=model)


def test_a_key_that_the_server_quotes_is_not_printed() -> None:
    fake = FakeServer(models=refusal(401, "no key sk-very-secret here"))
    with pytest.raises(LoadgenError) as error:
        probed(fake, api_key="sk-very-secret")
    assert "secret" not in str(error.value)


BUSY = [(429, {}), (500, {}), (502, b"<html>"), (503, {"error": "Loading model"}), (504, {})]


@pytest.mark.parametrize("answer", BUSY, ids=[str(status) for status, _ in BUSY])
def test_a_server_that_is_not_ready_once_is_asked_again_and_that_is_said_once(answer: Answer) -> None:
    fake, said = FakeServer(models=[answer, answer, LISTED]), []
    assert probed(fake, wait=said.append).server.model == "m"
    assert len(said) == 1
    assert f"is not ready (GET /models: {answer[0]}); trying again for up to" in said[0]


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_list_that_moved_on_the_same_host_moves_the_api(status: int) -> None:
    fake, said = FakeServer(base="/new/v1", pages={"/v1/models": (status, {})}, location="/new/v1/models"), []
    server = probed(fake, say=said.append).server
    assert server.base_url.endswith("/new/v1")
    assert [line for line in said if "not at" in line] == said
    assert len(said) == 1


@pytest.mark.parametrize("location", ["http://other.example/v1/models", "/login", "//h:1/v1/models"])
def test_a_redirect_elsewhere_is_named_and_not_followed(location: str) -> None:
    fake = FakeServer(pages={"/models": (302, {})}, base="/none", location=location)
    with pytest.raises(LoadgenError, match=r"redirects to .*, which is not followed: give --base-url"):
        probed(fake, "", api_key="sk-secret")


def test_redirects_without_an_end_are_an_error() -> None:
    fake = FakeServer(models=(307, {}), location="/v1/models")
    with pytest.raises(LoadgenError, match="cannot tell which model"):
        probed(fake)


def test_a_server_that_does_not_exist_is_named_with_the_reason() -> None:
    async def main() -> None:
        async with Client("http://me:secret@127.0.0.1:1/v1", timeout_s=5) as client:
            await probe(client, "chat", {"chat"})

    with pytest.raises(LoadgenError, match=r"no server at http://127.0.0.1:1/v1 \(Connection refused\)"):
        asyncio.run(main())


def certificate_error(code: int, message: str) -> ssl.SSLCertVerificationError:
    err = ssl.SSLCertVerificationError(1, "certificate verify failed")
    err.verify_code, err.verify_message = code, message
    return err


PROXY = Proxy("http://user:secret@proxy:3128", "http_proxy")


@pytest.mark.parametrize(
    ("err", "proxy", "words"),
    [
        (
            certificate_error(18, "self-signed certificate"),
            None,
            "is not trusted (self-signed certificate): set SSL_CERT",
        ),
        (certificate_error(20, "no local issuer"), None, "(no local issuer): set SSL_CERT_FILE to a file with the"),
        (
            certificate_error(10, "certificate has expired"),
            None,
            "(certificate has expired): the server needs a new one",
        ),
        (
            certificate_error(62, "Hostname mismatch: 'h'."),
            None,
            "(Hostname mismatch: 'h'): use a host name that it is",
        ),
        (ssl.SSLError(1, "wrong version number"), None, "does not speak TLS"),
        (
            socket.gaierror(-2, "Name or service not known"),
            None,
            "no server at http://h/v1 (Name or service not known)",
        ),
        (OSError(errno.EHOSTUNREACH, "x"), None, "(No route to host)"),
        (
            OSError(errno.ECONNREFUSED, "x"),
            PROXY,
            "cannot be reached (Connection refused): unset http_proxy, or add h to no_proxy",
        ),
        (TimeoutError(), None, "does not answer: nothing for 10 s"),
        (TimeoutError(), PROXY, "through the proxy http://proxy:3128 of $http_proxy"),
        (HTTPError("not HTTP:\nsk-secret-key"), None, "is not an OpenAI-compatible server: not HTTP: [redacted]"),
    ],
)
def test_what_keeps_a_server_out_of_reach_is_named_in_one_line(err: Exception, proxy: Proxy | None, words: str) -> None:
    client = Client("http://me:hidden-pw@h/v1?key=k", api_key="sk-secret-key", timeout_s=1)
    client.proxy = proxy
    text = str(unreachable(client, err))
    assert words in text
    assert "\n" not in text
    assert not {"secret", "hidden-pw", "key=k"} & set(text.replace("@", " ").split())


def test_a_dead_proxy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")

    async def main(url: str) -> None:
        async with Client(url + "/v1", timeout_s=5) as client:
            await find_model(client, None)

    with (
        serving(FakeServer()) as url,
        pytest.raises(LoadgenError, match=r"the proxy http://127.0.0.1:1 of \$http_proxy"),
    ):
        asyncio.run(main(url))
