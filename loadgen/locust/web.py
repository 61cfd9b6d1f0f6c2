"""Tokens and joules in locust: two tabs beside its own, a panel with charts, and rows of its table."""

from __future__ import annotations

import http.client
import os
import re
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gevent
from flask import Blueprint, Response, jsonify, request

from loadgen.clock import monotonic_ns
from loadgen.http_get import REQUEST_ERRORS, http_get
from loadgen.telemetry.otlp_export import TOKEN_VARIABLE
from loadgen.telemetry.sidecar_metrics import SidecarEnergy, energy_rows, energy_sentences, energy_since, parse_metrics
from loadgen.units import NS_PER_MS, NS_PER_S

if TYPE_CHECKING:
    from loadgen.record import RequestRecord

ANSWER = "answer (size: output tokens)"
FIRST_TOKEN = "first token (size: input tokens)"
NEXT_TOKENS = "per next token (size: their number)"
LATE = "sent late"
ENERGY = "energy (size: joules)"
"""Names of rows. Locust's size column is the only one for a number that is not a time."""

UNSCHEDULED = 0
"""scheduled_ns of a request without a schedule."""

PERIOD_S = 2.0
"""Period of the readings; locust's page polls as often."""
WINDOW = 6
"""Readings that rates are taken over: 10 s."""
HISTORY = 1800
"""Readings kept for the charts: an hour."""
SETTLE_S = 20.0
MAX_PAGE_BYTES = 4 << 20

NO_SIDECAR = "no sidecar was named (--sidecar URL): joules are not known"
PANEL = Path(__file__).with_name("panel.js")


def log_record(environment: Any, record: RequestRecord) -> None:
    """Add a record to locust's table. Only complete answers count in its totals; the other rows are additional."""
    tokens = record.output_tokens or 0
    environment.events.request.fire(
        request_type=record.workload,
        name=ANSWER,
        response_time=(record.e2e_ns or 0) / NS_PER_MS,
        response_length=tokens,
        exception=None if record.ok else FailedError(reason(record)),
        context={},
        response=record,
    )
    rows = {
        FIRST_TOKEN: (record.ttft_ns, record.input_tokens),
        NEXT_TOKENS: (record.tpot_ns, max(0, tokens - 1)),
        LATE: (None if record.scheduled_ns == UNSCHEDULED else record.lag_ns, 0),
    }
    for name, (ns, size) in rows.items():
        if record.ok and ns is not None:
            environment.stats.get(name, record.workload).log(ns / NS_PER_MS, size or 0)


class FailedError(Exception):
    """A failed request. Its repr, which locust shows, is its message."""

    def __repr__(self) -> str:
        return str(self)


def reason(record: RequestRecord) -> str:
    """Return the failure in one line, without numbers that differ between like failures: locust counts equal lines."""
    detail = " ".join((record.detail or "").split())[:200]
    return f"{record.error}: {re.sub(r'[0-9]+', 'N', detail) if record.error == 'truncated' else detail}"


class TableReading(NamedTuple):
    """Sums of locust's own table at one moment."""

    t_ns: int
    tokens: dict[str, int]
    """Output tokens by workload."""
    first_tokens: int
    first_tokens_ms: float


