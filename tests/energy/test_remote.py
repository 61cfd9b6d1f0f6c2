"""Energy over HTTP, from a real server on loopback that says what the test wants."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.clock import monotonic_ns
from loadgen.energy.choose import open_meter
from loadgen.energy.meter import LEFT_OUT
from loadgen.energy.remote import ClockOffset, EnergyFeed, PrometheusPage, open_remote, page_counters
from loadgen.energy.series import series_by_domain
from loadgen.errors import LoadgenError, MeterError
from loadgen.http_get import base_path
from loadgen.units import NS_PER_S
from support.energy_windows import windows_of
from support.fake_api import BurstServer
from support.served_in_thread import serving

DCGM = (Path(__file__).parents[1] / "fixtures" / "dcgm.txt").read_text()
Answer = tuple[int, bytes]


class Site:
    """A server whose pages are functions of the query."""

    def __init__(self) -> None:
        self.pages: dict[str, Callable[[dict[str, list[str]]], Answer]] = {}
        self.headers: list[dict[str, str]] = []
        self.connections: set[tuple[str, int]] = set()
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                url = urlsplit(self.path)
                site.headers.append(dict(self.headers))
                site.connections.add(self.client_address)
                page = site.pages.get(url.path)
                status, body = page(parse_qs(url.query)) if page else (404, b"no such page")
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = BurstServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def site() -> Iterator[Site]:
    served = Site()
    with serving(served.http):
        yield served


class Gpu:
    """A sidecar's page: a point for every call of `move`, stamped with a clock that is `ahead_ns` of ours."""

    def __init__(self, site: Site, ahead_ns: int = 0, simulated: bool = True) -> None:
        self.ahead_ns = ahead_ns
        self.simulated = simulated
        self.points: list[tuple[int, str, float]] = []
        site.pages["/energy"] = self.page

    def now_ns(self) -> int:
        return monotonic_ns() + self.ahead_ns

    def move(self, joules: float) -> int:
        """Returns when, by this machine's clock."""
        self.points.append((self.now_ns(), "gpu:0", joules))
        return self.points[-1][0] - self.ahead_ns

    def page(self, query: dict[str, list[str]]) -> Answer:
        since_ns = int(query["since"][0])
        page = {
            "simulated": self.simulated,
            "now_ns": self.now_ns(),
            "anchor": {"wall_ns": 0, "monotonic_ns": 0},
            "domains": [{"name": "gpu:0", "source": "nvml-counter", "uuid": "GPU-1", "period_s": 0.1}],
            "samples": [point for point in self.points if point[0] > since_ns],
        }
        return 200, json.dumps(page).encode()


Remote = Callable[..., EnergyFeed | PrometheusPage]


@pytest.fixture
def remote() -> Iterator[Remote]:
    """`open_remote`, closed in the end."""
    with ExitStack() as opened:

        def open_it(url: str, **options: Any) -> EnergyFeed | PrometheusPage:
            meter = open_remote(url, **options)
            opened.callback(meter.close)
            return meter

        yield open_it


def test_a_feeds_points_arrive_once_each_as_they_are(site: Site, remote: Remote) -> None:
    gpu = Gpu(site)
    old = [gpu.move(1.0), gpu.move(2.0)]
    meter = remote(site.url)
    new = [gpu.move(3.5), gpu.move(4.0)]
    samples = [*meter.read().samples, *meter.read().samples]
    assert [(s.t_ns, s.joules) for s in samples] == [(old[1], 2.0), (new[0], 3.5), (new[1], 4.0)]
    assert isinstance(meter, EnergyFeed) and meter.clock.offset_ns == meter.clock.error_ns == 0
    meter.close()
    assert len(site.connections) == 1


def test_what_is_simulated_says_so(site: Site, remote: Remote) -> None:
    Gpu(site, simulated=True)
    assert [d.source for d in remote(site.url).domains] == ["simulated nvml-counter"]
    Gpu(site, simulated=False)
    [domain] = remote(site.url).domains
    assert (domain.source, domain.uuid, domain.period_s) == ("nvml-counter", "GPU-1", 0.1)


@pytest.mark.parametrize("ahead_ns", [10**12, -(10**8), 3 * 10**15])
def test_another_machines_clock_is_ours_within_the_stated_error(site: Site, remote: Remote, ahead_ns: int) -> None:
    gpu = Gpu(site, ahead_ns)
    meter = remote(site.url)
    moved_ns = gpu.move(5.0)
    [sample] = meter.read().samples
    assert isinstance(meter, EnergyFeed) and meter.clock.error_ns is not None and 0 < meter.clock.error_ns < NS_PER_S
    assert abs(sample.t_ns - moved_ns) <= sample.slack_ns


