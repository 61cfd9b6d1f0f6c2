"""The folder of a search: its options, search.json after each probe, the page, and a run folder for each probe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from loadgen.errors import LoadgenError
from loadgen.files import LOCK_NAME, locked, read_json, write_atomic, writing
from loadgen.report.search_page import render_search_page
from loadgen.results.read_search import read_search_result
from loadgen.results.run_folder import write_json

if TYPE_CHECKING:
    from loadgen.results.search_result import SearchResult

_WHAT = "the search's folder"

CHANGEABLE = frozenset(("budget_s", "width", "max_rps", "start_rps", "processes", "max_failed", "timeout"))
"""Options that a search may go on with another value of: the probes so far stay what they are."""


@contextmanager
def search_folder(path: Path, options: Mapping[str, Any]) -> Iterator[SearchFolder]:
    """Make the folder of a search with these options, or open the one that is there; no other search has it meanwhile.

    LoadgenError: it is in use, is of something else, or of a search with other options.
    """
    holds_search = any((path / name).is_file() for name in ("search.json", "options.json"))
    is_empty = not path.exists() or (path.is_dir() and all(entry.name == LOCK_NAME for entry in path.iterdir()))
    if not (holds_search or is_empty):
        raise LoadgenError(f"--out {path} is not empty and holds no search; choose another")
    with writing(path, _WHAT):
        path.mkdir(parents=True, exist_ok=True)
    with locked(path, _WHAT):
        yield SearchFolder(path, options)


class SearchFolder:
    """Holds what a search knows, so that the same command goes on from it."""

    def __init__(self, path: Path, options: Mapping[str, Any]) -> None:
        """Read the search in the folder, if there is one, and write its `options`, which are without secrets.

        LoadgenError: the search in it has other options.
        """
        self.path = path
        self.result: SearchResult | None = None
        """The search so far; None while it has no probe."""
        stated = {name: value for name, value in options.items() if name not in CHANGEABLE}
        plain = msgspec.json.decode(msgspec.json.encode(stated))
        file = path / "options.json"
        if (path / "search.json").is_file():
            earlier = read_search_result(path)
            if any(setting.probes for setting in earlier.settings):
                _check_same(path, read_json(file, dict[str, Any], "the options of a search"), plain)
                self.result = earlier
        with writing(path, _WHAT):
            (path / "probes").mkdir(parents=True, exist_ok=True)
            write_atomic(file, msgspec.json.format(msgspec.json.encode(plain)) + b"\n")

    def write(self, result: SearchResult) -> None:
        """Write search.json and the page, each of them whole or not at all."""
        self.result = result
        page = render_search_page(result)
        with writing(self.path, _WHAT):
            write_json(self.path / "search.json", result)
            write_atomic(self.path / "report.html", page.encode())


def rewrite_page(path: Path) -> SearchResult:
    """Write the page of the search in a folder again; return the search, which may still go on."""
    result = read_search_result(path)
    with writing(path, _WHAT):
        write_atomic(path / "report.html", render_search_page(result).encode())
    return result


def _check_same(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise LoadgenError for options with other values than those that the search in `path` was begun with."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if names:
        differences = [f"{name} {_shown(before.get(name))}, now {_shown(now.get(name))}" for name in names[:3]]
        raise LoadgenError(
            f"{path} holds a search with other options ({'; '.join(differences)}): choose another --out, or repeat them"
        )


def _shown(value: Any) -> str:
    return "not given" if value is None else msgspec.json.encode(value).decode()[:80]
