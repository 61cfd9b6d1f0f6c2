"""Energy read over HTTP, from beside the GPU: loadgen's sidecar, the simulated server, or a DCGM exporter.

A sidecar serves its change points with its own clock (`GET /energy?since=NS`); they are moved onto this machine's
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
DRIFT = 1e-4
"""Two machines' clocks part by at most this much: an old offset is worth less than a new one."""
LOOPBACK = {"localhost", "127.0.0.1", "::1"}

LOADGEN_METRIC = "loadgen_gpu_energy_joules_total"
DCGM_METRIC = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"
DCGM_BLANK = 140737488355328.0
"""DCGM writes "no value" as a number from here on, integers from 9223372036854775792. In mJ: over 4 years of 1 kW."""


class Clock:
    """This machine's clock minus the server's, from requests: the server's stamp lies between sent and received.

    Keeps the observation with the least error: half the round trip, plus what the clocks may have drifted since.
    On loopback both read the same monotonic clock; when an observation agrees with that, the offset is 0, exactly.
    """

    def __init__(self, *, loopback: bool) -> None:
        self._loopback = loopback
        self._at_ns = 0
        self.offset_ns = 0
        self.error_ns: int | None = None
        """Half the round trip of the observation kept; 0 when the clock is known to be the same, None before any."""

    def observe(self, sent_ns: int, received_ns: int, server_ns: int) -> None:
        offset_ns = (sent_ns + received_ns) // 2 - server_ns
        error_ns = (received_ns - sent_ns + 1) // 2
        if self._loopback and sent_ns <= server_ns <= received_ns:
            offset_ns = error_ns = 0
        if self.error_ns is None or error_ns <= self.error_ns + DRIFT * (received_ns - self._at_ns):
            self._at_ns, self.offset_ns, self.error_ns = received_ns, offset_ns, error_ns


class _Follow:
    """One remote domain's points, kept monotone across restarts of the server and small corrections of the clock."""

    def __init__(self) -> None:
        self._last_ns: int | None = None
        self._last_j = 0.0
        self._offset_j = 0.0
        """Server's joules + offset = the series; moves when the server's count starts again."""
        self.resets = 0

    def observe(self, sample: EnergySample) -> EnergySample | None:
        """The same point, continued; None for one that was seen before."""
        if self._last_ns is not None and sample.t_ns <= self._last_ns:
            return None
        fell = self._last_ns is not None and sample.joules < self._last_j
        gap = fell or sample.gap
        self.resets += gap
        if fell:
            self._offset_j += self._last_j - sample.joules
        self._last_ns, self._last_j = sample.t_ns, sample.joules
        return EnergySample(sample.t_ns, sample.domain, sample.joules + self._offset_j, sample.slack_ns, gap)


class FeedPage(msgspec.Struct):
    """What `GET /energy` answers. Instants are the server's; `now_ns` is when it wrote this."""

    now_ns: int
    domains: list[EnergyDomain]
    samples: list[tuple[int, str, float]]
    """t_ns, domain, joules."""
    slack_ns: list[int] = []
    """Of each sample; empty: the instants are exact."""
    gaps: list[bool] = []
    """Whether the energy before each sample is unknown; empty: none is."""
    simulated: bool = False


