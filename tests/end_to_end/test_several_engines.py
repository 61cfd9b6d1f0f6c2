"""A run through a router: the energy and the counters of each engine are recorded, and which of them served."""

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop
from aiohttp import web

from loadgen.errors import LoadgenError
from loadgen.report.write import finish
from loadgen.results.run_folder import RunResult
from loadgen.run.config import RunConfig
from loadgen.run.progress import NullView
from loadgen.run.replay import replay
from loadgen.simulator.app import ServerOptions, running_simulator
from loadgen.units import NS_PER_MS
from loadgen.workload.schedule import Schedule, ScheduledRequest


@asynccontextmanager
async def router(urls: dict[str, str], header: str) -> AsyncIterator[str]:
    """Send each POST to the next engine, and name it in a header, once by name and once by address."""
    turn = itertools.cycle(urls.items())

    async def pass_on(request: web.Request) -> web.StreamResponse:
        name, url = next(turn) if request.method == "POST" else next(iter(urls.items()))
        headers = {key: request.headers[key] for key in ("Content-Type", "X-Request-Id") if key in request.headers}
        body = await request.read()
        async with (
            aiohttp.ClientSession() as session,
            session.request(request.method, url + request.path_qs, data=body or None, headers=headers) as answer,
        ):
            of_engine = {"a": "a", "b": url.removeprefix("http://")}[name]
            fields = {"Content-Type": answer.headers.get("Content-Type", ""), header: of_engine}
            response = web.StreamResponse(status=answer.status, headers=fields)
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", pass_on)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def run_of(out: Path, **options: Any) -> tuple[RunResult, dict[str, dict[int, float]]]:
    """Return a run of 24 requests on two simulated engines, and the true joules of each at its engine."""
    requests = tuple(
        ScheduledRequest(
            index=i, offset_ns=90 * i * NS_PER_MS, workload="w", input_tokens=50 + 90 * (i % 7), output_tokens=12
        )
        for i in range(24)
    )

    async def run() -> dict[str, dict[int, float]]:
        async with (
            running_simulator(ServerOptions(port=0)) as (a, url_a),
            running_simulator(ServerOptions(port=0, seed=1)) as (b, url_b),
            router({"a": url_a, "b": url_b}, "X-Served-By") as url,
        ):
            engines = (f"a={url_a}", f"b={url_b}/v1")
            config = RunConfig(out=out, base_url=f"{url}/v1", engines=engines, idle_s=0.5, **options)
            await replay(Schedule(requests, "constant", 11.0, 0), config, NullView())
            return {
                name: {
                    int(line.request_id.rpartition("-")[2]): line.joules
                    for line in server.player.oracle
                    if not line.request_id.startswith("loadgen-")
                }
                for name, server in (("a", a), ("b", b))
            }

    truth = uvloop.run(run())
    return finish(out, None), truth


@pytest.mark.parametrize("header", ["x-served-by", None])
def test_each_engine_s_energy_is_its_own_requests(header: str | None, tmp_path: Path) -> None:
    result, truth = run_of(tmp_path / "run", engine_headers=(header,) if header else ())
    assert result.summary is not None
    assert result.attribution is not None
    energy = result.summary.energy
    assert [engine.name for engine in energy.engines] == ["a", "b"]
    assert [domain.name for domain in result.info.domains] == ["gpu:0@a", "gpu:0@b"]
    assert {sample["engine"] for samples in result.engines.values() for sample in samples} == {"a", "b"}
    for account in result.attribution.engines.values():
        account.check()
    if header is None:
        assert all(record.engines is None for record in result.records)
        assert all(set(engine.named_by) <= {"counters"} for engine in energy.engines)
        return
    assert {i for i, r in enumerate(result.records) if r.engines == ["a"]} == set(truth["a"])
    for engine in energy.engines:
        spent = (engine.prefill_joules or 0.0) + (engine.decode_joules or 0.0)
        assert engine.requests == len(truth[engine.name])
        assert spent == pytest.approx(sum(truth[engine.name].values()), rel=0.3), "idle power while bytes travel"


def test_an_engine_whose_energy_source_is_away_is_refused_before_the_run(tmp_path: Path) -> None:
    async def run() -> None:
        async with running_simulator(ServerOptions(port=0)) as (_, url):
            engines = (f"a={url}", "b=http://127.0.0.1:9,energy=http://127.0.0.1:9")
            config = RunConfig(out=tmp_path / "run", base_url=f"{url}/v1", engines=engines)
            one = ScheduledRequest(index=0, offset_ns=0, workload="w", input_tokens=5, output_tokens=2)
            await replay(Schedule((one,), "trace", None, 0), config, NullView())

    with pytest.raises(LoadgenError, match=r"127\.0\.0\.1:9"):
        uvloop.run(run())
    assert not (tmp_path / "run").exists()
