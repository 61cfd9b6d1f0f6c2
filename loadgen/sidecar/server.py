"""Starts and ends a sidecar: the meter, TLS, OTLP over HTTP and gRPC, the threads and the task of the ledger."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web
from aiohttp.http import HttpProcessingError

from loadgen.energy.choose import open_meter
from loadgen.energy.fleet_meter import open_fleet_meter
from loadgen.errors import LoadgenError, MeterError
from loadgen.http_get import REQUEST_ERRORS, http_get
from loadgen.sidecar.app import MAX_OTLP_BYTES, Sidecar
from loadgen.sidecar.grpc_server import start_grpc
from loadgen.sidecar.otlp_push import make_pushes
from loadgen.telemetry.otlp_collector import endpoints

if TYPE_CHECKING:
    from loadgen.energy.meter import EnergyMeter
    from loadgen.energy.named_engine import NamedEngine
    from loadgen.sidecar.options import SidecarOptions
    from loadgen.sidecar.otlp_push import Push

_log = logging.getLogger(__name__)

ASK_S, LONGEST_ASK_S = 1.0, 30.0
"""Pauses between questions for the engine's model: twice as long each time that it does not answer."""
IDLE_S = 75.0
"""Time for which a connection may wait for the whole head of its next request: longer than a usual scrape interval."""
_http_log = logging.getLogger(f"{__name__}.http")


def without_request(record: logging.LogRecord) -> bool:
    """Make one line of the traceback of a request that is no HTTP, or whose client went away. The error's own text is
    left out: it quotes the headers, which may hold a token."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, (HttpProcessingError, ConnectionError)):
        record.msg, record.exc_info = f"{record.msg}: {type(error).__name__}", None
    return True


_http_log.addFilter(without_request)


def ask_engine(url: str, key: str | None = None) -> tuple[str | None, bool]:
    """Return the engine's only model and True if it is the simulated server; (None, False) when it does not say."""
    try:
        headers = {"Authorization": f"Bearer {key}"} if key else None
        response = http_get(url + "/v1/models", headers=headers, timeout_s=2, max_body_bytes=1 << 20)
        models = [entry["id"] for entry in msgspec.json.decode(response.body)["data"]]
    except (*REQUEST_ERRORS, msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError, TypeError):
        return None, False
    simulated = response.headers.get("X-Simulated") == "true"
    return (str(models[0])[:64] if len(models) == 1 else None), simulated


async def keep_model(sidecar: Sidecar, number: int, model: str | None) -> None:
    """Ask an engine for its model until it answers, and again after it was away or restarted, until cancelled."""
    options, pause_s, unsure = sidecar.options, ASK_S, model is None
    engine = sidecar.engines[number]
    url = engine.url
    restarts: int | None = 0
    while url is not None and options.model is None:
        await asyncio.sleep(pause_s)
        page = sidecar.pages[number]
        unsure |= page.engine_up is False or page.engine_restarts != restarts
        restarts = page.engine_restarts
        model, _ = await asyncio.to_thread(ask_engine, url, options.engine_key) if unsure else (None, False)
        if model is not None:
            engine.ledger.name_model(model)
            _log.info("the engine %(name)s serves %(model)s", {"name": engine.name or "", "model": model})
            unsure = False
        pause_s = min(2 * pause_s, LONGEST_ASK_S) if unsure else ASK_S


def choose_meter(options: SidecarOptions, simulated: Sequence[bool]) -> tuple[EnergyMeter, tuple[NamedEngine, ...]]:
    """Open the meter of all engines; return it, and the named engines with the energy sources that were taken.

    simulated: True for each engine that reports itself as simulated; its source is then its simulated counter, unless
    another is stated. A named engine's own source that does not answer yet is awaited. Raises LoadgenError when there
    is nothing to read.
    """
    engines: tuple[NamedEngine, ...] = ()
    if options.engines:
        names = {engine.name for engine, is_simulated in zip(options.engines, simulated, strict=True) if is_simulated}
        meter, reasons, engines = open_fleet_meter(
            options.engines, options.energy, token=options.energy_token, every_s=options.energy_every_s,
            simulated=names, awaiting=True,
        )  # fmt: skip
    else:
        choice, token = options.energy, options.energy_token
        if choice == "auto" and any(simulated):
            assert options.engine_url is not None
            choice, token = options.engine_url, None  # the token is for sources that the user names
        meter, reasons = open_meter(choice, gpus=options.gpus or None, token=token, every_s=options.energy_every_s)
    if meter is None:
        raise LoadgenError(f"a sidecar needs an energy source: {'; '.join(reasons) or 'none was found'}")
    return meter, engines


async def open_sidecar(options: SidecarOptions) -> tuple[Sidecar, list[str | None]]:
    """Return a sidecar with its meter open, and the models of its engines. Raises LoadgenError when it cannot be."""
    urls = [engine.url for engine in options.engines] or ([options.engine_url] if options.engine_url else [])
    answers = await asyncio.gather(*(asyncio.to_thread(ask_engine, url, options.engine_key) for url in urls))
    for url, (model, simulated) in zip(urls, answers, strict=True):
        engine = {"url": url.rpartition("@")[2], "model": model, "simulated": simulated}
        _log.info("engine at %(url)s: model %(model)s, simulated: %(simulated)s", engine)
    models = [model for model, _ in answers] or [None]
    meter, engines = await asyncio.to_thread(choose_meter, options, [simulated for _, simulated in answers])
    options = replace(options, engines=engines)
    try:
        return Sidecar(options, meter, [options.model or model for model in models]), models
    except MeterError as err:
        meter.close()
        raise LoadgenError(f"{'--engine' if options.engines else '--engine-url'}: {err}") from err
    except LoadgenError:
        meter.close()
        raise