class Feed:
    """A sidecar's or the simulated server's change points, as they are."""

    poll_s = FEED_POLL_S

    def __init__(self, connection: PageClient, first: HttpResponse, chosen: Sequence[str] | None) -> None:
        self._connection = connection
        self.clock = Clock(loopback=connection.hostname in LOOPBACK)
        self._since_ns = 0
        page = _decode(first, connection.url)
        self.domains = _only([_labelled(d, page.simulated) for d in page.domains], chosen, connection.url)
        self._follow = {domain.name: _Follow() for domain in self.domains}
        self._latest = self._take(first, page)
        for _ in range(4):
            self._align()
        error_ms = (self.clock.error_ns or 0) / 1e6
        self.notes = [f"read from {connection.url}/energy, clocks aligned to {error_ms:.3f} ms"]

    def read(self) -> Reading:
        """The first read hands over the newest point that was there when the meter was opened: the run starts in it."""
        before = self._resets()
        waiting, self._latest = self._latest, []
        answer = self._connection.get(f"/energy?since={self._since_ns}")
        samples = self._take(answer, _decode(answer, self._connection.url))
        newest = {sample.domain: sample for sample in waiting}
        return Reading([*newest.values(), *samples], self._resets() - before)

    def _align(self) -> None:
        answer = self._connection.get(f"/energy?since={self._since_ns}")
        self._latest += self._take(answer, _decode(answer, self._connection.url))

    def _take(self, answer: HttpResponse, page: FeedPage) -> list[EnergySample]:
        self.clock.observe(answer.sent_ns, answer.received_ns, page.now_ns)
        if page.now_ns < self._since_ns:
            self._since_ns = 0
        samples = []
        error_ns = self.clock.error_ns or 0
        told = zip(page.samples, page.slack_ns or repeat(0), page.gaps or repeat(False), strict=False)
        for (t_ns, name, joules), slack_ns, gap in told:
            self._since_ns = max(self._since_ns, t_ns)
            if name in self._follow:
                here = EnergySample(t_ns + self.clock.offset_ns, name, joules, slack_ns + error_ns, gap)
                sample = self._follow[name].observe(here)
                samples += [] if sample is None else [sample]
        return samples

    def _resets(self) -> int:
        return sum(follow.resets for follow in self._follow.values())


def _decode(answer: HttpResponse, at: str) -> FeedPage:
    """Raises MeterError when the answer is something else than a feed."""
    if answer.status != 200:
        raise MeterError(f"{at}/energy answers {answer.status}")
    try:
        page = msgspec.json.decode(answer.body, type=FeedPage)
    except msgspec.DecodeError as err:
        raise MeterError(f"{at}/energy is no energy feed of loadgen") from err
    if any(row and len(row) != len(page.samples) for row in (page.slack_ns, page.gaps)):
        raise MeterError(f"{at}/energy contradicts itself: slack_ns and gaps are not as many as samples")
    return page


def _labelled(domain: EnergyDomain, simulated: bool) -> EnergyDomain:
    """A simulated joule must say so wherever it goes."""
    if not simulated or "simulated" in domain.source:
        return domain
    return msgspec.structs.replace(domain, source=f"simulated {domain.source}")


def _only(domains: list[EnergyDomain], chosen: Sequence[str] | None, at: str) -> list[EnergyDomain]:
    """Those that `chosen` names by index or by the beginning of the UUID; all when it is None."""
    if chosen is None:
        return domains
    kept = [d for d in domains if any(_names(token, d) for token in chosen)]
    if not kept:
        raise MeterError(f"{at} has no GPU {', '.join(chosen)}; it has {', '.join(d.name for d in domains) or 'none'}")
    return kept


def _names(token: str, domain: EnergyDomain) -> bool:
    if token.isdecimal():
        return domain.name == f"gpu:{token}"
    return domain.uuid is not None and domain.uuid.lower().startswith(token.lower())


class Counter(NamedTuple):
    """One GPU's line on a Prometheus page."""

    domain: EnergyDomain
    millijoules: int


def page_counters(text: str) -> tuple[list[Counter], list[str]]:
    """The energy counters of a page, loadgen's or DCGM's, each GPU once, and notes on what was left out.

    With MIG, DCGM repeats the whole GPU's joules on every slice's line: same UUID, so the first line stands for all.
    """
    counters: dict[str, Counter] = {}
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
        counters[key] = Counter(domain, round(value) if name == DCGM_METRIC else mj_from_j(value))
    return list(counters.values()), sorted(set(notes))


