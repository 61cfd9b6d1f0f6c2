"""Show the progress of a run while it lasts.

Drawing is the caller's cost, at most five times a second. A drawn update of LiveView takes 0.4 ms of its thread,
one of PlainView 0.07 ms, and one that is skipped 0.2 µs. The snapshot that it shows takes 0.1 ms after 20,000 requests,
and counting a request that ended 2 µs (medians, two shared cores, CPython 3.11).
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from math import inf
from textwrap import wrap
from time import monotonic
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from loadgen.errors import LoadgenError
from loadgen.report.format import UNKNOWN, clean, joules, number, percent, seconds, watts
from loadgen.report.latencies import ABBREVIATIONS, LIMITED
from loadgen.run.progress import NullView, Progress, Stage, View

_log = logging.getLogger(__name__)

LIVE_EVERY_S = 0.2
"""A little less than the time between two ticks, so that none is skipped for being early."""
PLAIN_EVERY_S = 5.0
BAR = 40
"""Columns."""
GAP = 3
"""Columns between two numbers of a row."""
MAX_SHOWN = 200
"""Characters of a title, or of a server's line."""
MAX_SAID = 1000
"""Characters of a line that stays."""
Span = tuple[str, str]
"""Text and its style."""
LATENCIES = tuple((ABBREVIATIONS[field], metric, field) for metric, field in LIMITED.items())
"""Name, key of its limit, and field of Progress of each latency."""


def view(ui: str, console: Console, title: str = "") -> View:
    """Return the view that `ui` names: auto, live, plain or none. auto: live on a terminal, plain elsewhere."""
    match ui:
        case "auto":
            return LiveView(console, title) if console.is_terminal else PlainView(console)
        case "live":
            return LiveView(console, title)
        case "plain":
            return PlainView(console)
        case "none":
            return NullView()
    raise LoadgenError(f"--ui {ui!r} is not one of auto, live, plain, none")


def view_of_many(console: Console) -> Callable[[str], View]:
    """Return a function that makes the view of each of many jobs, from its title."""
    return partial(LiveView if console.is_terminal else TitleView, console)