class Watch:
    """Reads the sidecar's page, and locust's own table, every few seconds."""

    def __init__(self, environment: Any) -> None:
        self.environment = environment
        self._url: str | None = None
        self._first: SidecarEnergy | None = None
        self._last: SidecarEnergy | None = None
        self._problem = NO_SIDECAR
        self._began_ns = monotonic_ns()
        self._readings: deque[TableReading] = deque(maxlen=WINDOW)
        self._history: deque[dict[str, float | None]] = deque(maxlen=HISTORY)
        self._greenlet: Any = None

    def begin(self, url: str | None) -> None:
        """Begin a test: joules count from now on."""
        self._url, self._problem = url, NO_SIDECAR
        self._first = self._last = None
        self._began_ns = monotonic_ns()
        self._readings.clear()
        self._history.clear()
        if url:
            self._ask(url)
        self._first = self._last
        self._read()
        if self._greenlet is None:

            def poll() -> None:
                while True:
                    gevent.sleep(PERIOD_S)
                    self._read()

            self._greenlet = gevent.spawn(poll)

    def _read(self) -> None:
        self._readings.append(self._table())
        earlier = self.energy
        if self._url is not None:
            self._ask(self._url)
        current = None if self._problem else self.energy
        if earlier and current:  # add the requests that have settled in between to locust's table
            for name, share in energy_since(earlier, current).workloads.items():
                for _ in range(round(share.requests)):
                    self.environment.stats.get(ENERGY, name).log(None, share.request_joules / share.requests)
        self._history.append(
            {
                "t_s": (self._readings[-1].t_ns - self._began_ns) / NS_PER_S,
                "ttft_ms": self._recent_ttft_ms(),
                "tokens_per_s": self._tokens_per_s(None),
                "watts": current.watts if current else None,
                "joules_per_token": current.joules_per_token if current else None,
            }
        )

    def _ask(self, url: str) -> None:
        try:
            energy = parse_metrics(fetch(url + "/metrics"))
            self._problem = "" if energy else f"the server at {url} is not a loadgen sidecar"
            self._last = energy or self._last
        except REQUEST_ERRORS as err:
            self._problem = f"the sidecar at {url} does not answer: {err or type(err).__name__}"

    def _table(self) -> TableReading:
        entries = self.environment.stats.entries
        first_tokens = [entry for (name, _), entry in entries.items() if name == FIRST_TOKEN]
        return TableReading(
            monotonic_ns(),
            {workload: entry.total_content_length for workload, entry in self._answers().items()},
            sum(entry.num_requests for entry in first_tokens),
            sum(entry.total_response_time for entry in first_tokens),
        )

    def _tokens_per_s(self, workload: str | None) -> float | None:
        """Return the output tokens a second of the answers that ended in the window; of all workloads for None."""
        start, end = self._readings[0], self._readings[-1]
        names = end.tokens if workload is None else [workload]
        grown = sum(end.tokens.get(name, 0) - start.tokens.get(name, 0) for name in names)
        if grown < 0 or end.t_ns == start.t_ns:  # locust's table was reset, or there is one reading only
            return None
        return grown * NS_PER_S / (end.t_ns - start.t_ns)

    def _recent_ttft_ms(self) -> float | None:
        """Return the mean time to first token in the window; None without a first token in it."""
        start, end = self._readings[0], self._readings[-1]
        count = end.first_tokens - start.first_tokens
        return (end.first_tokens_ms - start.first_tokens_ms) / count if count > 0 else None

    @property
    def energy(self) -> SidecarEnergy | None:
        """Energy since the test began; None before the first reading of the sidecar."""
        return None if self._last is None else energy_since(self._first, self._last)

    def _answers(self) -> dict[str, Any]:
        """Return the row of answers in locust's table, by workload."""
        entries = self.environment.stats.entries
        return {method: entry for (name, method), entry in sorted(entries.items()) if name == ANSWER}

    # -- tables and charts ------------------------------------------------------------------------------------------

    def token_rows(self) -> list[dict[str, str]]:
        stats = self.environment.stats
        table: list[dict[str, str]] = []
        if not self._readings:
            return table
        for workload, entry in self._answers().items():
            first, following = stats.get(FIRST_TOKEN, workload), stats.get(NEXT_TOKENS, workload)
            table.append(
                {
                    "workload": workload,
                    "requests": str(entry.num_requests),
                    "failed": str(entry.num_failures),
                    "ttft_p50": _ms(first, 0.5),
                    "ttft_p90": _ms(first, 0.9),
                    "tpot": f"{following.avg_response_time:.2f} ms" if following.num_requests else "",
                    "tokens": f"{entry.total_content_length:,}",
                    "tokens_per_s": "" if (rate := self._tokens_per_s(workload)) is None else f"{rate:,.0f}",
                }
            )
        return table

    def energy_rows(self) -> list[dict[str, str]]:
        """Return the energy table. Joules that could not be read are replaced by the reason."""
        energy = self.energy
        table = [row._asdict() for row in energy_rows(energy)] if energy else []
        return table + ([{"account": self._problem}] if self._problem else [])

    def panel(self) -> dict[str, Any]:
        energy = self.energy
        return {
            "problem": self._problem,
            "simulated": energy is not None and energy.simulated,
            "history": list(self._history),
        }

    def settled(self) -> list[str]:
        """Wait until the sidecar has settled the requests, for `SETTLE_S` at most.

        Return the lines that a test without a page logs at its end.
        """
        if self._url is None:
            return []
        deadline_ns = monotonic_ns() + round(SETTLE_S * NS_PER_S)
        self._read()
        while not self._problem and self._unsettled() and monotonic_ns() < deadline_ns:
            gevent.sleep(0.5)
            self._read()
        lines = energy_sentences(self.energy) if self.energy else []
        return lines + ([self._problem] if self._problem else [])

    def _unsettled(self) -> bool:
        energy = self.energy
        done = {name: entry.num_requests - entry.num_failures for name, entry in self._answers().items()}
        shares = energy.workloads if energy else {}
        return any(name not in shares or shares[name].requests < count for name, count in done.items() if count)