def _energy_lines(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """Name, labels and value of each line that counts energy. Raises ValueError when the text is no such page."""
    from prometheus_client.parser import text_string_to_metric_families  # 20 ms that few runs need

    names = {metric.removesuffix("_total"): metric for metric in (LOADGEN_METRIC, DCGM_METRIC)}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            # The parser gives every counter's samples a "_total", DCGM's too, which have none on the page.
            metric = names.get(sample.name.removesuffix("_total"))
            if metric is not None and sample.value == sample.value:
                yield metric, sample.labels, sample.value


class Page:
    """A Prometheus page, polled: the counter's value was true some time between two polls."""

    def __init__(self, connection: PageClient, chosen: Sequence[str] | None) -> None:
        self._connection = connection
        counters, self.notes = self._counters(self._fetch())
        if not counters:
            raise MeterError(
                f"{connection.url}/metrics has neither {LOADGEN_METRIC} nor {DCGM_METRIC}"
                + "".join(f"; {note}" for note in self.notes)
            )
        found = [counter.domain for counter in counters]
        self._domains = {d.name: d for d in _only(found, chosen, connection.url)}
        self._tracks = {name: CounterTrack(name) for name in self._domains}
        self.notes += [
            f"read from {connection.url}/metrics: moments are as coarse as the page is refreshed (DCGM exporter: 30 s "
            "unless told otherwise), so give it totals of minutes, not single requests"
        ]

    poll_s = PAGE_POLL_S

    @property
    def domains(self) -> list[EnergyDomain]:
        return [
            EnergyDomain(name=d.name, source=d.source, uuid=d.uuid, period_s=self._tracks[d.name].period_s)
            for d in self._domains.values()
        ]

    def read(self) -> Reading:
        answer = self._fetch()
        samples: list[EnergySample] = []
        resets_before = self._resets()
        counters = {counter.domain.name: counter for counter in self._counters(answer)[0]}
        for name, track in self._tracks.items():
            if name in counters:
                sample = track.observe(answer.sent_ns, answer.received_ns, counters[name].millijoules)
                samples += [] if sample is None else [sample]
        missing = tuple(f"{name}: no longer on the page" for name in self._tracks if name not in counters)
        return Reading(samples, self._resets() - resets_before, missing)

    def _fetch(self) -> HttpResponse:
        answer = self._connection.get("/metrics")
        if answer.status != 200:
            raise MeterError(f"{self._connection.url}/metrics answers {answer.status}")
        return answer

    def _counters(self, answer: HttpResponse) -> tuple[list[Counter], list[str]]:
        try:
            return page_counters(answer.body.decode())
        except ValueError as err:
            raise MeterError(f"{self._connection.url}/metrics is no Prometheus page") from err

    def _resets(self) -> int:
        return sum(track.resets for track in self._tracks.values())


class RemoteMeter:
    """Whatever energy there is at a URL. `gpus` picks some of its GPUs. Raises MeterError with both attempts' reasons.

    `clock_error_s` is how far the samples' times may be off because the server has a clock of its own; None where
    moments are no better than the polls.
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

    def _open(self, gpus: Sequence[str] | None) -> "Feed | Page":
        first = self._connection.get("/energy?since=0")
        if first.status in (401, 403):
            raise MeterError(f"{self._connection.url}/energy answers {first.status}: it wants a token")
        try:
            _decode(first, self._connection.url)
        except MeterError as no_feed:
            try:
                return Page(self._connection, gpus)
            except MeterError as no_page:
                raise MeterError(f"{no_feed}; {no_page}") from no_page
        return Feed(self._connection, first, gpus)

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
        if isinstance(self._source, Page) or self._source.clock.error_ns is None:
            return None
        return s_from_ns(self._source.clock.error_ns)

    @property
    def clock_offset_s(self) -> float | None:
        """This machine's monotonic clock minus the server's; 0 when they are the same."""
        return None if isinstance(self._source, Page) else s_from_ns(self._source.clock.offset_ns)

    def read(self) -> Reading:
        return self._source.read()

    def close(self) -> None:
        self._connection.close()