class PlainView:
    """A line at the beginning of each stage, and every PLAIN_EVERY_S while it lasts: for logs."""

    def __init__(self, console: Console, clock: Callable[[], float] = monotonic) -> None:
        self._console = console
        self._clock = clock
        self._drawn_s = -inf
        self._stage: Stage | None = None
        self._undrawn: Progress | None = None
        """The latest progress of the present stage, if no line shows it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self._draw_rest()

    def update(self, stage: Stage, progress: Progress | None = None) -> None:
        if is_new(stage, self._stage):
            self._draw_rest()
            self._print(stage_text(stage, progress))
        elif self._clock() - self._drawn_s >= PLAIN_EVERY_S:
            self._print(line(stage, progress) if progress and progress.sent else stage_text(stage, progress))
            self._undrawn = None
        else:
            self._undrawn = progress if progress and progress.sent else None
        self._stage = stage

    def say(self, line: str) -> None:
        _say(self._console, line)

    def _draw_rest(self) -> None:
        """Draw the last numbers of a stage that ends."""
        if self._stage is not None and self._undrawn is not None:
            self._print(line(self._stage, self._undrawn))
        self._undrawn = None

    def _print(self, text: str) -> None:
        self._drawn_s = self._clock()
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)


class TitleView(NullView):
    """The title alone: a log of many jobs needs no more."""

    def __init__(self, console: Console, title: str) -> None:
        self._console, self._title = console, title

    def __enter__(self) -> Self:
        self._console.print(self._title, soft_wrap=True, markup=False, highlight=False)
        return self

    def say(self, line: str) -> None:
        _say(self._console, line)


class LiveView:
    """A few lines in place, redrawn at most every LIVE_EVERY_S and for a new stage, gone when the run ends."""

    def __init__(self, console: Console, title: str = "", clock: Callable[[], float] = monotonic) -> None:
        self._title = title
        self._console = console
        self._clock = clock
        # No refresh thread: what is drawn is drawn here, when it is asked for, and nowhere else.
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._drawn_s = -inf
        self._stage: Stage | None = None

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self._live.stop()

    def update(self, stage: Stage, progress: Progress | None = None) -> None:
        now_s = self._clock()
        if not is_new(stage, self._stage) and now_s - self._drawn_s < LIVE_EVERY_S:
            return
        self._stage, self._drawn_s = stage, now_s
        self._live.update(panel(stage, progress, self._title, self._console.width), refresh=True)

    def say(self, line: str) -> None:
        _say(self._console, line)


def _say(console: Console, line: str) -> None:
    """Print a line, above the view if that is live, and log it."""
    console.print(f"loadgen: {clean(line, MAX_SAID)}", soft_wrap=True, markup=False, highlight=False)
    _log.info("%s", line, extra={"printed": True})


# -- one line ---------------------------------------------------------------------------------------------------------


def is_new(stage: Stage, earlier: Stage | None) -> bool:
    """Return whether a stage is another one, or one in which the user can do something else: it is shown at once."""
    return earlier is None or (stage.name, stage.hint) != (earlier.name, earlier.hint)


def stage_text(stage: Stage, progress: Progress | None = None) -> str:
    """Return what is being done, how far it is, and what the user can do about it."""
    text = stage.name
    if stage.name == "sending" and progress is not None:
        text += f" to {clean(progress.target, MAX_SHOWN)}"
    elif stage.name == "draining" and progress is not None:
        text += f" {progress.in_flight:,}"
        if progress.oldest:
            waiting, age_s = progress.oldest[0]
            text += f" (oldest {age_s:.0f} s, request {waiting.request})"
    elif stage.total is not None and stage.done is not None:
        digits = 1 if stage.unit else 0
        text += f" {stage.done:,.{digits}f} of {stage.total:,.{digits}f}{' ' * bool(stage.unit)}{stage.unit}"
        if stage.done and stage.waited_s >= 1:
            text += f", about {_clock(stage.waited_s * (stage.total / stage.done - 1))} left"
    elif stage.waited_s >= 1:
        text += f", {stage.waited_s:.0f} s"
    text += f"; {stage.hint}" if stage.hint else ""
    return f"{text}: {server_line(stage.detail)}" if stage.detail else text


def line(stage: Stage, progress: Progress) -> str:
    """Return all numbers in one line."""
    p = progress
    parts = [
        f"sent {p.sent:,}/{p.scheduled:,}",
        f"in flight {p.in_flight:,}",
        f"completed {p.completed:,}",
        f"failed {p.failed:,}" + (f" ({errors_text(p)})" if p.errors else ""),
        *(f"{name} {_pair(p, key, field)}" for name, key, field in LATENCIES),
        *rates_text(p),
    ]
    doing = "" if stage.name == "sending" else f"{stage_text(stage, p)}, "
    waiting = f"; {waiting_text(p)}" if stage.name == "draining" and p.oldest else ""
    return f"{p.elapsed_s:.0f} of {p.total_s:.0f} s: {doing}{', '.join(parts)}{waiting}"


def rates_text(progress: Progress) -> list[str]:
    """Return throughput, power, energy and goodput so far, each with its unit."""
    p = progress
    goodput = [f"goodput {percent(p.goodput)}"] if p.limits_ms or p.goodput is not None else []
    power = f"{UNKNOWN} W" if p.watts is None else watts(p.watts)
    energy = f"{UNKNOWN} J" if p.joules_per_token is None else joules(p.joules_per_token)
    return [f"{number(p.tokens_per_s)} tokens/s", power, f"{energy}/token", *goodput]


def _pair(p: Progress, key: str, field: str) -> str:
    latency = getattr(p, field)
    limit_ms = p.limits_ms.get(key)
    limit = "" if limit_ms is None else f" (limit {seconds(limit_ms / 1000)})"
    return f"p50 {seconds(latency.p50)} p99 {seconds(latency.p99)}{limit}"


def errors_text(progress: Progress) -> str:
    """Return the failed requests by kind, the most frequent kind first."""
    by_count = sorted(progress.errors.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{kind} {count:,}" for kind, count in by_count)


def waiting_text(progress: Progress) -> str:
    """Return the requests that a drain waits for: index, age, and whether the answer has begun."""
    rows = [
        f"{waiting.request} ({age_s:.0f} s, {'answering' if waiting.has_token else 'no token yet'})"
        for waiting, age_s in progress.oldest
    ]
    more = progress.in_flight - len(rows)
    return f"waiting for request{'s' * (progress.in_flight > 1)} {', '.join(rows)}" + (
        f" and {more:,} more" if more > 0 else ""
    )


def server_line(text: str) -> str:
    """Return a line of a server's log without its colours and control characters."""
    return clean(Text.from_ansi(text).plain.strip(), MAX_SHOWN)


