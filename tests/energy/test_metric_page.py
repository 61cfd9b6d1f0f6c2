"""A smart plug's series is a machine's energy, and what is no such series is refused in one line."""

import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from loadgen.energy.choose import open_meter
from loadgen.energy.metric_page import MetricMeter, matching_values, parse_series, unit_of
from loadgen.errors import LoadgenError, MeterError
from loadgen.units import NS_PER_S
from support.served_in_thread import serving


class Plug:
    """A server whose page is `text`."""

    def __init__(self) -> None:
        self.text = ""
        plug = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200 if self.path == "/metrics" else 404)
                self.end_headers()
                self.wfile.write(plug.text.encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/metrics"


@pytest.fixture
def plug() -> Iterator[Plug]:
    served = Plug()
    with serving(served.http):
        yield served


class Ticking:
    """A clock that the test moves."""

    ns = 0

    def __call__(self) -> int:
        return self.ns


@pytest.mark.parametrize(
    ("metric", "values", "source", "joules"),
    [
        ("plug_power_watts", [100.0, 300.0, 300.0], "page-power", 500.0),
        ("plug_energy_joules_total", [10.0, 110.0, 310.0], "page-counter", 200.0),
        ("plug_kwh", [1.0, 1.0001, 1.0003], "page-counter", 720.0),
    ],
)
def test_power_is_integrated_and_a_counter_is_read_at_its_updates(
    metric: str, values: list[float], source: str, joules: float, plug: Plug
) -> None:
    clock = Ticking()
    plug.text = f"{metric} {values[0]}\n"
    meter = MetricMeter(f"{plug.url}#{metric}", clock=clock)
    samples = []
    for second, value in enumerate(values):
        clock.ns, plug.text = second * NS_PER_S, f"{metric} {value}\n"
        samples += meter.read().samples
    assert [(domain.name, domain.source) for domain in meter.domains] == [("machine:127.0.0.1", source)]
    assert samples[-1].joules - samples[0].joules == pytest.approx(joules, abs=0.01)
    meter.close()


IPMI_EXPORTER = """\
# HELP ipmi_dcmi_power_consumption_watts Current power consumption in Watts.
# TYPE ipmi_dcmi_power_consumption_watts gauge
ipmi_dcmi_power_consumption_watts 417
# HELP ipmi_power_watts Power reading in Watts.
# TYPE ipmi_power_watts gauge
ipmi_power_watts{id="51",name="PS1 Input Power"} 205
ipmi_power_watts{id="52",name="PS2 Input Power"} 195
# HELP ipmi_up '1' if a scrape of the IPMI device was successful, '0' otherwise.
# TYPE ipmi_up gauge
ipmi_up{collector="dcmi"} 1
"""


def test_the_page_of_an_ipmi_exporter_is_the_power_of_the_machine(plug: Plug) -> None:
    clock = Ticking()
    plug.text = IPMI_EXPORTER
    meter = MetricMeter(f"{plug.url}#ipmi_dcmi_power_consumption_watts", clock=clock)
    meter.read()
    clock.ns = NS_PER_S
    [sample] = meter.read().samples
    assert (sample.domain, sample.joules) == ("machine:127.0.0.1", 417)
    meter.close()


def test_labels_choose_one_of_several_series(plug: Plug) -> None:
    plug.text = 'w_watts{outlet="1"} 5\nw_watts{outlet="2"} 7\n'
    MetricMeter(plug.url + '#w_watts{outlet="2"}').close()
    for series, count in (("w_watts", 2), ('w_watts{outlet="3"}', 0), ("other_watts", 0)):
        with pytest.raises(LoadgenError, match=f"has {count} series"):
            open_meter(f"{plug.url}#{series}")


@pytest.mark.parametrize("value", ["NaN", "-1", "+Inf", "1e300"])
def test_a_value_that_is_no_energy_is_refused(value: str, plug: Plug) -> None:
    plug.text = f"w_watts {value}\n"
    with pytest.raises(MeterError, match="no power or energy"):
        MetricMeter(f"{plug.url}#w_watts")


@pytest.mark.parametrize("series", ["", "9w", "w_watts{", "w_watts{a}", 'w_watts{a!="b"}', "w_watts{a=b}"])
def test_what_is_no_series_is_refused(series: str) -> None:
    with pytest.raises(MeterError, match=re.escape("is no series")):
        parse_series(series)


def test_labels_may_hold_commas() -> None:
    assert parse_series('w{a="x,y", b="z"}') == ("w", {"a": "x,y", "b": "z"})


@pytest.mark.parametrize("metric", ["plug_power", "plug_amperes", "plug_energy_total"])
def test_a_name_without_a_unit_is_refused(metric: str) -> None:
    with pytest.raises(MeterError, match="unit of"):
        unit_of(metric)


def test_lines_that_cannot_be_read_are_no_values() -> None:
    text = "w_watts{ 3\nw_watts 4\nw_watts_max 9\n# HELP w_watts x\nw_watts x y z\n"
    assert matching_values(text, "w_watts", {}) == [4.0]


def test_a_password_is_in_no_message_about_several_sources(plug: Plug) -> None:
    plug.text = "w_watts 5\nv_watts 5\n"
    secret = plug.url.replace("://", "://user:hunter2@")
    for first, second, words in (
        (f"{secret}#w_watts", f"{plug.url}#v_watts", "both measure machine:127.0.0.1"),
        (f"{secret}#w_watts", f"{plug.url}#w_watts", "named twice"),
        (f"{secret}#w_watts", f"{secret}#w_watts", "twice"),
    ):
        with pytest.raises(LoadgenError, match=words) as raised:
            open_meter(f"{first},{second}")
        assert "hunter2" not in str(raised.value)
