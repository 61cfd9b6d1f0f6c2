"""What a meter is: something that says which domains it has, and how many joules each has used so far."""

from typing import NamedTuple, Protocol

from loadgen.energy.series import EnergyDomain, EnergySample


class MeterError(Exception):
    """A reading failed. The sampler counts it and tries again; the run goes on with a gap."""


class Reading(NamedTuple):
    """What one `read` saw: zero or more samples, oldest first, and how many counter resets it had to bridge."""

    samples: list[EnergySample]
    resets: int = 0


class EnergyMeter(Protocol):
    """One energy source. Blocking: it is called from the sampler's thread only, never from the event loop."""

    @property
    def domains(self) -> list[EnergyDomain]: ...

    @property
    def poll_s(self) -> float:
        """How often to read so that no move of the counter is missed."""
        ...

    def read(self) -> Reading:
        """Cumulative, monotone joules per domain, now. Raises MeterError when there is no answer."""
        ...

    def close(self) -> None: ...