# -- several lines ----------------------------------------------------------------------------------------------------


def panel(stage: Stage, progress: Progress | None, title: str, width: int) -> Text:
    """One Text, not tables: laying a table out costs the caller's thread five times as much."""
    target = f": {progress.target}" if progress else ""
    rows: list[list[Span]] = [[(clean(title + target, MAX_SHOWN), "bold")]] if title or target else []
    if progress is None:
        rows += [[(stage_text(replace(stage, detail="", hint="")), "")]]
        rows += [[(text, "dim")] for text in wrap(stage.hint, width, initial_indent="  ", subsequent_indent="  ")]
        rows += [[("  " + server_line(stage.detail), "dim")]] if stage.detail else []
    else:
        rows += _progress_rows(stage, progress, width)
    spans = [span for row in rows for span in (*row, ("\n", ""))][:-1]
    return Text.assemble(*spans, no_wrap=True, overflow="ellipsis")


def _progress_rows(stage: Stage, p: Progress, width: int) -> Iterator[list[Span]]:
    # A closed loop has no last instant.
    clock = f"  {_clock(p.elapsed_s)}" + (f" of {_clock(p.total_s)}" if p.total_s else "")
    # The bar is of requests ended, and is full when there is nothing to wait for.
    bar = max(min(BAR, width - len(clock)), 0)
    full = bar * (p.completed + p.failed) // max(p.scheduled, 1)
    yield [("━" * full, "blue"), ("─" * (bar - full), "dim"), (clock, "")]
    yield [("sending" if stage.name == "sending" else stage_text(stage, p), "")]
    if stage.name == "draining" and p.oldest:
        yield [(waiting_text(p), "dim")]
    counts = [
        ("sent", f"{p.sent:,}/{p.scheduled:,}", "bold"),
        ("in flight", f"{p.in_flight:,}", "bold"),
        ("done", f"{p.completed:,}", "bold"),
        ("failed", f"{p.failed:,}", "bold red" if p.failed else "bold"),
    ]
    rates = [("", text, "bold") for text in rates_text(p)]
    yield from _packed(counts, width)
    yield from _packed(rates, width)
    if p.errors:
        yield [("errors ", "dim"), (errors_text(p), "red")]
    yield from _latency_rows(p)


def _packed(cells: Sequence[tuple[str, str, str]], width: int) -> Iterator[list[Span]]:
    """Yield rows of names and values, with as many cells as fit into the width."""
    row: list[Span] = []
    used = 0
    for name, value, style in cells:
        label = f"{name} " if name else ""
        needed = len(label) + len(value)
        if row and used + GAP + needed > width:
            yield row
            row, used = [], 0
        row += [(" " * GAP, "")] if row else []
        used += needed + GAP * bool(used)
        row += [(label, "dim"), (value, style)]
    yield row


def _latency_rows(p: Progress) -> Iterator[list[Span]]:
    """Yield the latencies so far beside their limits; a limit that the p99 exceeds is marked in words, too."""
    yield [("".join(f"{name:<9}" for name in ("", "p50", "p99", "limit" if p.limits_ms else "")).rstrip(), "dim")]
    for name, key, field in LATENCIES:
        latency, limit_ms = getattr(p, field), p.limits_ms.get(key)
        limit = "" if limit_ms is None else seconds(limit_ms / 1000)
        over = limit_ms is not None and latency.p99 is not None and latency.p99 * 1000 > limit_ms
        yield [
            (f"{name:<9}", "dim"),
            (f"{seconds(latency.p50):<9}", "bold"),
            (f"{seconds(latency.p99):<9}", "bold red" if over else "bold"),
            (limit + ("  p99 over" if over else ""), "red" if over else ""),
        ]


def _clock(value_s: float) -> str:
    minutes, rest_s = divmod(round(value_s), 60)
    return f"{minutes}:{rest_s:02d}"
