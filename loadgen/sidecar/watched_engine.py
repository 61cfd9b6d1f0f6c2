"""One engine that a sidecar watches: its ledger, and its counters."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from loadgen.clock import monotonic_ns
from loadgen.energy.named_engine import domains_of
from loadgen.sidecar.label_sets import ShownValues
from loadgen.sidecar.ledger import Ledger
from loadgen.telemetry.engine_metrics import EnginePoller, EngineState
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    from loadgen.energy.named_engine import NamedEngine
    from loadgen.energy.series import EnergyDomain
    from loadgen.sidecar.options import SidecarOptions

ENGINE_PERIOD_S = 0.25
"""Period of reading the engine's counters. They place other clients' requests: what began within a period and what was
there all along look the same, so a second would be too long beside requests of a second."""
ENGINE_AWAY_S = 5.0
"""An engine whose page did not answer for this long counts as away."""
MAX_ENGINE_SAMPLES = 1000
ROUTING_SHARE = 0.5
"""Share of the allowed lateness for which a span waits for its engine to be known. The ledgers of several engines wait
for as much longer."""


class EngineHealth(NamedTuple):
    """State of an engine's metrics page; None where no engine was named."""

    up: bool | None = None
    """True if the engine answered lately."""
    understood: bool | None = None
    """True if it did with a page whose names are known."""
    restarts: int | None = None
    metrics: str | None = None
    """Words about its counters; None without an answer."""


class WatchedEngine:
    """The ledger of one engine, and the thread that reads its counters."""

    def __init__(
        self, ledger: Ledger, domains: Sequence[EnergyDomain], url: str | None, named: NamedEngine | None
    ) -> None:
        """Raise MeterError when the URL is none. named: None where a sidecar has one engine, which needs no name."""
        self.ledger, self.domains, self.url, self._named = ledger, domains, url, named
        self.name = named.name if named else None
        self._samples: deque[Mapping[str, float]] = deque(maxlen=MAX_ENGINE_SAMPLES)
        self._newest: Mapping[str, float] = {}
        self._restarts = 0
        self.poller: EnginePoller | None = None
        if url is not None:
            self.poller = EnginePoller(url, self._samples.append, period_s=ENGINE_PERIOD_S, watch=True)

    def take_domains(self, domains: Sequence[EnergyDomain]) -> None:
        """Take its domains among the meter's, once its energy source has answered."""
        if not self.domains and self._named and (own := domains_of(self._named, domains)):
            self.domains = own
            self.ledger.take_domains(own)

    def take_counters(self) -> None:
        """Move the samples of its counters into its ledger."""
        for sample in drained(self._samples):
            self._restarts += sample.get("generation_tokens", 0.0) < self._newest.get("generation_tokens", 0.0)
            self._newest = sample
            self.ledger.add_engine_sample(sample)

    def health(self, now_ns: int) -> EngineHealth:
        if self.poller is None:
            return EngineHealth()
        state: EngineState = self.poller.state
        up = state.answered_ns is not None and now_ns - state.answered_ns < ENGINE_AWAY_S * NS_PER_S
        words = f"{state.engine}'s, at {state.path}" if state.path else state.reason or "none yet"
        return EngineHealth(up, up and state.path is not None, self._restarts, words if up else None)


def watched_engines(
    options: SidecarOptions, domains: Sequence[EnergyDomain], models: Sequence[str | None]
) -> list[WatchedEngine]:
    """Return the engines, each with a ledger of its own. Raises MeterError when a URL is none."""
    since_ns, shown = monotonic_ns(), ShownValues(options.stated_values)
    lateness = options.lateness
    if len(options.engines) > 1:
        lateness = replace(lateness, blind_s=min((1 + ROUTING_SHARE) * lateness.blind_s, lateness.max_s))
    watched: list[WatchedEngine] = []
    for named, model in zip(options.engines or (None,), models, strict=True):
        own = domains if named is None else domains_of(named, domains)
        url, role = (options.engine_url, None) if named is None else (named.url, named.role)
        ledger = Ledger(
            own, lateness=lateness, model=model, labels=options.labels, label_values=options.label_values,
            shown=shown, accounts=options.accounts, since_ns=since_ns, role=role,
        )  # fmt: skip
        watched.append(WatchedEngine(ledger, own, url, named))
    return watched


_Item = TypeVar("_Item")


def drained(queue: deque[_Item]) -> list[_Item]:
    """Remove and return the items in the queue. Other threads may append meanwhile."""
    return [queue.popleft() for _ in range(len(queue))]
