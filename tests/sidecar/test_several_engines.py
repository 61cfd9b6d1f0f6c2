"""One sidecar over real sockets beside several simulated engines behind a router that sets nothing."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from prometheus_client.parser import text_string_to_metric_families

from loadgen.energy import awaited_meter
from loadgen.energy.named_engine import NamedEngine
from loadgen.results.bill import bill_of, bill_table
from loadgen.sidecar import app as edges
from loadgen.sidecar.app import Sidecar
from loadgen.sidecar.options import SidecarOptions
from loadgen.sidecar.server import running_sidecar
from loadgen.sidecar.watermark import AllowedLateness
from loadgen.simulator.app import ServerOptions, running_simulator
from loadgen.telemetry.otlp_export import SpanSender
from sidecar.test_app import ask, live, quick, record, until
from sidecar.test_ledger_kill import free_port

__all__ = ["quick"]
QUICK = AllowedLateness(min_s=0.2, blind_s=1.0)
ROLES = {"p": "prefill", "d": "decode"}


class Fleet:
    """A sidecar, its engines by name, and the session of a client."""

    def __init__(self, one: Sidecar, url: str, session: aiohttp.ClientSession) -> None:
        self.one, self.url, self.session = one, url, session
        self.engines: dict[str, str] = {}
        self.stops: dict[str, AsyncExitStack] = {}

    async def totals(self) -> dict[str, dict[str, float]]:
        """Sum of each metric by engine; every scrape adds up for each engine."""
        async with self.session.get(self.url + "/metrics") as response:
            families = text_string_to_metric_families(await response.text())
        totals: dict[str, dict[str, float]] = {}
        for row in (sample for family in families for sample in family.samples):
            of_engine = totals.setdefault(row.labels.get("engine", ""), {})
            name = row.name + (f",{row.labels['account']}" if "account" in row.labels else "")
            of_engine[name] = of_engine.get(name, 0.0) + row.value
        for name in self.engines:
            attributed, idle, unattributed = "loadgen_attributed_energy_joules_total", "idle", "unattributed"
            parts = [totals[name].get(f"{attributed},{phase}", 0.0) for phase in ("prefill", "decode")]
            parts += [totals[name].get(f"loadgen_{part}_energy_joules_total", 0.0) for part in (idle, unattributed)]
            joules = totals[name].get("loadgen_gpu_energy_joules_total", 0.0)
            assert sum(parts) == pytest.approx(joules, abs=1e-6), name
        return totals

    async def request(self, name: str) -> dict[str, Any]:
        async with self.session.get(f"{self.url}/requests/{name}") as response:
            page: dict[str, Any] = await response.json()
            return page

    async def settled(self, names: list[str]) -> list[dict[str, Any]]:
        """Tick and scrape until these requests have settled."""
        for _ in range(1500):
            self.one.tick()
            await self.one.settlement.write()
            await self.totals()
            pages = [await self.request(name) for name in names]
            if all(page["state"] == "settled" for page in pages):
                return pages
            await asyncio.sleep(0.02)
        raise AssertionError(f"not settled within 30 s: {pages}")


@asynccontextmanager
async def fleet(*names: str, energy: dict[str, str] | None = None, **options: Any) -> AsyncIterator[Fleet]:
    """Start engines with these names, which send spans unless the name ends with `-`, and a sidecar beside them.

    energy: sources of engines whose energy is not read from themselves.
    """
    async with AsyncExitStack() as stack:
        port = free_port()
        urls, stops = {}, {}
        for name in names:
            stops[name] = AsyncExitStack()
            stack.push_async_callback(stops[name].aclose)
            endpoint = None if name.endswith("-") else f"http://127.0.0.1:{port}/v1/traces"
            given = ServerOptions(port=0, otlp_traces_endpoint=endpoint, resource={"service.instance.id": name})
            _, urls[name] = await stops[name].enter_async_context(running_simulator(given))
        engines = tuple(
            NamedEngine(name=name, url=url, energy=(energy or {}).get(name, url), role=ROLES.get(name))  # type: ignore[arg-type]
            for name, url in urls.items()
        )
        sidecar = running_sidecar(SidecarOptions(port=port, engines=engines, lateness=QUICK, **options))
        one, url, _ = await stack.enter_async_context(sidecar)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        made = Fleet(one, url, session)
        made.engines, made.stops = urls, stops
        yield made


@asynccontextmanager
async def router(target: Callable[[], str]) -> AsyncIterator[str]:
    """Forward each request to an engine; nothing in it or in the answer says which one."""
    async with aiohttp.ClientSession() as session:

        async def forward(request: web.Request) -> web.Response:
            headers = {"X-Request-Id": request.headers["X-Request-Id"]}
            async with session.post(target() + request.path, data=await request.read(), headers=headers) as answer:
                return web.Response(status=answer.status, body=await answer.read())

        app = web.Application()
        app.router.add_post("/{path:.*}", forward)
        async with TestServer(app) as server:
            yield str(server.make_url("")).rstrip("/")


async def ask_all(
    session: aiohttp.ClientSession, url: str, sidecar_url: str, outputs: list[int], run: str = "run"
) -> list[str]:
    """Send requests one after the other and report them, as a client does; return their ids."""
    with SpanSender(sidecar_url, run, "llama-3.1-8b") as sender:
        for index, output in enumerate(outputs):
            start_ns = time.monotonic_ns()
            await ask(session, url, output, {"X-Request-Id": f"{run}-{index}"})
            sender.add(record(index, start_ns, time.monotonic_ns(), output))
        await asyncio.to_thread(sender.__exit__)
    return [f"{run}-{index}" for index in range(len(outputs))]


@live
async def test_each_request_is_billed_to_the_engine_that_served_it_and_every_engine_adds_up(tmp_path: Path) -> None:
    async with fleet("a", "b", ledger=tmp_path / "ledger") as made:
        turn = itertools.cycle(made.engines.items())
        served: list[str] = []

        def target() -> str:
            name, url = next(turn)
            served.append(name)
            return url

        outputs = [30, 5, 25, 10, 40]
        async with router(target) as url:
            names = await ask_all(made.session, url, made.url, outputs)
        pages = await made.settled(names)
        assert [page["engine"] for page in pages] == served == ["a", "b", "a", "b", "a"]
        assert [(page["output_tokens"], page["workload"]) for page in pages] == [(n, "chat") for n in outputs]
        assert all(page["joules"] > 0 for page in pages)
        totals = await made.totals()
        assert [totals[name]["loadgen_output_tokens_total"] for name in "ab"] == [95, 15]
        assert totals[""]["loadgen_spans_dropped_total"] == 0
        async with made.session.get(made.url + "/spans?after=0") as response:
            spans = (await response.json())["spans"]
        assert {(span["id"], span["engine"]) for span in spans} == set(zip(names, served, strict=True))
        async with made.session.get(made.url + "/healthz") as response:
            health = await response.json()
        assert {name: shown["engine_metrics"] for name, shown in health["engines"].items()} == {
            "a": "vLLM's, at /metrics", "b": "vLLM's, at /metrics"
        }  # fmt: skip
        committed_mj = {page.engine: sum(d.committed_mj for d in page.ledger.domains) for page in made.one.pages}
    bill = bill_of(tmp_path / "ledger", ("engine",))
    lines = list(bill_table(bill).rows())
    assert bill.counter_mj >= sum(committed_mj.values())
    assert {row["engine"] for row in lines if row["account"] == "requests"} == {"a", "b"}
    idle = {row["engine"]: row["energy_mj"] for row in lines if row["account"] == "idle"}
    assert set(idle) == {"a", "b"} and all(energy_mj > 0 for energy_mj in idle.values())


@live
async def test_prefill_and_decode_of_a_request_are_owed_to_the_engines_that_ran_them(tmp_path: Path) -> None:
    async with fleet("p", "d", ledger=tmp_path / "ledger") as made:

        async def forward(request: web.Request) -> web.Response:
            """Send the prompt to one engine and the request to the other, under one id."""
            body, headers = await request.json(), {"X-Request-Id": request.headers["X-Request-Id"]}
            for name, sent in (("p", body | {"max_tokens": 1}), ("d", body)):
                url = made.engines[name] + request.path
                async with made.session.post(url, json=sent, headers=headers) as answer:
                    data = await answer.read()
            return web.Response(body=data)

        app = web.Application()
        app.router.add_post("/{path:.*}", forward)
        async with TestServer(app) as server:
            url = str(server.make_url("")).rstrip("/")
            names = await ask_all(made.session, url, made.url, [30, 20])
        pages = await made.settled(names)
        made.one.tick()
        for page, output in zip(pages, (30, 20), strict=True):
            assert (page["engine"], page["prefill_engine"], page["output_tokens"]) == ("d", "p", output)
            assert page["prefill_joules"] > 0 and page["decode_joules"] > 0
            assert page["begin_unix_ns"] < page["first_token_unix_ns"] < page["end_unix_ns"]
        totals = await made.totals()
        energy, phases = "loadgen_attributed_energy_joules_total", ("prefill", "decode")
        assert [totals["p"][f"{energy},{phase}"] > 0 for phase in phases] == [True, False]
        assert [totals["d"][f"{energy},{phase}"] > 0 for phase in phases] == [False, True]
        count, tokens = "loadgen_request_energy_joules_count", "loadgen_output_tokens_total"
        assert [(totals[name][count], totals[name][tokens]) for name in "pd"] == [(0, 0), (2, 50)], "counted once"
        joules = sum(page["joules"] for page in pages)
        assert totals["d"]["loadgen_request_energy_joules_sum"] == pytest.approx(joules), "of both engines"
        shown_j = sum(page["prefill_joules"] for page in pages), sum(page["decode_joules"] for page in pages)
        assert shown_j[0] == pytest.approx(totals["p"][f"{energy},prefill"])
        assert shown_j[1] == pytest.approx(totals["d"][f"{energy},decode"])
    lines = list(bill_table(bill_of(tmp_path / "ledger", ("engine",))).rows())
    groups = {row["engine"]: row for row in lines if row["account"] == "requests"}
    assert [groups["p"][name] for name in ("requests", "decode_mj")] == [0, 0]
    assert [groups["d"][name] for name in ("requests", "prefill_mj")] == [2, 0]
    assert groups["p"]["prefill_mj"] > 0 and groups["d"]["decode_mj"] > 0


@live
async def test_an_engine_that_sends_no_spans_has_the_requests_that_no_other_can_have_had() -> None:
    async with fleet("a", "b-") as made:
        turn = itertools.cycle(made.engines.values())
        async with router(lambda: next(turn)) as url:
            names = await ask_all(made.session, url, made.url, [20, 30, 20, 30])
        pages = await made.settled(names)
        assert [page["engine"] for page in pages] == ["a", "b-", "a", "b-"]


@live
async def test_an_engine_whose_meter_is_lost_is_a_gap_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edges, "STALE_S", 0.5)
    async with fleet("a", "b") as made:
        one = made.one
        await until(one, lambda: all(page.ledger.domains[0].committed_mj > 0 for page in one.pages))
        await made.stops["b"].aclose()
        committed_mj = [page.ledger.domains[0].committed_mj for page in one.pages]
        await until(one, lambda: one.pages[0].ledger.domains[0].committed_mj > committed_mj[0] + 50_000)
        totals = await made.totals()
        assert [totals[name]["loadgen_engine_up"] for name in "ab"] == [1, 0]
        lasts = [totals[name]["loadgen_energy_last_read_timestamp_seconds"] for name in "ab"]
        assert lasts[1] < lasts[0]
        async with made.session.get(made.url + "/healthz") as response:
            assert response.status == 200
            engines = (await response.json())["engines"]
        assert engines["a"]["meter"] == "answers" and "silent for" in engines["b"]["meter"]
        await made.stops["a"].aclose()
        await asyncio.sleep(0.6)
        async with made.session.get(made.url + "/healthz") as response:
            assert response.status == 503


@live
async def test_an_engine_whose_meter_is_away_at_the_start_is_unknown_until_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(awaited_meter, "AWAIT_S", 0.05)
    port = free_port()
    async with AsyncExitStack() as host:
        energy = {"b": f"http://127.0.0.1:{port}"}
        made = await host.enter_async_context(fleet("a", "b", energy=energy, ledger=tmp_path / "ledger"))
        assert [message for message in caplog.messages if "energy" in message] == [
            f"--engine b: {energy['b']} cannot be read: Connection refused; its energy is unknown until it answers"
        ]
        turn = itertools.cycle(made.engines.values())
        async with router(lambda: next(turn)) as url:
            names = await ask_all(made.session, url, made.url, [20, 20])
        of_a, of_b = await made.settled(names)
        assert of_a["joules"] > 0 and of_b["joules"] is None, "unknown is not 0"
        totals = await made.totals()
        assert totals["a"]["loadgen_gpu_energy_joules_total"] > 0
        assert [name for name in totals["b"] if "_energy_joules_total" in name] == []
        async with made.session.get(made.url + "/healthz") as response:
            health = await response.json()
        assert {name: shown["meter"] for name, shown in health["engines"].items()} == {
            "a": "answers", "b": "has not answered yet"
        }  # fmt: skip

        options = SidecarOptions(port=port, engine_url=made.engines["b"], energy=made.engines["b"])
        await host.enter_async_context(running_sidecar(options))
        await until(made.one, lambda: bool(made.one.pages[1].ledger.domains))
        await until(made.one, lambda: made.one.pages[1].last_read_s is not None)
        async with router(lambda: made.engines["b"]) as url:
            [name] = await ask_all(made.session, url, made.url, [20], "later")
        [page] = await made.settled([name])
        assert (page["engine"], page["joules"] > 0) == ("b", True)
        committed_mj = {page.engine: sum(d.committed_mj for d in page.ledger.domains) for page in made.one.pages}
        assert "its energy source answers: gpu:0@b" in caplog.text
    bill = bill_of(tmp_path / "ledger", ("engine",))
    assert bill.counter_mj >= sum(committed_mj.values())
    assert {source.partition(" ")[0] for source in bill.sources} == {"gpu:0@a", "gpu:0@b"}


@live
async def test_a_sidecar_starts_before_any_of_its_sources() -> None:
    engine = NamedEngine(name="b", url="http://127.0.0.1:1", energy="http://127.0.0.1:1")
    options = SidecarOptions(port=0, engines=(engine,), lateness=QUICK)
    async with running_sidecar(options) as (one, url, _), aiohttp.ClientSession() as session:
        one.tick()
        async with session.get(url + "/healthz") as response:
            assert response.status == 503
        async with session.get(url + "/energy") as response:
            feed = await response.json()
            assert (feed["domains"], feed["simulated"]) == ([], False)
