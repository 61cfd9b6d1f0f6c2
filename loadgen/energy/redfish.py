"""Power or energy of a chassis, from its management controller over Redfish (DMTF DSP0268).

The address is that of the chassis: redfish+https://bmc/redfish/v1/Chassis/1. Its EnvironmentMetrics may have a counter
of joules or a power; older controllers have the resource Power. How often a controller measures, and over what time it
averages, no property says: the power serves for totals of minutes.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from loadgen.clock import monotonic_ns
from loadgen.energy.machine_track import MachineTrack
from loadgen.energy.meter import Reading
from loadgen.energy.remote import LOOPBACK, MAX_COUNT
from loadgen.energy.series import EnergyDomain
from loadgen.errors import MeterError
from loadgen.http_get import PageClient, basic
from loadgen.units import MJ_PER_J

SCHEME = "redfish+"
POLL_S = 2.0
USER, PASSWORD = "LOADGEN_REDFISH_USER", "LOADGEN_REDFISH_PASSWORD"
"""Environment variables of the credentials."""
UNVERIFIED = "verify=no"
"""Query of an address whose certificate is not to be verified."""
_TIMEOUT_S = 4.0
"""Controllers take seconds for an answer; the sampler takes a read of 5 s for a meter that has stopped answering."""
_MAX_GAP_S = 30.0
"""Longest time between two readings of a power over which it is integrated."""
_MAX_BYTES = 1 << 20


class Property(NamedTuple):
    """A number of a resource below the chassis."""

    resource: str
    path: tuple[str | int, ...]
    counts_energy: bool


PROPERTIES = (
    Property("EnvironmentMetrics", ("EnergyJoules", "Reading"), counts_energy=True),
    Property("EnvironmentMetrics", ("PowerWatts", "Reading"), counts_energy=False),
    Property("Power", ("PowerControl", 0, "PowerConsumedWatts"), counts_energy=False),
)
"""The first that a chassis has is read. EnergykWh is none of them: its steps are of minutes."""


class RedfishMeter:
    """The meter of one chassis. Raises MeterError unless it has one of the properties."""

    poll_s = POLL_S

    def __init__(
        self, url: str, *, environ: Mapping[str, str] = os.environ, clock: Callable[[], int] = monotonic_ns
    ) -> None:
        address, _, query = url.removeprefix(SCHEME).partition("?")
        if query not in ("", UNVERIFIED):
            raise MeterError(f"the query of a Redfish address is ?{UNVERIFIED} or none")
        self._client = PageClient(
            address, None, clock, headers=credentials(address, environ), timeout_s=_TIMEOUT_S,
            max_body_bytes=_MAX_BYTES, verify=not query,
        )  # fmt: skip
        try:
            self._property = self._find()
        except BaseException:
            self._client.close()
            raise
        mj_per_unit = MJ_PER_J if self._property.counts_energy else None
        self._track = MachineTrack(self._client.hostname, "redfish", mj_per_unit, poll_s=POLL_S, max_gap_s=_MAX_GAP_S)
        named = ".".join(map(str, self._property.path))
        self.notes = [
            f"{self._track.name} is {named} of {self._client.url}/{self._property.resource}, every {POLL_S:g} s"
        ]
        if query:
            self.notes.append(f"{self._track.name}: the certificate is not verified ({UNVERIFIED})")

    @property
    def domains(self) -> list[EnergyDomain]:
        return [self._track.domain]

    def read(self) -> Reading:
        sent_ns, received_ns, resource = self._get(self._property.resource)
        value = number_at(resource, self._property.path)
        if value is None:
            raise MeterError(f"{self._client.url}/{self._property.resource} has no value now")
        return self._track.reading(sent_ns, received_ns, value)

    def close(self) -> None:
        self._client.close()

    def _find(self) -> Property:
        """Return the first property that the chassis has."""
        reasons: list[str] = []
        resources: dict[str, Any] = {}
        for wanted in PROPERTIES:
            if wanted.resource not in resources:
                try:
                    resources[wanted.resource] = self._get(wanted.resource)[2]
                except MeterError as err:
                    resources[wanted.resource] = None
                    reasons.append(str(err))
            if number_at(resources[wanted.resource], wanted.path) is not None:
                return wanted
        missing = f"{self._client.url} has neither EnvironmentMetrics with a reading nor a Power.PowerControl"
        raise MeterError("; ".join([missing, *dict.fromkeys(reasons)]))

    def _get(self, resource: str) -> tuple[int, int, Any]:
        """Return when a resource was requested and received, and its JSON. Raises MeterError."""
        answer, address = self._client.get(f"/{resource}"), f"{self._client.url}/{resource}"
        if answer.status in (301, 308):  # some controllers' resources end in a slash
            answer = self._client.get(f"/{resource}/")
        if answer.status in (401, 403):
            raise MeterError(f"{address} answers {answer.status}: set {USER} and {PASSWORD}")
        if answer.status != 200:
            raise MeterError(f"{address} answers {answer.status}")
        try:
            return answer.sent_ns, answer.received_ns, msgspec.json.decode(answer.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
            raise MeterError(f"{address} is no JSON") from err


def number_at(resource: Any, path: tuple[str | int, ...]) -> float | None:
    """Return the number at a path of a resource; None where there is none, or one that is no energy or power."""
    for key in path:
        if isinstance(key, int):
            resource = resource[key] if isinstance(resource, list) and len(resource) > key else None
        else:
            resource = resource.get(key) if isinstance(resource, dict) else None
    if isinstance(resource, bool) or not isinstance(resource, int | float):
        return None
    return float(resource) if 0 <= resource < MAX_COUNT else None


def credentials(address: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the header of the environment's credentials. Raises MeterError where they would be sent in the clear."""
    try:
        parts = urlsplit(address)
    except ValueError as err:
        raise MeterError("the Redfish address has a malformed host") from err
    if parts.username is not None:
        raise MeterError(f"a Redfish address holds no password: set {USER} and {PASSWORD}")
    user = environ.get(USER)
    if not user:
        return {}
    if parts.scheme != "https" and (parts.hostname or "") not in LOOPBACK:
        raise MeterError(f"{USER} is sent over https only: write {SCHEME}https://")
    return {"Authorization": basic(user, environ.get(PASSWORD, ""))}
