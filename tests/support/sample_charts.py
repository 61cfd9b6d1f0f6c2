"""A page with a chart of every kind, and with the requests, spans and command that its script serves."""

import numpy as np

from loadgen.report.charts.chart import Axis, Chart, Limit, Series
from loadgen.report.charts.figure import figure
from loadgen.report.markup import Markup, join, json_data, tag
from loadgen.report.page import header, render_page, section

T = np.arange(0.5, 30, 1)
NAN = float("nan")
COMMAND = "loadgen replay chat --rps 4"
EVIL = "<img src=x onerror=alert(1)>"


def over_time() -> list[Chart]:
    """Two charts of 30 s on one x axis. TTFT p50 rises by 1 ms a second; it is unknown from 10 s to 13 s."""
    p50 = np.where((T > 10) & (T < 13), NAN, 0.1 + 0.001 * np.floor(T))
    seconds = Axis("Time since the start", "s", low=0, high=30)
    ttft = Chart(
        "ttft",
        "TTFT over time",
        seconds,
        Axis("TTFT", "s", log=True),
        (Series("p50", T, p50), Series("p99", T, 0.3 + 0.01 * np.floor(T), colour=1)),
        text="TTFT rises",
        caption="Percentiles of each second.",
        limits=(Limit(0.2, "limit 200 ms"),),
        group="time",
        height=110,
        wide=True,
    )
    flying = Series("in flight", np.arange(31.0), np.arange(30.0) % 4, "steps", colour="ink")
    axis = Axis("Requests in flight", whole=True, low=0)
    return [ttft, Chart("flying", "In flight", seconds, axis, (flying,), text="0 to 3", group="time", height=110)]


def alone() -> list[Chart]:
    """Dots of requests, a distribution, a curve with intervals and labels, and steps."""
    tokens, joules = Axis("Input and output", "tokens", log=True), Axis("Energy", "J", log=True)
    hints = [f"request {i} of {EVIL}" for i in range(30)]
    chat = Series("chat", 10 + T * 10, T * 3, "dots", hints=hints, requests=list(range(30)))
    code = Series("code", 20 + T * 10, T * 2, "dots", colour=1, requests=list(range(30, 60)))
    shares = Axis("Share of requests", "share", low=0, high=1, ticks=(0, 0.25, 0.5, 0.75, 0.9, 0.99))
    spread = Series("chat", np.geomspace(0.05, 5, 50), np.linspace(0, 1, 50))
    rates, good = np.array([100.0, 200, 300]), np.array([5.0, 3, 4])
    error = np.array([1, 0.5, NAN])
    points = Series("vLLM", rates, good, "dots", 0, good - error, good + error, labels=["1 /s", "2 /s", "4 /s"])
    failures = Series("timeout", T[:11], np.arange(10.0) % 5, "steps", colour="bad")
    return [
        Chart("dots", "Joules against tokens", tokens, joules, (chat, code), text="Joules rise with tokens"),
        Chart("cdf", "TTFT", Axis("TTFT", "s", log=True), shares, (spread,), "To 5 s", limits=(Limit(2, "2 s", "x"),)),
        Chart("curve", "Joules against load", Axis("Throughput", "tokens/s"), Axis("Energy", "J"),
              (Series("vLLM", rates, good), points), "Least at 200 tokens/s"),
        Chart("failures", "Failures", Axis("Time", "s"), Axis("Failures", whole=True), (failures,), "Up to 4 a second"),
    ]  # fmt: skip


def requests() -> Markup:
    """60 requests as data for the panel. The workload of request 7 is markup; the last has no chunks and no energy."""
    names = [("index", ""), ("workload", ""), ("TTFT", "s"), ("energy", "J"), ("chunks", "ms")]
    rows = [[i, EVIL if i == 7 else "chat", 0.1 + i / 1000, i * 3.0, [10, 20 + i, 400 + i]] for i in range(59)]
    data = {
        "columns": [{"name": name, "unit": unit} for name, unit in names],
        "rows": [*rows, [59, "chat", 0.2, None, []]],
    }
    return Markup(json_data(data).replace("<script", '<script id="requests"', 1))


def page() -> str:
    row = tag("tr", tag("th", "17", scope="row"), tag("td", "1.2 s"), data_request="17")
    slow = tag("table", tag("caption", "Slowest requests"), tag("tbody", row))
    span = tag("button", "Show 5 s to 12 s", type="button", class_="zoom-to", data_from="5", data_to="12")
    return render_page(
        "Charts",
        [
            header("loadgen report", "Charts", tag("p", tag("code", COMMAND), class_="copy")),
            section("Over time", span, *map(figure, over_time())),
            section("Alone", tag("div", *map(figure, alone()), class_="grid"), slow),
            join([requests()]),
        ],
    )
