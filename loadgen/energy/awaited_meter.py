"""The meter of an engine whose energy source does not answer yet, such as the sidecar of a host that still starts."""

import logging
from collections.abc import Callable

from loadgen.energy.meter import EnergyMeter, Reading
from loadgen.energy.series import EnergyDomain
from loadgen.errors import MeterError, NoAnswerError

_log = logging.getLogger(__name__)

AWAIT_S = 1.0
"""Time from one attempt to open a source to the next."""


class AwaitedMeter:
    """A source that each read tries to open, until one can. Before it has no domains: what it measures is unknown."""

    def __init__(self, name: str, opening: Callable[[], EnergyMeter]) -> None:
        """name: of the source, for messages. opening: opens it. Raises NoAnswerError while it does not answer, and
        MeterError if it cannot be used."""
        self._name, self._opening = name, opening
        self._meter: EnergyMeter | None = None
        self._refusal = ""

    @property
    def domains(self) -> list[EnergyDomain]:
        return self._meter.domains if self._meter else []

    @property
    def notes(self) -> list[str]:
        return self._meter.notes if self._meter else []

    @property
    def poll_s(self) -> float:
        return self._meter.poll_s if self._meter else AWAIT_S

    def read(self) -> Reading:
        if self._meter is None:
            try:
                self._meter = self._opening()
            except MeterError as err:
                if not isinstance(err, NoAnswerError) and str(err) != self._refusal:
                    self._refusal = str(err)
                    _log.warning("%s: %s; its energy is unknown", self._name, err)
                raise
            sources = ", ".join(f"{domain.name} ({domain.source})" for domain in self._meter.domains)
            _log.warning("%s: its energy source answers: %s", self._name, sources)
        return self._meter.read()

    def close(self) -> None:
        if self._meter is not None:
            self._meter.close()
