"""A run beside other clients records the engine's spans of all of them, and charges ours for ours."""

import asyncio
import http.server
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import aiohttp
import pytest

from loadgen import areplay
from loadgen.results.run_folder import read_run
from loadgen.run import span_poller
from loadgen.run.span_poller import SpanPoller
from loadgen.sidecar.options import SidecarOptions
from loadgen.sidecar.server import running_sidecar
from loadgen.simulator.app import ServerOptions, running_simulator
from loadgen.telemetry import otlp_export
from loadgen.telemetry.engine_span import EngineSpan


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(span_poller, "PERIOD_S", 0.1)
    monkeypatch.setattr(span_poller, "LATE_S", 2.5)  # a sidecar's tick, and the pause before spans are sent
    monkeypatch.setattr(otlp_export, "PAUSE_S", 0.05)


@asynccontextmanager
async def engine_with_sidecar() -> AsyncIterator[tuple[str, str]]:
    """Yield the URLs of a simulated engine and of the sidecar that it sends its spans to."""
    async with AsyncExitStack() as stack:
        _, meter = await stack.enter_async_context(running_simulator(ServerOptions(port=0)))
        options = SidecarOptions(port=0, engine_url=meter)
        _, sidecar, _ = await stack.enter_async_context(running_sidecar(options))
        told = ServerOptions(port=0, otlp_traces_endpoint=sidecar + "/v1/traces")
        _, engine = await stack.enter_async_context(running_simulator(told))
        yield engine, sidecar


async def ask(engine: str, name: str, output: int) -> None:
    body = {"model": "llama-3.1-8b", "prompt": "Say it", "max_tokens": output, "ignore_eos": True}
    headers = {"X-Request-Id": name}
    url = engine + "/v1/completions"
    async with aiohttp.ClientSession() as session, session.post(url, json=body, headers=headers) as response:
        assert response.status == 200
        await response.read()


def test_a_run_knows_the_requests_of_others_by_the_engines_spans(tmp_path: Path) -> None:
    async def run() -> None:
        async with engine_with_sidecar() as (engine, sidecar):
            await ask(engine, "before", 5)
            await asyncio.sleep(1.5)  # the sidecar has its span
            replaying = areplay(
                [{"timestamp": 0, "input_length": 20, "output_length": 100}] * 3, base_url=engine + "/v1",
                energy=engine, otlp=sidecar, idle_s=0.6, out=tmp_path / "run",
            )  # fmt: skip
            others = [ask(engine, f"other-{i}", 300) for i in range(2)]
            await asyncio.gather(replaying, *others)

    asyncio.run(run())
    result = read_run(tmp_path / "run")
    ids = {span.id for span in result.spans}
    ours = {f"{result.info.run_id}-{i}" for i in range(3)}
    assert ids >= ours | {"other-0", "other-1"} and "before" not in ids
    assert {span.output_tokens for span in result.spans if span.id.startswith("other")} == {300}


@contextmanager
def collector() -> Iterator[tuple[str, list[str]]]:
    """A receiver of OTLP that has no page of spans: its URL, and the paths that it was asked for."""
    paths: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", paths
    server.shutdown()
    server.server_close()


def test_a_receiver_that_is_no_sidecar_is_asked_once() -> None:
    spans: list[EngineSpan] = []
    with collector() as (url, paths):
        poller = SpanPoller(url + "/v1/traces", spans.extend)
        poller.start()
        poller.stop()
    assert (paths, spans) == (["/spans"], [])


def test_a_sidecar_that_is_away_costs_no_run() -> None:
    poller = SpanPoller("http://127.0.0.1:9", lambda _: None)
    poller.start()
    poller.stop()