@asynccontextmanager
async def running_sidecar(
    options: SidecarOptions, on_error: Callable[[], None] = lambda: None
) -> AsyncIterator[tuple[Sidecar, str, int | None]]:
    """Serve; yield the sidecar, its URL and its gRPC port. Raises LoadgenError when it cannot.

    on_error: is called when a task ends by an error, which is raised after the block: its page would be an old one.
    """
    collectors = endpoints(
        {"metrics": options.otlp_metrics_endpoint, "traces": options.otlp_traces_endpoint}, os.environ
    )
    certificate = (options.tls_cert, options.tls_key) if options.tls_cert and options.tls_key else None
    tls = _tls(*certificate) if certificate else None
    sidecar, models = await open_sidecar(options)
    runner = web.AppRunner(
        sidecar.app(), access_log=None, shutdown_timeout=0.5, keepalive_timeout=IDLE_S, logger=_http_log
    )
    await runner.setup()
    grpc_server, grpc_port = None, None
    keepers: list[asyncio.Task[None]] = []
    pushes: list[Push] = []
    try:
        url = await _listen(runner, options, tls)
        if options.grpc_port is not None:
            grpc_server, grpc_port = start_grpc(
                options.host, options.grpc_port, sidecar.receive, sidecar.authorized,
                max_body_bytes=MAX_OTLP_BYTES, certificate=certificate,
            )  # fmt: skip
        sidecar.sampler.start()
        for engine in sidecar.engines:
            if engine.poller:
                engine.poller.start()
        pushes = make_pushes(sidecar, collectors, os.environ, runner.addresses[0][1])
        keeping = [sidecar.keep(), *(keep_model(sidecar, *named) for named in enumerate(models))]
        keepers = [asyncio.create_task(keep) for keep in (*keeping, *(push.keep() for push in pushes))]
        for keeper in keepers:
            keeper.add_done_callback(lambda ended: on_error() if _error_of(ended) else None)
        yield sidecar, url, grpc_port
        for error in filter(None, map(_error_of, keepers)):
            raise error
    finally:
        if keepers:
            await _stop_keeping(sidecar, keepers)
        await asyncio.to_thread(sidecar.settlement.close)
        await asyncio.gather(*(push.close() for push in pushes))
        if grpc_server:
            grpc_server.stop(0.5)
        await runner.cleanup()
        if not sidecar.sampler.hangs:
            sidecar.meter.close()


async def _listen(runner: web.AppRunner, options: SidecarOptions, tls: ssl.SSLContext | None) -> str:
    """Listen, and return the sidecar's URL. Raises LoadgenError when the address cannot be had."""
    try:
        await web.TCPSite(runner, options.host, options.port, ssl_context=tls).start()
    except OSError as err:
        raise LoadgenError(
            f"cannot listen on {options.host}:{options.port}: {err.strerror or err}; choose another --port"
        ) from err
    host = f"[{options.host}]" if ":" in options.host else options.host
    return f"{'https' if tls else 'http'}://{host}:{runner.addresses[0][1]}"


async def _stop_keeping(sidecar: Sidecar, keepers: Sequence[asyncio.Task[None]]) -> None:
    """Stop the tasks and the threads, and settle what has arrived unless a task ended by an error."""
    sound = not any(map(_error_of, keepers))
    for keeper in keepers:
        keeper.cancel()
    await asyncio.wait(keepers)
    await asyncio.to_thread(sidecar.sampler.stop)
    pollers = [engine.poller for engine in sidecar.engines if engine.poller]
    for poller in pollers:
        poller.cancel()
    for poller in pollers:
        await asyncio.to_thread(poller.stop)
    if sound:
        sidecar.tick(last=True)


def _error_of(task: asyncio.Task[None]) -> BaseException | None:
    """Return the error that ended a task; None while it runs."""
    return task.exception() if task.done() and not task.cancelled() else None


def _tls(cert: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as err:
        raise LoadgenError(f"the TLS certificate cannot be used: {err}") from err
    return context


async def serve_sidecar(options: SidecarOptions) -> None:
    """Serve until SIGINT or SIGTERM; an error in the ledger ends it too, with a traceback."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running_sidecar(options, on_error=stop.set) as (sidecar, url, grpc_port):
        domains = [f"{domain.name} ({domain.source})" for domain in sidecar.meter.domains]
        sources = ", ".join(domains) or "no engine yet"
        also = f", OTLP/gRPC on port {grpc_port}" if grpc_port is not None else ""
        print(f"sidecar: {url}/metrics, OTLP on {url}/v1/traces{also}; energy of {sources}", flush=True)
        _log.info("serving at %(url)s, gRPC on port %(grpc_port)s", {"url": url, "grpc_port": grpc_port})
        await stop.wait()
        _log.info("stopped")


def run_sidecar(options: SidecarOptions) -> None:
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    gc.freeze()  # modules are never freed: no collection need visit them
    with asyncio.Runner() as runner:
        runner.run(serve_sidecar(options))
