"""Show the progress of a run while it lasts.

Drawing is the caller's cost: a drawn update of LiveView takes 0.2 to 0.6 ms of the calling thread, of PlainView about
0.1 ms, and one that is skipped 0.1 µs (two shared cores, CPython 3.11).
"""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from loadgen.errors import LoadgenError
from loadgen.report.format import UNKNOWN, clean, joules, number, watts
from loadgen.run.progress import NullView, Progress, View

LIVE_EVERY_S = 0.25
PLAIN_EVERY_S = 5.0
BAR = 40
"""Columns."""


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


class PlainView:
    """One line every PLAIN_EVERY_S, and a last one: for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._drawn_s = 0.0
        self._latest: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        if self._latest is not None and self._latest.elapsed_s > self._drawn_s:
            self._draw(self._latest)

    def update(self, progress: Progress) -> None:
        self._latest = progress
        if progress.elapsed_s - self._drawn_s >= PLAIN_EVERY_S:
            self._draw(progress)

    def _draw(self, progress: Progress) -> None:
        self._drawn_s = progress.elapsed_s
        self._console.print(line(progress), soft_wrap=True, markup=False, highlight=False)


class LiveView:
    """A few lines in place, redrawn at most every LIVE_EVERY_S, gone when the run ends."""

    def __init__(self, console: Console, title: str = "") -> None:
        self._title = clean(title, 120)
        # No refresh thread: what is drawn is drawn here, when it is asked for, and nowhere else.
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._drawn_s: float | None = None

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self._live.stop()

    def update(self, progress: Progress) -> None:
        if self._drawn_s is not None and progress.elapsed_s - self._drawn_s < LIVE_EVERY_S:
            return
        self._drawn_s = progress.elapsed_s
        self._live.update(panel(progress, self._title), refresh=True)


def line(progress: Progress) -> str:
    """Return all numbers in one line."""
    p = progress
    return (
        f"{p.elapsed_s:.0f} s: sent {p.sent:,}/{p.scheduled:,}, in flight {p.in_flight:,}, completed {p.completed:,},"
        f" failed {p.failed:,}, {number(p.tokens_per_s)} tokens/s, {watts(p.watts)},"
        f" {joules(p.joules_per_token)}/token, {_clock(p.remaining_s)} left"
    )


def panel(progress: Progress, title: str) -> Text:
    """One Text, not tables: laying a table out costs the caller's thread five times as much."""
    p = progress
    cells = [
        ("sent", f"{p.sent:,}/{p.scheduled:,}"),
        ("in flight", f"{p.in_flight:,}"),
        ("done", f"{p.completed:,}"),
        ("failed", f"{p.failed:,}"),
        ("tokens/s", number(p.tokens_per_s)),
        ("power", watts(p.watts)),
        ("J/token", joules(p.joules_per_token)),
    ]
    widths = [max(len(name), len(value)) + 2 for name, value in cells]
    names = "".join(name.ljust(width) for (name, _), width in zip(cells, widths, strict=True))
    values = "".join(value.ljust(width) for (_, value), width in zip(cells, widths, strict=True))
    # The bar is of requests ended, and is full when there is nothing to wait for.
    full = BAR * (p.completed + p.failed) // max(p.scheduled, 1)
    clock = f"  {_clock(p.elapsed_s)}, {_clock(p.remaining_s)} left\n"
    parts = [(title + "\n", "bold")] if title else []
    parts += [("━" * full, "blue"), ("━" * (BAR - full), "dim"), (clock, "")]
    parts += [(names + "\n", "dim"), (values, "bold red" if p.failed else "bold")]
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return UNKNOWN
    minutes, rest_s = divmod(round(max(seconds, 0)), 60)
    return f"{minutes}:{rest_s:02d}"
