"""The meters beside a run: the energy sources near the servers, and the engines' own counters."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from loadgen.clock import monotonic_ns
from loadgen.energy.choose import energy_token, open_meter, source_beside, stated_token
from loadgen.energy.fleet_meter import open_fleet_meter
from loadgen.energy.named_engine import parse_engines
from loadgen.energy.sampler import LivePower, Sampler, SamplerReport
from loadgen.run.span_poller import SpanPoller
from loadgen.telemetry.engine_metrics import EnginePoller, EngineState

if TYPE_CHECKING:
    from loadgen.client.server_info import ServerInfo
    from loadgen.energy.meter import EnergyMeter
    from loadgen.energy.series import EnergySample
    from loadgen.results.run_folder import RunWriter
    from loadgen.run.config import RunConfig

_log = logging.getLogger(__name__)


class Metering:
    """Holds the energy meter of a run, where there is one. A context manager: leaving it closes the meter."""

    def __init__(self, config: RunConfig, server: ServerInfo) -> None:
        self._config, self._server = config, server
        self.engines = parse_engines(config.engines, sharing=True)
        """Engines that --engine names, once entered with the energy sources that were taken for them."""
        self.meter: EnergyMeter | None = None
        self.reasons: list[str] = []
        """Reasons why there is no meter, or why a better one was passed over."""
        self._sampler: Sampler | None = None
        self.report: SamplerReport | None = None
        """Known once `recording` has ended; None without a meter."""
        self.engine_page = engine_page_facts(EngineState())
        """The engine's metrics page, as `recording` knew it in the end: of several engines one that was not understood,
        if there is one."""

    async def __aenter__(self) -> Self:
        server, config = self._server, self._config
        if self.engines:
            self.meter, self.reasons, self.engines = await asyncio.to_thread(
                open_fleet_meter, self.engines, config.energy, gpus=config.gpus or None,
                token=stated_token(), sharing=True,
            )  # fmt: skip
        else:
            await self._open_meter(server)
        if self.meter is None:
            _log.info("no energy: %(reasons)s", {"reasons": self.reasons})
        return self

    async def _open_meter(self, server: ServerInfo) -> None:
        simulated_at = server.root_url if server.simulated else None
        source = await asyncio.to_thread(
            source_beside, server.base_url, self._config.energy, simulated_at=simulated_at
        )  # it may look a name up
        if source is None:
            host = urlsplit(server.base_url).hostname
            self.reasons = [
                f"the server is on another host: run `loadgen sidecar` there and add --energy http://{host}:9478"
            ]
        else:
            self.meter, self.reasons = await asyncio.to_thread(
                open_meter, source, gpus=self._config.gpus or None, token=energy_token(self._config.energy)
            )

    async def __aexit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self.meter and not (self._sampler and self._sampler.hangs):  # a driver call that never returned holds it
            self.meter.close()

    @asynccontextmanager
    async def recording(self, writer: RunWriter) -> AsyncIterator[None]:
        """Record the energy counters and the engines' counters while the block runs, each once more after it; with a
        sidecar, the engines' spans as well.

        An exception ends the threads without waiting for them.
        """
        server = self._server
        pollers = [EnginePoller(e.url, partial(writer.engine, name=e.name)) for e in self.engines]
        pollers = pollers or [EnginePoller(server.root_url, writer.engine, owner=server.engine)]
        if self.meter:
            begin_ns = monotonic_ns()
            self._sampler = Sampler(self.meter, lambda samples: writer.energy(since(samples, begin_ns)))
            self._sampler.start()
        await _read_all(pollers)
        _log.info("metrics pages: %(pages)s", {"pages": [engine_page_facts(poller.state) for poller in pollers]})
        for poller in pollers:
            poller.start()
        spans = SpanPoller(self._config.otlp, writer.spans) if self._config.otlp else None
        if spans:
            await asyncio.to_thread(spans.start)
        try:
            yield
        except BaseException:
            for poller in pollers:
                poller.cancel()
            if spans:
                spans.cancel()
            if self._sampler:
                self._sampler.cancel()
            raise
        for poller in pollers:
            poller.cancel()
        for poller in pollers:
            await asyncio.to_thread(poller.stop)
        await _read_all(pollers)
        states = [poller.state for poller in pollers]
        self.engine_page = engine_page_facts(next((state for state in states if state.path is None), states[0]))
        self.report = await asyncio.to_thread(self._sampler.stop) if self._sampler else None
        if spans:
            await asyncio.to_thread(spans.stop)

    def latest(self) -> LivePower | None:
        """Return the present power, for display; None without a meter."""
        return self._sampler.latest() if self._sampler else None


async def _read_all(pollers: Sequence[EnginePoller]) -> None:
    """Read every page once, side by side."""
    await asyncio.gather(*(asyncio.to_thread(poller.read_now) for poller in pollers))


def since(samples: Sequence[EnergySample], begin_ns: int) -> list[EnergySample]:
    """Return the samples from an instant on, and of each domain the newest one before it.

    A meter that keeps its counters' history also has what the server drew while it was warmed up.
    """
    newest = {sample.domain: sample for sample in samples if sample.t_ns < begin_ns}
    return [*newest.values(), *(sample for sample in samples if sample.t_ns >= begin_ns)]


def engine_page_facts(state: EngineState) -> dict[str, str | bool | None]:
    """Return what run.json states about an engine's metrics page. A page may answer and not be understood."""
    return {
        "answered": state.answered_ns is not None,
        "understood": state.path is not None,
        "path": state.path,
        "names_of": state.engine,
        "reason": state.reason,
    }
