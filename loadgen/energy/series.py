"""Cumulative energy over time.

Every source ends up as the same thing: points (t, joules since the source was opened) that never go down. The meter
unwraps counters and integrates power, so that no reader downstream has to know which of the two it was.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadgen.units import MJ_PER_J, NS_PER_S, mj_from_j

LIMIT_CLOCKS = 0.6
"""Least share of lowered clocks in a window and its two neighbours, for the power limit to have held in it. An H200
counts them in steps of 100 ms, as its energy, and the two are read late by up to a step."""
LIMIT_POWER = (0.97, 1.03)
"""Least and greatest share of the limit in a window's mean power, for the limit to have held in it. Under bursts of
prefills H200s had windows of up to 840 W at a limit of 700 W: power is not constant in those."""

Scope: TypeAlias = Literal["accelerator", "host", "machine"]
"""accelerator: a GPU. host: CPU packages and memory. machine: what may contain both, such as a chassis, a plug, or a
sensor of unknown scope."""


class EnergyDomain(msgspec.Struct, frozen=True, kw_only=True):
    """A thing that has joules of its own, such as a GPU or a CPU package."""

    name: str
    """Examples: "gpu:0", "cpu:package-0", "dram:0", "machine:plug". One name is one counter through the whole run."""
    source: str
    """Origin of the joules, such as "nvml-counter", "nvml-power", "rapl", "hwmon-power", "simulated", "estimate"."""
    uuid: str | None = None
    """Identity of the GPU; None for what is no GPU, and where it is not known."""
    device: str | None = None
    """Model of the device, such as "NVIDIA H200"; None where the source does not name it."""
    period_s: float | None = None
    """Time between updates of the source; None until it is known."""
    within: str | None = None
    """The domain that contains this one. Never add the two."""
    limit_w: float | None = None
    """Power limit in force when the source was opened; None where it is not known."""


class EnergySample(msgspec.Struct, frozen=True, omit_defaults=True):
    """Cumulative `joules` at `t_ns`, counted from an arbitrary zero that does not change during the run."""

    t_ns: int
    """Instant on the monotonic clock of the client's host."""
    domain: str
    """Name of the domain in run.json."""
    joules: float
    """Cumulative energy, from an arbitrary zero."""
    slack_ns: int = 0
    """Timestamp uncertainty: the counter updated at t_ns +- slack_ns. Half the time between two polls, or a remote
    clock's error."""
    gap: bool = False
    """True if the energy since the previous sample is unknown (the counter restarted). `joules` then repeats the
    previous value, so that later differences are true, but the 0 between the two is no measurement."""
    capped_ns: int | None = None
    """Cumulative time, from an arbitrary zero, in which the power limit held the clocks down; None where the source
    does not count it."""
    sm_mhz: int | None = None
    """Clock of the GPU's multiprocessors when the update was read; None where it is not known."""


@dataclass(frozen=True)
class EnergySeries:
    """One domain's change points, in time order.

    t_ns: int64[n], strictly increasing. mj: int64[n], cumulative millijoules, never decreasing.
    slack_ns: int64[n], timestamp uncertainty of each point; None if all are exact.
    gap: bool[n], True where the energy since the previous point is unknown; None if it is known everywhere.
    capped_ns: int64[n], cumulative time in which the power limit held the clocks down; None if it is not known.
    limit_w: the power limit; None if it is not known.
    """

    domain: str
    t_ns: NDArray[np.int64]
    mj: NDArray[np.int64]
    slack_ns: NDArray[np.int64] | None = None
    gap: NDArray[np.bool_] | None = None
    capped_ns: NDArray[np.int64] | None = None
    limit_w: float | None = None

    def __len__(self) -> int:
        return len(self.t_ns)

    @property
    def total_mj(self) -> int:
        """Known energy between the first and the last point; 0 when there are fewer than two points."""
        return int(self.mj[-1] - self.mj[0]) if len(self) else 0

    @property
    def at_limit(self) -> NDArray[np.bool_] | None:
        """True for each window in which the power limit held, bool[n-1]; None where that is not known.

        The clocks must have been held down in and around the window, and its mean power must have been the limit.
        Lowered clocks alone do not say it: under a load of short bursts an H200 reports them all the time, at 70 % of
        its limit.
        """
        if self.capped_ns is None or self.limit_w is None or len(self) < 2:
            return None
        watts = np.diff(self.mj) / np.diff(self.t_ns) * NS_PER_S / MJ_PER_J
        before = np.maximum(np.arange(len(self) - 1) - 1, 0)
        after = np.minimum(np.arange(len(self) - 1) + 2, len(self) - 1)
        held_ns = self.capped_ns[after] - self.capped_ns[before]
        held = held_ns >= LIMIT_CLOCKS * (self.t_ns[after] - self.t_ns[before])
        least, greatest = LIMIT_POWER
        return np.asarray(held & (watts >= least * self.limit_w) & (watts <= greatest * self.limit_w))

    @property
    def unknown_ns(self) -> int:
        """Total length of the gaps, in which `total_mj` counts nothing."""
        return 0 if self.gap is None else int(np.diff(self.t_ns)[self.gap[1:]].sum())

    def energy_mj(self, start_ns: int, end_ns: int) -> float | None:
        """Return the millijoules in [start, end] by linear interpolation of the cumulative curve.

        None outside the series and across a gap.
        """
        if not self._covers(start_ns, end_ns):
            return None
        at_start, at_end = np.interp([start_ns, end_ns], self.t_ns, self.mj)
        return float(at_end - at_start)

    def uncertainty_mj(self, start_ns: int, end_ns: int) -> float | None:
        """Return the largest possible error of `energy_mj` of the same interval; None where that is None.

        It holds for a counter whose value is right when it updates. The true curve never goes down, so at an edge it
        lies between the last update that was certainly before the edge and the first that was certainly after it: one
        step of the counter, or two where the slack leaves open on which side of the edge an update is.
        """
        if not self._covers(start_ns, end_ns):
            return None
        return self._edge_mj(start_ns) + self._edge_mj(end_ns)

    def _edge_mj(self, t_ns: int) -> float:
        """Return the largest possible error of the interpolated curve at `t_ns`."""
        slack_ns = np.zeros_like(self.t_ns) if self.slack_ns is None else self.slack_ns
        lower = int(np.searchsorted(self.t_ns, t_ns, side="right")) - 1
        while lower > 0 and self.t_ns[lower] + slack_ns[lower] > t_ns:
            lower -= 1
        upper = int(np.searchsorted(self.t_ns, t_ns, side="left"))
        while upper < len(self) - 1 and self.t_ns[upper] - slack_ns[upper] < t_ns:
            upper += 1
        estimate = float(np.interp(t_ns, self.t_ns, self.mj))
        return max(estimate - float(self.mj[lower]), float(self.mj[upper]) - estimate)

    def _covers(self, start_ns: int, end_ns: int) -> bool:
        """Return True if [start, end] lies within the series and touches no gap."""
        if len(self) < 2 or start_ns < self.t_ns[0] or end_ns > self.t_ns[-1]:
            return False
        if self.gap is None:
            return True
        start = int(np.searchsorted(self.t_ns, start_ns, side="right"))
        end = int(np.searchsorted(self.t_ns, end_ns, side="left"))
        return not self.gap[start : end + 1].any()

    def clip(self, start_ns: int, end_ns: int) -> "EnergySeries":
        """Return the points that cover [start, end]: the last one before it, the first one after it, and all between.

        The series is cut at the counter's own updates, never inside a step, so every window stays an exact difference.
        """
        start = max(int(np.searchsorted(self.t_ns, start_ns, side="right")) - 1, 0)
        stop = int(np.searchsorted(self.t_ns, end_ns, side="left")) + 1
        return self.at(slice(start, stop))

    def at(self, points: slice | NDArray[np.bool_]) -> "EnergySeries":
        """Return the series of some of the points."""
        return replace(
            self,
            t_ns=self.t_ns[points],
            mj=self.mj[points],
            slack_ns=None if self.slack_ns is None else self.slack_ns[points],
            gap=None if self.gap is None else self.gap[points],
            capped_ns=None if self.capped_ns is None else self.capped_ns[points],
        )


