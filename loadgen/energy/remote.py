"""Energy read over HTTP, from beside the GPU: loadgen's sidecar, the simulated server, or a DCGM exporter.

A sidecar serves its change points with its own clock (`GET /energy?since=NS`). They are shifted to this machine's
clock, and the error of that is the samples' slack. Any other page is read as Prometheus text, where a value is only
known to have been true some time between two polls.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Annotated, NamedTuple

import msgspec

from loadgen.clock import monotonic_ns
from loadgen.energy.counter_track import CounterTrack, ceiling_w, is_possible, is_rounding
from loadgen.energy.meter import LEFT_OUT, Reading
from loadgen.energy.series import EnergyDomain, EnergySample
from loadgen.errors import MeterError, NoAnswerError
from loadgen.http_get import HttpResponse, PageClient
from loadgen.units import MJ_PER_J, NS_PER_S, mj_from_j

if TYPE_CHECKING:
    from prometheus_client.samples import Sample

FEED_POLL_S = 0.5
PAGE_POLL_S = 0.5
ALIGNING_REQUESTS = 4
"""Further requests when a feed is opened: the one with the shortest round trip gives the clock offset."""
DRIFT = 1e-4
"""Largest relative drift between two machines' clocks: it makes an old offset worth less than a new one."""
MAX_DOMAINS = 1024
MAX_DOMAIN_TEXT = 200
"""Limit of each text about a domain; all are printable."""
MAX_AHEAD_NS = 10 * NS_PER_S
"""A sample may be as much later than its page: its instant may be that of a third machine's clock."""
LOOPBACK = {"localhost", "127.0.0.1", "::1"}

GATEWAY_STATUSES = (502, 503, 504)
"""Answers of a gateway whose server is away."""

LOADGEN_METRIC = "loadgen_gpu_energy_joules_total"
DCGM_METRIC = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"
DCGM_BLANK = 140737488355328.0
"""DCGM writes "no value" as a number from here on, integers from 9223372036854775792. In mJ: over 4 years of 1 kW."""


MAX_COUNT = 1e15
"""Above every count of energy, in joules and in millijoules: a gigawatt for 11 days."""


class ClockOffset:
    """This machine's clock minus the server's, from requests: the server's stamp lies between sent and received.

    The observation with the least error is kept: half its round trip, plus the drift of the clocks since. One that
    contradicts it is of another clock, that of a host that has booted or taken the place of the first. On loopback both
    read the same monotonic clock; when an observation agrees with that, the offset is exactly 0.
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
        if self.error_ns is not None:
            kept_error_ns = self.error_ns + DRIFT * (received_ns - self._observed_ns)
            is_other = abs(offset_ns - self.offset_ns) > kept_error_ns + error_ns
            if error_ns > kept_error_ns and not is_other:
                return
        self._observed_ns, self.offset_ns, self.error_ns = received_ns, offset_ns, error_ns


class _MonotoneSeries:
    """One remote domain's points, kept monotone across restarts of the server and small corrections of the clock."""

    def __init__(self, domain: str) -> None:
        self._max_w = ceiling_w(domain)
        self._latest: EnergySample | None = None
        """The newest point, with the joules that the server sent."""
        self._offset_j = 0.0
        """Server's joules + offset = the series. It changes when the server's count starts again or jumps."""
        self.resets = 0

    def observe(self, sample: EnergySample) -> EnergySample | None:
        """Return the point in the continued series; None if it was observed before."""
        latest = self._latest
        gap = sample.gap
        if latest is not None:
            if sample.t_ns <= latest.t_ns:
                return None
            if is_rounding(latest.joules, sample.joules):
                sample = msgspec.structs.replace(sample, joules=latest.joules)
            elapsed_ns = sample.t_ns + sample.slack_ns - (latest.t_ns - latest.slack_ns)
            if not is_possible((sample.joules - latest.joules) * MJ_PER_J, elapsed_ns, self._max_w):
                gap = True
                self._offset_j += latest.joules - sample.joules
        self.resets += gap
        self._latest = sample
        return msgspec.structs.replace(sample, joules=sample.joules + self._offset_j, gap=gap)


