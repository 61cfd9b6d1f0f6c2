"""Energy read over HTTP, from beside the GPU: loadgen's sidecar, the simulated server, or a DCGM exporter.

A sidecar serves its change points with its own clock (`GET /energy?since=NS`). They are shifted to this machine's
clock, and the error of that is the samples' slack. Any other page is read as Prometheus text, where a value is only
known to have been true some time between two polls.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import NamedTuple

import msgspec

from loadgen.clock import monotonic_ns
from loadgen.energy.counter_track import CounterTrack
from loadgen.energy.meter import Reading
from loadgen.energy.series import EnergyDomain, EnergySample
from loadgen.errors import MeterError
from loadgen.http_get import HttpResponse, PageClient
from loadgen.units import mj_from_j, s_from_ns

FEED_POLL_S = 0.5
PAGE_POLL_S = 0.5
ALIGNING_REQUESTS = 4
"""Further requests when a feed is opened: the one with the shortest round trip gives the clock offset."""
DRIFT = 1e-4
"""Largest relative drift between two machines' clocks: it makes an old offset worth less than a new one."""
LOOPBACK = {"localhost", "127.0.0.1", "::1"}

LOADGEN_METRIC = "loadgen_gpu_energy_joules_total"
DCGM_METRIC = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"
DCGM_BLANK = 140737488355328.0
"""DCGM writes "no value" as a number from here on, integers from 9223372036854775792. In mJ: over 4 years of 1 kW."""


class ClockOffset:
    """This machine's clock minus the server's, from requests: the server's stamp lies between sent and received.

    The observation with the least error is kept: half its round trip, plus the drift of the clocks since. On loopback
    both read the same monotonic clock; when an observation agrees with that, the offset is exactly 0.
    """

    def __init__(self, *, loopback: bool) -> None:
        self._loopback = loopback
        self._observed_ns = 0
        self.offset_ns = 0
        self.error_ns: int | None = None
        """Half the round trip of the observation kept; 0 when the clock is known to be the same, None before any."""

    def observe(self, sent_ns: int, received_ns: int, server_ns: int) -> None:
        offset_ns = (sent_ns + received_ns) // 2 - server_ns
        error_ns = (received_ns - sent_ns + 1) // 2
        if self._loopback and sent_ns <= server_ns <= received_ns:
            offset_ns = error_ns = 0
        if self.error_ns is None or error_ns <= self.error_ns + DRIFT * (received_ns - self._observed_ns):
            self._observed_ns, self.offset_ns, self.error_ns = received_ns, offset_ns, error_ns


class _MonotoneSeries:
    """One remote domain's points, kept monotone across restarts of the server and small corrections of the clock."""

    def __init__(self) -> None:
        self._latest_ns: int | None = None
        self._latest_j = 0.0
        self._offset_j = 0.0
        """Server's joules + offset = the series. It changes when the server's count starts again."""
        self.resets = 0

    def observe(self, sample: EnergySample) -> EnergySample | None:
        """Return the point in the continued series; None if it was observed before."""
        if self._latest_ns is not None and sample.t_ns <= self._latest_ns:
            return None
        fell = self._latest_ns is not None and sample.joules < self._latest_j
        gap = fell or sample.gap
        self.resets += gap
        if fell:
            self._offset_j += self._latest_j - sample.joules
        self._latest_ns, self._latest_j = sample.t_ns, sample.joules
        return EnergySample(sample.t_ns, sample.domain, sample.joules + self._offset_j, sample.slack_ns, gap)


class FeedPage(msgspec.Struct):
    """The response to `GET /energy`. Instants are the server's; `now_ns` is when it wrote the page."""

    now_ns: int
    domains: list[EnergyDomain]
    samples: list[tuple[int, str, float]]
    """(t_ns, domain, joules) of each sample."""
    slack_ns: list[int] = []
    """Timestamp uncertainty of each sample; empty if all instants are exact."""
    gaps: list[bool] = []
    """True where the energy before a sample is unknown; empty if it is known everywhere."""
    simulated: bool = False