@given(st.integers(-(10**15), 10**15), st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)), min_size=1))
def test_the_offset_is_right_within_its_error(ahead_ns: int, trips: list[tuple[int, int]]) -> None:
    clock, now_ns = ClockOffset(loopback=False), 0
    for there_ns, back_ns in trips:
        clock.observe(now_ns, now_ns + there_ns + back_ns, now_ns + there_ns + ahead_ns)
        now_ns += there_ns + back_ns
    assert clock.error_ns is not None
    assert abs(clock.offset_ns + ahead_ns) <= clock.error_ns


@given(jump_ns=st.integers(NS_PER_S, 10**15), ahead=st.sampled_from([-1, 1]), trip_ns=st.integers(2, NS_PER_S // 4))
def test_another_clock_at_the_same_address_is_taken_at_once(jump_ns: int, ahead: int, trip_ns: int) -> None:
    clock = ClockOffset(loopback=False)
    clock.observe(0, 100_000, 50_000)
    clock.observe(NS_PER_S, NS_PER_S + trip_ns, NS_PER_S + trip_ns // 2 + ahead * jump_ns)
    assert clock.error_ns is not None
    assert abs(clock.offset_ns + ahead * jump_ns) <= clock.error_ns


def test_a_server_that_starts_again_leaves_a_gap(site: Site, remote: Remote) -> None:
    gpu = Gpu(site)
    gpu.move(100.0)
    meter = remote(site.url)
    gpu.move(110.0)
    meter.read()
    gpu.points.clear()
    gpu.move(1.0)
    gpu.move(3.0)
    reading = meter.read()
    assert reading.resets == 1
    assert [(s.joules, s.gap) for s in reading.samples] == [(110.0, True), (112.0, False)]


def test_a_dcgm_page_gives_each_gpu_once_and_no_blanks() -> None:
    counters, notes = page_counters(DCGM)
    assert {c.domain.device for c in counters} == {"NVIDIA H200"}
    assert [(c.domain.name, c.domain.source, c.millijoules) for c in counters] == [
        ("gpu:0", "dcgm", 1218367925341),
        ("gpu:1", "dcgm", 887654321000),
    ]
    assert notes == [
        "gpu:1 is split by MIG: its lines repeat the whole GPU's joules, counted once",
        "gpu:2 is left out: DCGM has no value for it",
        "gpu:3 is left out: DCGM has no value for it",
    ]


@pytest.mark.parametrize(("gpus", "left_out"), [(None, ["gpu:2", "gpu:3"]), (["GPU-5c0ffee0"], [])])
def test_a_gpu_that_was_not_chosen_is_not_left_out(
    gpus: list[str] | None, left_out: list[str], site: Site, remote: Remote
) -> None:
    site.pages["/metrics"] = lambda _: (200, DCGM.encode())
    notes = remote(f"{site.url}/metrics", gpus=gpus).notes
    assert [note.partition(LEFT_OUT)[0] for note in notes if LEFT_OUT in note] == left_out
    assert any("read from" in note for note in notes)


def test_a_dcgm_page_is_polled_for_its_moves(site: Site, remote: Remote) -> None:
    value = 1218367925341
    site.pages["/metrics"] = lambda _: (200, DCGM.replace("1218367925341", str(value)).encode())
    meter = remote(f"{site.url}/metrics", gpus=["GPU-5c0ffee0"])
    assert [d.name for d in meter.domains] == ["gpu:0"]
    assert meter.read().samples == []
    before_ns, value = monotonic_ns(), value + 30_000
    [first] = meter.read().samples
    value += 12_500
    [second] = meter.read().samples
    assert second.joules - first.joules == pytest.approx(12.5, abs=1e-3)
    assert first.t_ns - first.slack_ns <= before_ns <= first.t_ns + first.slack_ns
    assert isinstance(meter, PrometheusPage)


def test_a_counter_on_a_page_that_restarts_is_counted(site: Site, remote: Remote) -> None:
    values = iter([50.0, 50.0, 51.0, 0.0, 2.0, 5.0])
    line = 'loadgen_gpu_energy_joules_total{{gpu="0",uuid="GPU-1"}} {}\n'
    site.pages["/metrics"] = lambda _: (200, line.format(next(values)).encode())
    meter = remote(f"{site.url}/v1")
    readings = [meter.read() for _ in range(5)]
    assert sum(reading.resets for reading in readings) == 1
    [series] = series_by_domain([s for reading in readings for s in reading.samples]).values()
    assert series.mj.tolist() == [51_000, 51_000, 54_000]
    assert [w.known for w in windows_of(series)] == [False, True]


PAGE_LINE = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{{}}} {}\n"
OWN_LINE = "loadgen_gpu_energy_joules_total{{{}}} {}\n"
GPU_0 = 'gpu="0",UUID="GPU-a",Hostname="h1"'

# name: the page, the domains with their millijoules, words of the notes
PAGES: dict[str, tuple[str, dict[str, int], list[str]]] = {
    "two hosts": (
        PAGE_LINE.format(GPU_0, 5) + PAGE_LINE.format('gpu="0",UUID="GPU-b",Hostname="h2"', 7),
        {"gpu:0@h1": 5, "gpu:0@h2": 7},
        [],
    ),
    "two hosts without UUIDs": (
        PAGE_LINE.format('gpu="0",Hostname="h1"', 5) + PAGE_LINE.format('gpu="0",Hostname="h2"', 7),
        {"gpu:0@h1": 5, "gpu:0@h2": 7},
        [],
    ),
    "two UUIDs of one host": (
        PAGE_LINE.format(GPU_0, 5) + PAGE_LINE.format('gpu="0",UUID="GPU-b",Hostname="h1"', 7),
        {"gpu:0@GPU-a": 5, "gpu:0@GPU-b": 7},
        [],
    ),
    "two numbers of two hosts": (
        PAGE_LINE.format(GPU_0, 5) + PAGE_LINE.format('gpu="1",UUID="GPU-b",Hostname="h2"', 7),
        {"gpu:0": 5, "gpu:1": 7},
        [],
    ),
    "one GPU twice": (PAGE_LINE.format(GPU_0, 5) * 2, {"gpu:0": 5}, ["gpu:0 is there twice"]),
    "a line without a value": (
        PAGE_LINE.format(GPU_0, 5) + "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION\n",
        {"gpu:0": 5},
        ["line 2 of the page is left out"],
    ),
    "a line with an open quote": (
        'DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{gpu="1} 4\n' + PAGE_LINE.format(GPU_0, 5),
        {"gpu:0": 5},
        ["line 1 of the page is left out"],
    ),
    "a bad line of another metric": ("broken{ 1\n" + PAGE_LINE.format(GPU_0, 5), {"gpu:0": 5}, []),
    "another metric whose name begins the same": (
        PAGE_LINE.format(GPU_0, 5) + 'DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION_RATE{gpu="1"} 4\n',
        {"gpu:0": 5},
        [],
    ),
    "an exponent": (PAGE_LINE.format(GPU_0, "1.218367925341e+12"), {"gpu:0": 1218367925341}, []),
    "joules with an exponent": (OWN_LINE.format('gpu="0",uuid="GPU-a"', "1.5e3"), {"gpu:0": 1_500_000}, []),
    "a time stamp": (PAGE_LINE.format(GPU_0, "5 1764350000000"), {"gpu:0": 5}, []),
    "Windows line ends": (PAGE_LINE.format(GPU_0, 5).replace("\n", "\r\n"), {"gpu:0": 5}, []),
    **{
        f"{value} beside a good line": (
            line.format(GPU_0, 5 if line is PAGE_LINE else 0.005) + line.format('gpu="1",UUID="GPU-b"', value),
            {"gpu:0": 5},
            ["gpu:1 is left out"],
        )
        for line in (PAGE_LINE, OWN_LINE)
        for value in ("NaN", "+Inf", "-Inf", "-1", "1e300")
    },
}


@pytest.mark.parametrize("name", PAGES)
def test_a_bad_line_costs_itself_and_every_gpu_is_there_once(name: str) -> None:
    page, domains, notes = PAGES[name]
    counters, said = page_counters(page)
    assert {counter.domain.name: counter.millijoules for counter in counters} == domains
    assert len(counters) == len(domains) and len(said) == len(notes)
    assert all(note in line for note, line in zip(notes, said, strict=True))


def test_a_byte_that_is_no_text_costs_its_line(site: Site, remote: Remote) -> None:
    site.pages["/metrics"] = lambda _: (200, b"\xff\xfe 1\n" + DCGM.encode())
    assert [domain.name for domain in remote(site.url).domains] == ["gpu:0", "gpu:1"]


def test_a_gpu_keeps_its_name_when_another_hosts_appears(site: Site, remote: Remote) -> None:
    values = iter([1, 2, 3])
    site.pages["/metrics"] = lambda _: (200, PAGE_LINE.format(GPU_0, next(values)).encode())
    meter = remote(site.url)
    site.pages["/metrics"] = lambda _: (
        200,
        (PAGE_LINE.format('gpu="0",UUID="GPU-b",Hostname="h2"', 9) + PAGE_LINE.format(GPU_0, next(values))).encode(),
    )
    readings = [meter.read(), meter.read()]
    assert [sample.domain for reading in readings for sample in reading.samples] == ["gpu:0"]
    assert [reading.errors for reading in readings] == [(), ()]


@pytest.mark.parametrize("chosen", ["0@h2", "GPU-b"])
def test_one_of_two_hosts_gpus_is_chosen_by_host_or_uuid(site: Site, remote: Remote, chosen: str) -> None:
    site.pages["/metrics"] = lambda _: (200, PAGES["two hosts"][0].encode())
    assert [domain.name for domain in remote(site.url, gpus=[chosen]).domains] == ["gpu:0@h2"]
    with pytest.raises(MeterError, match="has no GPU 0; it has gpu:0@h1, gpu:0@h2"):
        remote(site.url, gpus=["0"])


def test_a_jump_past_any_cards_power_is_a_gap_on_a_page_and_in_a_feed(site: Site, remote: Remote) -> None:
    values = iter([50.0, 50.0, 51.0, 1e9, 1e9 + 2])
    site.pages["/metrics"] = lambda _: (200, OWN_LINE.format('gpu="0",uuid="GPU-1"', next(values)).encode())
    meter = remote(site.url)
    readings = [meter.read() for _ in range(4)]
    gpu = Gpu(site)
    gpu.move(50.0)
    feed = remote(site.url)
    for joules in (51.0, 1e9, 1e9 + 2):
        gpu.move(joules)
    for told in (readings, [feed.read()]):
        samples = [sample for reading in told for sample in reading.samples][-3:]
        assert [(s.joules, s.gap) for s in samples] == [(51.0, False), (51.0, True), (53.0, False)]
        assert sum(reading.resets for reading in told) == 1


def test_a_feed_that_falls_by_rounding_has_not_restarted(site: Site, remote: Remote) -> None:
    gpu = Gpu(site)
    gpu.move(100.0)
    meter = remote(site.url)
    gpu.move(110.0)
    gpu.move(110.0 - 1e-9)
    gpu.move(111.0)
    reading = meter.read()
    assert [(s.joules, s.gap) for s in reading.samples] == [(100, False), (110, False), (110, False), (111, False)]
    assert reading.resets == 0


def test_a_line_that_vanishes_is_an_error_of_that_gpu_alone(site: Site, remote: Remote) -> None:
    site.pages["/metrics"] = lambda _: (200, DCGM.encode())
    meter = remote(site.url)
    kept = "".join(line for line in DCGM.splitlines(keepends=True) if 'gpu="0"' not in line)
    site.pages["/metrics"] = lambda _: (200, kept.encode())
    assert meter.read().errors == ("gpu:0: no longer on the page",)


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", "/metrics", "/energy"])
def test_the_address_may_be_the_apis_or_the_pages(path: str) -> None:
    assert base_path(path) == ""
    assert base_path(f"/gpu-7{path}") == "/gpu-7"


def bad_pages() -> dict[str, tuple[dict[str, Answer], str]]:
    huge = b"#" * ((8 << 20) + 1)
    return {
        "nothing there": ({}, "/energy answers 404; .*/metrics answers 404"),
        "no energy": ({"/metrics": (200, b"up 1\n")}, "has neither loadgen_gpu_energy_joules_total nor DCGM_FI"),
        "HTML": ({"/energy": (200, b"<html>"), "/metrics": (200, b"<html> a b")}, "is no Prometheus page"),
        "not text": ({"/metrics": (200, b"\xff\xfe")}, "is no Prometheus page"),
        "half a feed": ({"/energy": (200, b'{"now_ns": 1}')}, "is no energy feed of loadgen"),
        "slack of another length": (
            {"/energy": (200, b'{"now_ns":1,"domains":[],"samples":[[1,"gpu:0",2.0]],"slack_ns":[1,2]}')},
            "contradicts itself",
        ),
        "clocks of another length": (
            {"/energy": (200, b'{"now_ns":1,"domains":[],"samples":[[1,"gpu:0",2.0]],"capped_ns":[1,null]}')},
            "its capped_ns are not as many as its samples",
        ),
        "negative joules": (
            {"/energy": (200, b'{"now_ns":1,"domains":[],"samples":[[1,"gpu:0",-2.0]]}')},
            "is no energy feed",
        ),
        "an instant beyond int64": (
            {"/energy": (200, b'{"now_ns":1,"domains":[],"samples":[[9223372036854775808,"gpu:0",2.0]]}')},
            "is no energy feed",
        ),
        "one name twice": (
            {
                "/energy": (
                    200,
                    b'{"now_ns":1,"domains":[{"name":"a","source":"s"},{"name":"a","source":"s"}],"samples":[]}',
                )
            },
            "two of its domains have the same name",
        ),
        "a sample of tomorrow": (
            {"/energy": (200, b'{"now_ns":1,"domains":[],"samples":[[86400000000000,"gpu:0",2.0]]}')},
            "a sample is later than its page",
        ),
        "a name of two lines": (
            {"/energy": (200, b'{"now_ns":1,"domains":[{"name":"gpu:0\\ngpu:1","source":"s"}],"samples":[]}')},
            "no line of 200 printable characters",
        ),
        "a long name": (
            {"/metrics": (200, b'loadgen_gpu_energy_joules_total{gpu="%s"} 1\n' % (b"x" * 300))},
            "no line of 200 printable characters",
        ),
        "thousands of GPUs": (
            {"/metrics": (200, b"".join(b'loadgen_gpu_energy_joules_total{gpu="%d"} 1\n' % n for n in range(1025)))},
            "has 1,025 domains; 1,024 are the most",
        ),
        "a wrong sample": ({"/energy": (200, b'{"now_ns":1,"domains":[],"samples":[[1]]}')}, "is no energy feed"),
        "a locked door": ({"/energy": (401, b"")}, "answers 401: set LOADGEN_ENERGY_TOKEN to its token"),
        "a flood": ({"/energy": (200, huge)}, "sent more than 8 MiB"),
    }


@pytest.mark.parametrize("name", bad_pages())
def test_another_page_is_refused_with_the_reason(site: Site, remote: Remote, name: str) -> None:
    pages, reason = bad_pages()[name]
    site.pages = {path: lambda _, answer=answer: answer for path, answer in pages.items()}
    with pytest.raises(MeterError, match=reason):
        remote(site.url)


def test_a_server_that_goes_away_is_an_error_and_comes_back_as_more_joules(site: Site, remote: Remote) -> None:
    gpu = Gpu(site)
    meter = remote(site.url)
    site.pages["/energy"] = lambda _: (503, b"busy")
    with pytest.raises(MeterError, match="answers 503"):
        meter.read()
    site.pages["/energy"] = gpu.page
    gpu.move(7.0)
    assert [sample.joules for sample in meter.read().samples] == [7.0]


def test_a_server_that_stalls_is_an_error_in_time(site: Site, remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadgen.http_get.TIMEOUT_S", 0.1)
    gpu, released = Gpu(site), threading.Event()
    meter = remote(site.url)
    site.pages["/energy"] = lambda query: (released.wait(20), gpu.page(query))[1]
    with pytest.raises(MeterError, match="no answer in time"):
        meter.read()
    released.set()
    gpu.move(7.0)
    assert [sample.joules for sample in meter.read().samples] == [7.0]


def test_credentials_are_sent_and_never_shown(site: Site, remote: Remote) -> None:
    Gpu(site)
    address = site.url.removeprefix("http://")
    remote(site.url, token="tok-s3cret")
    assert site.headers[-1]["Authorization"] == "Bearer tok-s3cret"
    meter = remote(f"http://ann:s3cret@{address}/v1?key=s3cret")
    assert site.headers[-1]["Authorization"] == "Basic " + base64.b64encode(b"ann:s3cret").decode()
    assert "s3cret" not in " ".join(meter.notes)
    del site.pages["/energy"]
    for url, token in [(f"http://ann:s3cret@{address}/?key=s3cret", None), (site.url, "s3cret\nX: y")]:
        with pytest.raises(MeterError) as refused:
            remote(url, token=token)
        assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://host/", "no http:// or https:// address"),
        ("http://", "no http:// or https:// address"),
        ("http://h:port/", "malformed host or port"),
        ("http://127.0.0.1:1/", "cannot be read: Connection refused"),
    ],
)
def test_an_address_that_cannot_be_asked_says_why(remote: Remote, url: str, reason: str) -> None:
    with pytest.raises(MeterError, match=reason):
        remote(url)


def test_energy_url_by_name(site: Site) -> None:
    Gpu(site)
    meter, reasons = open_meter(site.url)
    assert meter is not None and reasons == []
    meter.close()
    with pytest.raises(LoadgenError, match=r"--energy URL: .*no GPU 3; it has gpu:0"):
        open_meter(site.url, gpus=["3"])