_Instant = Annotated[int, msgspec.Meta(ge=-(2**62), le=2**62)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
_Joules = Annotated[float, msgspec.Meta(ge=0, le=1e15)]
"""Up to 30 years of a gigawatt: its millijoules are an int64."""


class FeedPage(msgspec.Struct):
    """The response to `GET /energy`. Instants are the server's; `now_ns` is when it wrote the page."""

    now_ns: _Instant
    domains: list[EnergyDomain]
    samples: list[tuple[_Instant, str, _Joules]]
    """(t_ns, domain, joules) of each sample."""
    slack_ns: list[_Count] = []
    """Timestamp uncertainty of each sample; empty if all instants are exact."""
    gaps: list[bool] = []
    """True where the energy before a sample is unknown; empty if it is known everywhere."""
    capped_ns: list[_Count | None] = []
    """`capped_ns` of each sample; empty if it is not known."""
    sm_mhz: list[_Count | None] = []
    """`sm_mhz` of each sample; empty if it is not known."""
    simulated: bool = False


class EnergyFeed:
    """The change points of a sidecar or of the simulated server, unchanged but for the clock."""

    poll_s = FEED_POLL_S

    def __init__(
        self, connection: PageClient, opening: HttpResponse, page: FeedPage, chosen: Sequence[str] | None
    ) -> None:
        self._connection = connection
        self.clock = ClockOffset(loopback=connection.hostname in LOOPBACK)
        self._since_ns = 0
        domains = page.domains
        if page.simulated:  # marked, so that they are never taken for a measurement
            domains = [
                d if "simulated" in d.source else msgspec.structs.replace(d, source=f"simulated {d.source}")
                for d in domains
            ]
        self.domains = _select(domains, chosen, connection.url)
        self._series = {domain.name: _MonotoneSeries(domain.name) for domain in self.domains}
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

    def close(self) -> None:
        self._connection.close()

    def _fetch(self) -> list[EnergySample]:
        response = self._connection.get(f"/energy?since={self._since_ns}")
        return self._take(response, _decode(response, self._connection.url))

    def _take(self, response: HttpResponse, page: FeedPage) -> list[EnergySample]:
        self.clock.observe(response.sent_ns, response.received_ns, page.now_ns)
        if page.now_ns < self._since_ns:
            self._since_ns = 0
        samples = []
        error_ns = self.clock.error_ns or 0
        columns = (
            page.slack_ns or repeat(0),
            page.gaps or repeat(False),
            page.capped_ns or repeat(None),
            page.sm_mhz or repeat(None),
        )
        for (t_ns, name, joules), slack_ns, gap, capped_ns, sm_mhz in zip(page.samples, *columns, strict=False):
            self._since_ns = max(self._since_ns, t_ns)
            if name in self._series:
                shifted = EnergySample(
                    t_ns + self.clock.offset_ns, name, joules, slack_ns + error_ns, gap, capped_ns, sm_mhz
                )
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
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise MeterError(f"{address}/energy is no energy feed of loadgen") from err
    for name in ("slack_ns", "gaps", "capped_ns", "sm_mhz"):
        if (row := getattr(page, name)) and len(row) != len(page.samples):
            raise MeterError(f"{address}/energy contradicts itself: its {name} are not as many as its samples")
    if any(t_ns > page.now_ns + MAX_AHEAD_NS for t_ns, *_ in page.samples):  # the true ones would be older than it
        raise MeterError(f"{address}/energy contradicts itself: a sample is later than its page")
    if len({domain.name for domain in page.domains}) < len(page.domains):
        raise MeterError(f"{address}/energy contradicts itself: two of its domains have the same name")
    return page


def _select(domains: list[EnergyDomain], chosen: Sequence[str] | None, address: str) -> list[EnergyDomain]:
    """Return the GPUs that `chosen` names by index or by the beginning of the UUID, and what is no GPU; all when it is
    None. Raises MeterError when a GPU is not there, or the server's domains are beyond all bounds."""
    if len(domains) > MAX_DOMAINS:
        raise MeterError(f"{address} has {len(domains):,} domains; {MAX_DOMAINS:,} are the most")
    if not all(map(_is_plain, domains)):
        raise MeterError(f"{address} has a domain whose name is no line of {MAX_DOMAIN_TEXT} printable characters")
    if chosen is None:
        return domains
    names = {f"gpu:{token}" for token in chosen}
    prefixes = tuple(token.lower() for token in chosen if not token.isdecimal())
    selected = [d for d in domains if d.name in names or (d.uuid is not None and d.uuid.lower().startswith(prefixes))]
    if not selected:
        present = ", ".join(d.name for d in domains) or "none"
        raise MeterError(f"{address} has no GPU {', '.join(chosen)}; it has {present}")
    return [d for d in domains if d in selected or not d.name.startswith("gpu:")]


def _is_plain(domain: EnergyDomain) -> bool:
    texts = (domain.name, domain.source, domain.uuid, domain.device, domain.within)
    return bool(domain.name) and all(
        len(text) <= MAX_DOMAIN_TEXT and text.isprintable() for text in texts if text is not None
    )


class GpuCounter(NamedTuple):
    """The energy of one GPU on a Prometheus page. `key` is the same on every page of this server."""

    key: tuple[str, ...]
    domain: EnergyDomain
    millijoules: int


_HOST_LABELS = ("Hostname", "hostname", "node", "host", "instance")
_SAMPLE_LINE = re.compile(r"\s*(#|[a-zA-Z_:][a-zA-Z0-9_:]*\s*(\{.*\})?\s+[-+0-9.a-zA-Z]+(\s+-?[0-9]+)?\s*$)", re.ASCII)


def page_counters(text: str) -> tuple[list[GpuCounter], list[str]]:
    """Return the energy counters of a page, loadgen's or DCGM's, each GPU once, and notes on what was left out.

    With MIG, DCGM repeats the whole GPU's joules on every slice's line: same UUID, so the first line stands for all.
    A line that cannot be read costs only itself. Raises ValueError when the text is no Prometheus page at all.
    """
    rows: dict[tuple[str, ...], tuple[str, dict[str, str], int]] = {}
    notes: list[str] = []
    for number, metric, labels, value in _energy_lines(text):
        index = labels.get("gpu", "0")
        if value is None:
            notes.append(f"line {number} of the page{LEFT_OUT}it cannot be read")
        elif metric == DCGM_METRIC and value >= DCGM_BLANK:
            notes.append(f"gpu:{index}{LEFT_OUT}DCGM has no value for it")
        elif not 0 <= value < MAX_COUNT:
            notes.append(f"gpu:{index}{LEFT_OUT}{value:g} is no count of energy")
        elif (key := _gpu_key(labels)) in rows:
            slices = "GPU_I_ID" in labels
            notes.append(
                f"gpu:{index} is split by MIG: its lines repeat the whole GPU's joules, counted once"
                if slices
                else f"gpu:{index} is there twice: its first line counts"
            )
        else:
            rows[key] = metric, labels, round(value) if metric == DCGM_METRIC else mj_from_j(value)
    names = _names({key: labels for key, (_, labels, _) in rows.items()})
    counters = []
    for key, (metric, labels, millijoules) in rows.items():
        source = "dcgm" if metric == DCGM_METRIC else "loadgen-sidecar"
        model = labels.get("modelName") or None
        domain = EnergyDomain(name=names[key], source=source, uuid=_uuid(labels) or None, device=model)
        counters.append(GpuCounter(key, domain, millijoules))
    return counters, sorted(set(notes))


def _energy_lines(text: str) -> Iterator[tuple[int, str, dict[str, str], float | None]]:
    """Yield (line number, metric, labels, value) of each line that counts energy; None for a value without meaning."""
    lines = text.split("\n")
    if text.strip() and not any(_SAMPLE_LINE.match(line) for line in lines):
        raise ValueError("not a line of it is Prometheus text")
    for number, line in enumerate(lines, 1):
        metric = next((name for name in (LOADGEN_METRIC, DCGM_METRIC) if line.lstrip().startswith(name)), None)
        if metric is None:
            continue
        if (sample := sample_of(line)) is None:
            yield number, metric, {}, None
        elif sample.name == metric:
            yield number, metric, sample.labels, sample.value


def sample_of(line: str) -> "Sample | None":
    """Return the sample of a line of Prometheus text; None if it cannot be read."""
    from prometheus_client.parser import text_string_to_metric_families  # 20 ms that few runs need

    try:
        [family] = text_string_to_metric_families(line.strip() + "\n")
        [sample] = family.samples
    except (ValueError, IndexError, KeyError):
        return None
    return sample


def _uuid(labels: Mapping[str, str]) -> str:
    return labels.get("uuid") or labels.get("UUID") or ""


def _host(labels: Mapping[str, str]) -> str:
    return next((labels[name] for name in _HOST_LABELS if labels.get(name)), "")


def _gpu_key(labels: Mapping[str, str]) -> tuple[str, ...]:
    """Return what tells this GPU from all others: its UUID, or else its host and number."""
    return (uuid,) if (uuid := _uuid(labels)) else (_host(labels), labels.get("gpu", "0"))


def _names(gpus: Mapping[tuple[str, ...], Mapping[str, str]]) -> dict[tuple[str, ...], str]:
    """Return the domain name of every GPU: gpu:0, and gpu:0@HOST or gpu:0@UUID where several have that number."""
    by_index: dict[str, list[tuple[str, ...]]] = {}
    for key, labels in gpus.items():
        by_index.setdefault(labels.get("gpu", "0"), []).append(key)
    names = {}
    for index, keys in by_index.items():
        hosts = {_host(gpus[key]) for key in keys}
        for key in keys:
            owner = _host(gpus[key]) if len(hosts) == len(keys) else "/".join(key)
            names[key] = f"gpu:{index}" if len(keys) == 1 else f"gpu:{index}@{owner}"
    return names


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
        selected = _select([counter.domain for counter in counters], chosen, connection.url)
        self._domains = {counter.key: counter.domain for counter in counters if counter.domain in selected}
        self._tracks = {key: CounterTrack(domain.name) for key, domain in self._domains.items()}
        if chosen is not None:  # each of them is there: what is left out is another
            self.notes = [note for note in self.notes if LEFT_OUT not in note]
        self.notes += [
            f"read from {connection.url}/metrics: instants are as coarse as the refresh of the page "
            "(DCGM exporter: 30 s by default), so use it for totals of minutes, not single requests"
        ]

    poll_s = PAGE_POLL_S

    @property
    def domains(self) -> list[EnergyDomain]:
        return [
            msgspec.structs.replace(domain, period_s=self._tracks[key].period_s)
            for key, domain in self._domains.items()
        ]

    def read(self) -> Reading:
        response = self._fetch()
        samples: list[EnergySample] = []
        resets_before = self._resets()
        counters = {counter.key: counter for counter in self._counters(response)[0]}
        for key, track in self._tracks.items():
            if key in counters:
                sample = track.observe(response.sent_ns, response.received_ns, counters[key].millijoules)
                samples += [] if sample is None else [sample]
        missing = tuple(
            f"{track.domain}: no longer on the page" for key, track in self._tracks.items() if key not in counters
        )
        return Reading(samples, self._resets() - resets_before, missing)

    def close(self) -> None:
        self._connection.close()

    def _fetch(self) -> HttpResponse:
        answer = self._connection.get("/metrics")
        if answer.status != 200:
            raise MeterError(f"{self._connection.url}/metrics answers {answer.status}")
        return answer

    def _counters(self, response: HttpResponse) -> tuple[list[GpuCounter], list[str]]:
        try:
            return page_counters(response.body.decode(errors="replace"))
        except ValueError as err:
            raise MeterError(f"{self._connection.url}/metrics is no Prometheus page") from err

    def _resets(self) -> int:
        return sum(track.resets for track in self._tracks.values())


def open_remote(
    url: str,
    *,
    token: str | None = None,
    gpus: Sequence[str] | None = None,
    clock: Callable[[], int] = monotonic_ns,
) -> EnergyFeed | PrometheusPage:
    """Open the meter of the energy that a URL serves, as a feed or else as a Prometheus page. `gpus` selects some GPUs.

    Raises MeterError with the reasons of both attempts, and NoAnswerError where there is no server.
    """
    connection = PageClient(url, token, clock)
    try:
        opening = connection.get("/energy?since=0")
        if opening.status in (401, 403):
            raise MeterError(f"{connection.url}/energy answers {opening.status}: set LOADGEN_ENERGY_TOKEN to its token")
        if opening.status in GATEWAY_STATUSES:
            raise NoAnswerError(f"{connection.url}/energy answers {opening.status}")
        try:
            page = _decode(opening, connection.url)
        except MeterError as no_feed:
            try:
                return PrometheusPage(connection, gpus)
            except MeterError as no_page:
                raise MeterError(f"{no_feed}; {no_page}") from no_page
        return EnergyFeed(connection, opening, page, gpus)
    except BaseException:
        connection.close()
        raise