class EnergyFeed:
    """The change points of a sidecar or of the simulated server, unchanged but for the clock."""

    poll_s = FEED_POLL_S

    def __init__(self, connection: PageClient, opening: HttpResponse, chosen: Sequence[str] | None) -> None:
        self._connection = connection
        self.clock = ClockOffset(loopback=connection.hostname in LOOPBACK)
        self._since_ns = 0
        page = _decode(opening, connection.url)
        domains = page.domains
        if page.simulated:  # marked, so that they are never taken for a measurement
            domains = [
                d if "simulated" in d.source else msgspec.structs.replace(d, source=f"simulated {d.source}")
                for d in domains
            ]
        self.domains = _select(domains, chosen, connection.url)
        self._series = {domain.name: _MonotoneSeries() for domain in self.domains}
        self._latest = self._take(opening, page)
        for _ in range(ALIGNING_REQUESTS):
            self._latest += self._fetch()
        error_ms = (self.clock.error_ns or 0) / 1e6
        self.notes = [f"read from {connection.url}/energy, clocks aligned to {error_ms:.3f} ms"]

    def read(self) -> Reading:
        """Return the points since the previous read.

        The first read also returns the newest point from before the meter was opened: it covers the start of the run.
        """
        earlier_resets = self._resets()
        waiting, self._latest = self._latest, []
        samples = self._fetch()
        newest = {sample.domain: sample for sample in waiting}
        return Reading([*newest.values(), *samples], self._resets() - earlier_resets)

    def _fetch(self) -> list[EnergySample]:
        response = self._connection.get(f"/energy?since={self._since_ns}")
        return self._take(response, _decode(response, self._connection.url))

    def _take(self, response: HttpResponse, page: FeedPage) -> list[EnergySample]:
        self.clock.observe(response.sent_ns, response.received_ns, page.now_ns)
        if page.now_ns < self._since_ns:
            self._since_ns = 0
        samples = []
        error_ns = self.clock.error_ns or 0
        rows = zip(page.samples, page.slack_ns or repeat(0), page.gaps or repeat(False), strict=False)
        for (t_ns, name, joules), slack_ns, gap in rows:
            self._since_ns = max(self._since_ns, t_ns)
            if name in self._series:
                shifted = EnergySample(t_ns + self.clock.offset_ns, name, joules, slack_ns + error_ns, gap)
                sample = self._series[name].observe(shifted)
                samples += [] if sample is None else [sample]
        return samples

    def _resets(self) -> int:
        return sum(series.resets for series in self._series.values())


def _decode(response: HttpResponse, address: str) -> FeedPage:
    """Decode a page of the feed. Raises MeterError when the response is anything else."""
    if response.status != 200:
        raise MeterError(f"{address}/energy answers {response.status}")
    try:
        page = msgspec.json.decode(response.body, type=FeedPage)
    except msgspec.DecodeError as err:
        raise MeterError(f"{address}/energy is no energy feed of loadgen") from err
    if any(row and len(row) != len(page.samples) for row in (page.slack_ns, page.gaps)):
        raise MeterError(f"{address}/energy contradicts itself: slack_ns and gaps are not as many as samples")
    return page


def _select(domains: list[EnergyDomain], chosen: Sequence[str] | None, address: str) -> list[EnergyDomain]:
    """Return the domains that `chosen` names by index or by the beginning of the UUID; all when it is None."""
    if chosen is None:
        return domains
    names = {f"gpu:{token}" for token in chosen if token.isdecimal()}
    prefixes = tuple(token.lower() for token in chosen if not token.isdecimal())
    selected = [d for d in domains if d.name in names or (d.uuid is not None and d.uuid.lower().startswith(prefixes))]
    if not selected:
        present = ", ".join(d.name for d in domains) or "none"
        raise MeterError(f"{address} has no GPU {', '.join(chosen)}; it has {present}")
    return selected


class GpuCounter(NamedTuple):
    """The energy of one GPU on a Prometheus page."""

    domain: EnergyDomain
    millijoules: int


def page_counters(text: str) -> tuple[list[GpuCounter], list[str]]:
    """Return the energy counters of a page, loadgen's or DCGM's, each GPU once, and notes on what was left out.

    With MIG, DCGM repeats the whole GPU's joules on every slice's line: same UUID, so the first line stands for all.
    """
    counters: dict[str, GpuCounter] = {}
    notes: list[str] = []
    for name, labels, value in _energy_lines(text):
        gpu = f"gpu:{labels.get('gpu', '0')}"
        uuid = labels.get("uuid") or labels.get("UUID") or None
        if name == DCGM_METRIC and value >= DCGM_BLANK:
            notes.append(f"{gpu} is left out: DCGM has no value for it")
            continue
        if (key := uuid or gpu) in counters:
            notes.append(f"{gpu} is split by MIG: its lines repeat the whole GPU's joules, counted once")
            continue
        source = "dcgm" if name == DCGM_METRIC else "loadgen-sidecar"
        domain = EnergyDomain(name=gpu, source=source, uuid=uuid)
        counters[key] = GpuCounter(domain, round(value) if name == DCGM_METRIC else mj_from_j(value))
    return list(counters.values()), sorted(set(notes))


