"""The requests and the energy samples of a profile's measurement: one server, and the meter beside it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loadgen import clock
from loadgen.client.openai_api import payload
from loadgen.energy.counter_clock import align_to_counter_clock
from loadgen.energy.series import EnergySample, series_by_domain
from loadgen.record import PATHS
from loadgen.units import NS_PER_S
from loadgen.workload.prompts import Vocabulary, draws_of

if TYPE_CHECKING:
    from loadgen.client.client import Client
    from loadgen.client.server_info import ServerInfo
    from loadgen.record import Endpoint, RequestRecord


@dataclass
class ProfilingSession:
    """A server, and the energy samples of the meter beside it."""

    client: Client
    server: ServerInfo
    endpoint: Endpoint
    vocabulary: Vocabulary
    seed: int
    samples: list[EnergySample] = field(default_factory=list)
    nested_domains: frozenset[str] = frozenset()
    """Energy domains that another domain includes, and the host's beside a GPU."""
    sent: int = 0

    async def request(self, input_tokens: int, output_tokens: int) -> RequestRecord:
        """Send one request with a prompt that no other request of this session has."""
        self.sent += 1
        index = self.sent
        prompt = self.vocabulary.prompt(input_tokens, draws_of(self.seed, index))
        body = payload(self.endpoint, self.server.model, prompt, output_tokens, self.server.dialect, {})
        return await self.client.post(
            PATHS[self.endpoint],
            body,
            index=index,
            workload="profile",
            scheduled_ns=clock.monotonic_ns(),
            request_id=f"loadgen-profile-{self.seed}-{index}",
        )

    def joules(self, start_ns: int, end_ns: int) -> float | None:
        """Return the energy of all domains that are measured; None if one of them does not cover the interval."""
        outer = [sample for sample in self.samples if sample.domain not in self.nested_domains]
        series = map(align_to_counter_clock, series_by_domain(outer).values())
        domain_mj = [one_domain.energy_mj(start_ns, end_ns) for one_domain in series]
        covered_mj = [mj for mj in domain_mj if mj is not None]
        return sum(covered_mj) / 1000 if covered_mj and len(covered_mj) == len(domain_mj) else None

    async def idle_w(self, seconds: float) -> float | None:
        """Measure idle power for `seconds`; None if the counter updates less than twice in that time."""
        if seconds <= 0:
            return None
        await asyncio.sleep(seconds)
        outer = [sample for sample in self.samples if sample.domain not in self.nested_domains]
        watts = [
            series.total_mj / 1000 / ((series.t_ns[-1] - series.t_ns[0]) / NS_PER_S)
            for series in series_by_domain(outer).values()
            if len(series) > 1
        ]
        return float(sum(watts)) if watts else None
