"""The protocol of an energy meter: it names its domains and reports the cumulative joules of each."""

from typing import NamedTuple, Protocol

from loadgen.energy.series import EnergyDomain, EnergySample

LONGEST_PAUSE_S = 1.0
"""Longest time between reads that fail one after the other, of meters that are read more often than that."""
LEFT_OUT = " is left out: "
"""The words of a note on a GPU that cannot be measured. Its joules are in no total."""


class Reading(NamedTuple):
    """The result of one `read`: zero or more samples, oldest first, and what failed for single domains."""

    samples: list[EnergySample]
    resets: int = 0
    """Counter restarts that this read detected."""
    errors: tuple[str, ...] = ()
    """One line per domain that gave no answer; the samples of the others are good."""
    throttled: tuple[tuple[str, str | None], ...] = ()
    """(domain, reason why its clocks are reduced or None) for the domains whose clocks this read checked."""


class EnergyMeter(Protocol):
    """One energy source. Its calls block: they are made from the sampler's thread only, never from the event loop."""

    @property
    def domains(self) -> list[EnergyDomain]: ...

    @property
    def notes(self) -> list[str]:
        """Provenance for people, a line each: averaging, gain, scope, what was left out and why."""
        ...

    @property
    def poll_s(self) -> float:
        """Time from the start of one read to the start of the next at which no update is missed. It changes."""
        ...

    def read(self) -> Reading:
        """Read the cumulative, monotone joules of each domain. Raises MeterError when there is no answer at all."""
        ...

    def close(self) -> None: ...


def pause_s(poll_s: float, failures: int) -> float:
    """Return the time from one read to the next: twice as long after each of `failures` in a row."""
    return min(poll_s * 2.0 ** min(failures, 10), max(LONGEST_PAUSE_S, poll_s))