def _energy_lines(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield (name, labels, value) of each line that counts energy. Raises ValueError when the text is no such page."""
    from prometheus_client.parser import text_string_to_metric_families  # 20 ms that few runs need

    names = {metric.removesuffix("_total"): metric for metric in (LOADGEN_METRIC, DCGM_METRIC)}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            # The parser gives every counter's samples a "_total", DCGM's too, which have none on the page.
            metric = names.get(sample.name.removesuffix("_total"))
            if metric is not None and sample.value == sample.value:
                yield metric, sample.labels, sample.value


class PrometheusPage:
    """A Prometheus page that is polled: a counter's value was true some time between two polls."""

    def __init__(self, connection: PageClient, chosen: Sequence[str] | None) -> None:
        self._connection = connection
        counters, self.notes = self._counters(self._fetch())
        if not counters:
            raise MeterError(
                f"{connection.url}/metrics has neither {LOADGEN_METRIC} nor {DCGM_METRIC}"
                + "".join(f"; {note}" for note in self.notes)
            )
        present = [counter.domain for counter in counters]
        self._domains = {d.name: d for d in _select(present, chosen, connection.url)}
        self._tracks = {name: CounterTrack(name) for name in self._domains}
        self.notes += [
            f"read from {connection.url}/metrics: instants are as coarse as the refresh of the page "
            "(DCGM exporter: 30 s by default), so use it for totals of minutes, not single requests"
        ]

    poll_s = PAGE_POLL_S

    @property
    def domains(self) -> list[EnergyDomain]:
        return [
            EnergyDomain(name=d.name, source=d.source, uuid=d.uuid, period_s=self._tracks[d.name].period_s)
            for d in self._domains.values()
        ]

    def read(self) -> Reading:
        response = self._fetch()
        samples: list[EnergySample] = []
        resets_before = self._resets()
        counters = {counter.domain.name: counter for counter in self._counters(response)[0]}
        for name, track in self._tracks.items():
            if name in counters:
                sample = track.observe(response.sent_ns, response.received_ns, counters[name].millijoules)
                samples += [] if sample is None else [sample]
        missing = tuple(f"{name}: no longer on the page" for name in self._tracks if name not in counters)
        return Reading(samples, self._resets() - resets_before, missing)

    def _fetch(self) -> HttpResponse:
        answer = self._connection.get("/metrics")
        if answer.status != 200:
            raise MeterError(f"{self._connection.url}/metrics answers {answer.status}")
        return answer

    def _counters(self, response: HttpResponse) -> tuple[list[GpuCounter], list[str]]:
        try:
            return page_counters(response.body.decode())
        except ValueError as err:
            raise MeterError(f"{self._connection.url}/metrics is no Prometheus page") from err

    def _resets(self) -> int:
        return sum(track.resets for track in self._tracks.values())


class RemoteMeter:
    """The energy that a URL serves, as a feed or else as a Prometheus page. `gpus` selects some of its GPUs.

    Raises MeterError with the reasons of both attempts.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        gpus: Sequence[str] | None = None,
        clock: Callable[[], int] = monotonic_ns,
    ) -> None:
        self._connection = PageClient(url, token, clock)
        try:
            self._source = self._open(gpus)
        except BaseException:
            self._connection.close()
            raise

    def _open(self, gpus: Sequence[str] | None) -> "EnergyFeed | PrometheusPage":
        opening = self._connection.get("/energy?since=0")
        if opening.status in (401, 403):
            raise MeterError(f"{self._connection.url}/energy answers {opening.status}: it wants a token")
        try:
            _decode(opening, self._connection.url)
        except MeterError as no_feed:
            try:
                return PrometheusPage(self._connection, gpus)
            except MeterError as no_page:
                raise MeterError(f"{no_feed}; {no_page}") from no_page
        return EnergyFeed(self._connection, opening, gpus)

    @property
    def domains(self) -> list[EnergyDomain]:
        return self._source.domains

    @property
    def notes(self) -> list[str]:
        return self._source.notes

    @property
    def poll_s(self) -> float:
        return self._source.poll_s

    @property
    def clock_error_s(self) -> float | None:
        """Error of the samples' instants from the server's clock; None where they are no better than the polls."""
        if isinstance(self._source, PrometheusPage) or self._source.clock.error_ns is None:
            return None
        return s_from_ns(self._source.clock.error_ns)

    @property
    def clock_offset_s(self) -> float | None:
        """This machine's monotonic clock minus the server's; 0 when they are the same."""
        return None if isinstance(self._source, PrometheusPage) else s_from_ns(self._source.clock.offset_ns)

    def read(self) -> Reading:
        return self._source.read()

    def close(self) -> None:
        self._connection.close()
