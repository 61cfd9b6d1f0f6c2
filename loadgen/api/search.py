"""Search from a program: the search of `loadgen search`, in a thread of its own."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from loadgen.api.in_thread import awaited, wait_for, with_parameters_of
from loadgen.api.plain_options import plain_number, plain_options
from loadgen.api.record_search import folder_of, record_search
from loadgen.api.search_folder import Search
from loadgen.errors import LoadgenError

if TYPE_CHECKING:
    from loadgen.api.replay import Requests
    from loadgen.attribution.host_share import ShareHost
    from loadgen.client.word_counts import Count
    from loadgen.record import Endpoint
    from loadgen.run.interrupts import Interruption
    from loadgen.workload.schedule import Arrival, Stop
    from loadgen.workload.sessions import History


def search(
    trace: Requests | None = None,
    *,
    goodput: Mapping[str, float] | None = None,
    attainment: float | None = None,
    minimize: Literal["joules_per_good_request"] | None = None,
    budget_s: float = 600.0,
    width: float = 0.1,
    confidence: float = 0.95,
    start_rps: float | None = None,
    max_rps: float | None = None,
    now_rps: float | None = None,
    replicas: int = 1,
    keep_idle: bool = False,
    streams: Sequence[str] = (),
    input: int | str | None = None,
    output: int | str | None = None,
    arrival: Arrival = "poisson",
    burstiness: float = 1.0,
    seed: int = 0,
    tags: Mapping[str, str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    count: Count = "auto",
    stop: Stop = "auto",
    max_tokens: int | None = None,
    history: History | None = None,
    think: str | None = None,
    base_url: str | None = None,
    serve: str | None = None,
    over: Mapping[str, Iterable[str | int | float | bool]] | None = None,
    api_key: str | None = None,
    model: str | None = None,
    endpoint: Endpoint = "chat",
    headers: Mapping[str, str] | None = None,
    extra_body: Mapping[str, Any] | None = None,
    timeout_s: float = 600.0,
    warmup: int = 4,
    processes: int = 1,
    max_failed: str = "1%",
    energy: str = "auto",
    gpus: Sequence[str] = (),
    engines: Sequence[str] = (),
    engine_headers: Sequence[str] = (),
    idle_s: float = 2.0,
    share_host: ShareHost = "time",
    pue: float | None = None,
    grid_intensity: float | None = None,
    grid_source: str | None = None,
    price: float | None = None,
    out: str | os.PathLike[str] | None = None,
    ui: Literal["none", "plain", "live", "auto"] = "none",
) -> Search:
    """Find the largest rate at which a server keeps latency limits, or the one at which a good request costs fewest
    joules, by runs at chosen rates; return it with its interval.

    A parameter does what the option of `loadgen search` with its name does (`loadgen search --help`), and has the same
    default. Durations are in seconds, rates in requests/s, the limits of `goodput` in milliseconds, and shares are
    numbers between 0 and 1.

    trace: what `loadgen.replay` takes: a file, the name of a trace, a `Trace`, or requests.
    goodput: the limits, such as `{"ttft": 200, "tpot": 50}`; None is those that all streams state alike.
    attainment: share of the requests that must be within every limit; None is 0.99, and any share where joules are
        minimized.
    now_rps: the load of today, which `replicas` servers share: `result.present` has its cost on fewer of them.
    over: values of engine options to compare, with `serve`, such as `{"max_num_seqs": [64, 256]}`; of several options
        their product.
    base_url, api_key: as those of `loadgen.replay`.
    out: the search's folder; None is runs/search-TRACE. With that of an earlier search, this one goes on with it.
    ui: view of the progress on standard error; the only default that is not the command's.

    `best` of the result is None where no rate meets the limits; the command exits with 1 there.
    LoadgenError: invalid options, or a server or environment that does not fit.
    KeyboardInterrupt: the folder has the probes so far, and the same call goes on with them.
    """
    options = dict(locals())
    return wait_for(lambda interruption: _search(options, interruption))


@with_parameters_of(search)
async def asearch(*arguments: Any, **options: Any) -> Search:
    """Do what `search` does, with the same parameters, while the event loop that awaits it goes on.

    Cancelling it aborts the probe that runs; the folder has those before it, and the same call goes on with them.
    """
    bound = signature(search).bind(*arguments, **options)
    bound.apply_defaults()
    return await awaited(lambda interruption: _search(dict(bound.arguments), interruption))


def _search(options: dict[str, Any], interruption: Interruption) -> Search:
    """Make a search, or go on with it. Raises LoadgenError, and KeyboardInterrupt after an interrupt."""
    from rich.console import Console

    from loadgen.report.progress_view import view

    console = Console(stderr=True)
    plain, source = plain_options(options)
    plain |= {"over": _listed(options["over"] or {}), "out": folder_of(plain)}
    result = record_search(
        plain,
        say=view(options["ui"], console).say,
        view_of=lambda title: view(options["ui"], console, title),
        source=source,
        interruption=interruption,
    )
    return Search(plain["out"], result)


def _listed(over: Mapping[str, Iterable[Any]]) -> tuple[str, ...]:
    """Return the values of engine options as the command takes them, in JSON, so that a value may hold a comma."""
    if not isinstance(over, Mapping) or any(isinstance(values, str) for values in over.values()):
        raise LoadgenError("over: expected a list of values by engine option, such as {'max_num_seqs': [64, 256]}")
    try:
        lists = {key: [["off", "on"][v] if isinstance(v, bool) else v for v in over[key]] for key in over}
        return tuple(f"{key}={msgspec.json.encode(lists[key], enc_hook=plain_number).decode()}" for key in over)
    except TypeError as err:
        raise LoadgenError(f"over: {err}") from err
