"""Options of `locust -f loadgen/locustfile.py` beyond locust's own."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loadgen.client.redact import clean_url
from loadgen.client.server_url import parse_server_url
from loadgen.errors import LoadgenError
from loadgen.record import PATHS, UNSTREAMED
from loadgen.workload.schedule import ARRIVALS, Arrival

if TYPE_CHECKING:
    from loadgen.record import Endpoint
    from loadgen.workload.prompts import PromptKind


LOOPBACK = "127.0.0.1"


def add_options(parser: Any) -> None:
    """Add the options, and keep locust's page and its master on the loopback interface unless they are asked elsewhere.

    Locust hands the master's values to its workers. No key is among them: keys stay in the environment.
    """
    parser.set_defaults(web_host=LOOPBACK, master_bind_host=LOOPBACK)
    add = parser.add_argument
    add("--model", help="Default: the server's only one.")
    add("--endpoint", choices=[name for name in PATHS if name not in UNSTREAMED], default="chat", help="API to call.")
    add("--chat-bins", default="azure-2023-chat", help="Lengths of ChatUser: a name in profiles/workloads, or a file.")
    add("--code-bins", default="azure-2023-code", help="Lengths of CodeUser.")
    add("--think", default=0.0, type=float, help="Seconds between a response and the user's next request.")
    add("--seed", default=0, type=int, help="Seed of lengths, prompts and arrivals.")
    add("--request-timeout", default=600.0, type=float, help="Seconds for each request.")
    add("--tokenizer", help="tokenizer.json to count prompts with, on every worker.")
    add(
        "--sidecar",
        env_var="LOADGEN_SIDECAR",
        help="URL of a loadgen sidecar: every request is reported to it, and joules are read from it.",
    )
    add(
        "--trace",
        help="Trace that TraceReplay replays: a file, the same on every worker, or a shipped trace's name.",
    )
    add("--rps", help="TraceReplay: the trace at this mean rate. Default: its own.")
    add("--arrival", choices=list(ARRIVALS), default="trace", help="TraceReplay: the arrival process.")
    add("--duration", help="TraceReplay: seconds that are scheduled.")
    add("--num-requests", help="TraceReplay: number of requests.")


@dataclass(frozen=True)
class Settings:
    """The options, checked. The web page sends them as text, and empty text for what was left out."""

    base_url: str
    """The API's URL, with login and query: it is printed nowhere."""
    model: str | None
    endpoint: Endpoint
    seed: int
    think_s: float
    timeout_s: float
    tokenizer: str | None
    sidecar: str | None
    bins: dict[PromptKind, str]
    trace: str | None
    rps: float | None
    arrival: Arrival
    duration_s: float | None
    num_requests: int | None

    def api_at(self, url: str) -> str:
        """Return `url`, where the probe found the API, with the login and the query of the given one."""
        return parse_server_url(self.base_url).moved_to(url).text


def settings(options: Namespace, host: str | None) -> Settings:
    """Return the checked options of a test of the server at `host`. Raises LoadgenError."""
    if not host:
        raise LoadgenError("where is the server? add --host http://127.0.0.1:8000")
    url = parse_server_url(host)
    number = _number(options, "num_requests")
    return Settings(
        base_url=(url if url.path else url._replace(path="/v1")).text,
        model=options.model or None,
        endpoint=options.endpoint,
        seed=int(options.seed),
        think_s=float(options.think),
        timeout_s=float(options.request_timeout),
        tokenizer=options.tokenizer or None,
        sidecar=clean_url(options.sidecar) if options.sidecar else None,
        bins={"chat": options.chat_bins, "code": options.code_bins},
        trace=options.trace or None,
        rps=_number(options, "rps"),
        arrival=options.arrival,
        duration_s=_number(options, "duration"),
        num_requests=None if number is None else int(number),
    )


def _number(options: Namespace, name: str) -> float | None:
    text = getattr(options, name)
    try:
        return None if text in (None, "") else float(text)
    except ValueError as err:
        raise LoadgenError(f"--{name.replace('_', '-')} {text!r} is not a number") from err