def _ms(entry: Any, share: float) -> str:
    return f"{entry.get_response_time_percentile(share):,.0f} ms" if entry.num_requests else ""


def fetch(url: str) -> str:
    """Return a page of the sidecar. The token that it may require comes from $LOADGEN_SIDECAR_TOKEN. Raises
    REQUEST_ERRORS."""
    token = os.environ.get(TOKEN_VARIABLE)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    response = http_get(url, headers=headers, timeout_s=PERIOD_S, max_body_bytes=MAX_PAGE_BYTES)
    if response.status != 200:
        raise http.client.HTTPException(f"status {response.status}")
    return response.body.decode(errors="replace")


TABS = [{"title": "Tokens", "key": "tokens"}, {"title": "Energy", "key": "energy"}]
TABLES = {
    "tokens": {
        "workload": "Workload",
        "requests": "# Requests",
        "failed": "# Failed",
        "ttft_p50": "TTFT median",
        "ttft_p90": "TTFT 90 %",
        "tpot": "TPOT mean",
        "tokens": "Output tokens",
        "tokens_per_s": "Output tokens/s, last 10 s",
    },
    "energy": {
        "account": "Account",
        "requests": "# Requests settled",
        "joules": "Energy since the test began",
        "per_request": "Per request",
        "per_token": "Per output token",
    },
}


def install(web_ui: Any, watch: Watch) -> None:
    """Extend locust's page: through template arguments, a blueprint, and its answers to the page's polls."""
    web_ui.template_args |= {
        "extended_tabs": TABS,
        "extended_tables": [
            {"key": key, "structure": [{"key": column, "title": title} for column, title in columns.items()]}
            for key, columns in TABLES.items()
        ],
        "extended_csv_files": [{"href": "./loadgen/energy.csv", "title": "Download energy CSV"}],
    }
    options = watch.environment.parsed_options
    base = (options.web_base_path or "").rstrip("/")
    pages = Blueprint("loadgen", __name__, url_prefix=base + "/loadgen")

    def panel() -> Response:
        return jsonify(watch.panel())

    def script() -> Response:
        return Response(PANEL.read_text(), mimetype="text/javascript")

    def csv() -> Response:
        columns = TABLES["energy"]
        lines = [list(columns.values())] + [[row.get(key, "") for key in columns] for row in watch.energy_rows()]
        text = "".join(",".join('"' + cell.replace('"', '""') + '"' for cell in line) + "\r\n" for line in lines)
        return Response(text, mimetype="text/csv", headers={"Content-Disposition": "attachment;filename=energy.csv"})

    def extend(response: Response) -> Response:
        if response.status_code != 200:
            return response
        if request.path == base + "/stats/requests" and isinstance(stats := response.get_json(silent=True), dict):
            tables = {"tokens": watch.token_rows(), "energy": watch.energy_rows()}
            extended = [{"key": key, "data": data} for key, data in tables.items()]
            response.set_data(jsonify({**stats, "extended_stats": extended}).get_data())
        elif request.path == base + "/" and response.mimetype == "text/html":
            page = response.get_data(as_text=True)
            response.set_data(page.replace("</body>", '<script src="./loadgen/panel.js" defer></script></body>'))
        return response

    private = web_ui.auth_required_if_enabled
    pages.add_url_rule("/panel", view_func=private(panel))
    pages.add_url_rule("/panel.js", view_func=script)
    pages.add_url_rule("/energy.csv", view_func=private(csv))
    web_ui.app.register_blueprint(pages)
    web_ui.app.after_request(extend)