def outermost(domains: Iterable[EnergyDomain]) -> list[EnergyDomain]:
    """Return the domains that lie within no other: those whose joules may be added."""
    return [domain for domain in domains if domain.within is None]


def scope(domain: EnergyDomain) -> Scope:
    """Return the part of a machine that the domain measures."""
    if domain.name.startswith("gpu:"):
        return "accelerator"
    name = domain.name.partition("@")[0]  # what follows it is the engine whose source has it, or a chip
    return "machine" if name == "psys" or name.startswith(("machine:", "module:", "sensor:")) else "host"


def accelerators(domains: Iterable[EnergyDomain]) -> list[EnergyDomain]:
    """Return the domains whose joules may be added and attributed to requests by their work.

    These are the GPUs. Where no meter has a GPU, the model runs on the CPU: they are the outermost of the host, or of
    all where no meter has the host alone. A plug or a chassis beside the host may contain it, and is not added.
    """
    domains = list(domains)
    outer = outermost(domains)
    return _outermost_of(domains, "accelerator") or [d for d in outer if scope(d) == "host"] or outer


def host_domains(domains: Iterable[EnergyDomain]) -> list[EnergyDomain]:
    """Return the domains of the host beside the GPUs whose joules may be added; none where no meter has a GPU."""
    domains = list(domains)
    return _outermost_of(domains, "host") if _outermost_of(domains, "accelerator") else []


def _outermost_of(domains: Sequence[EnergyDomain], kind: Scope) -> list[EnergyDomain]:
    """Return the domains of a scope that lie within no other of it. A wider one may contain them all."""
    inner = {domain.name for domain in domains if scope(domain) == kind}
    return [domain for domain in domains if domain.name in inner and domain.within not in inner]


def series_by_domain(samples: Iterable[EnergySample], domains: Iterable[EnergyDomain] = ()) -> dict[str, EnergySeries]:
    """Return one series per domain. Samples may alternate between domains, but each domain's are in time order.

    domains: say what is known of the sources, their power limits.

    Raises ValueError when the samples of a domain go back in time or in joules.
    """
    by_domain: dict[str, list[EnergySample]] = {}
    for sample in samples:
        by_domain.setdefault(sample.domain, []).append(sample)
    limits_w = {domain.name: domain.limit_w for domain in domains}
    series: dict[str, EnergySeries] = {}
    for domain, domain_samples in by_domain.items():
        rows = [(s.t_ns, mj_from_j(s.joules), s.slack_ns, s.gap) for s in domain_samples]
        t_ns, mj, slack_ns, gap = np.array(rows, dtype=np.int64).reshape(-1, 4).T
        if np.any(np.diff(t_ns) <= 0) or np.any(np.diff(mj) < 0):
            raise ValueError(f"energy samples of {domain} go back in time or in joules: the meter must prevent that")
        counted = [sample.capped_ns for sample in domain_samples]
        capped_ns = None if None in counted else np.array(counted, dtype=np.int64)
        series[domain] = EnergySeries(domain, t_ns, mj, slack_ns, gap.astype(np.bool_), capped_ns, limits_w.get(domain))
    return series
