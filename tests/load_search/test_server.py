"""The server of a search: its URL, and what it says when it is lost."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from time import monotonic

import pytest

from loadgen.errors import LoadgenError
from loadgen.load_search import server
from loadgen.load_search.faults import ServerLostError
from loadgen.load_search.server import Server
from loadgen.run.progress import NullView


def test_a_server_that_does_not_come_back_is_named_without_its_secrets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(server, "_BACK_S", 0.0)
    lost = Server("http://user:hidden@127.0.0.1:1/v1?key=hidden", None, (), tmp_path, lambda title: NullView(), None)
    with pytest.raises(ServerLostError, match=r"^no server answers at http://127\.0\.0\.1:1/v1$"):
        lost.restart()


@pytest.mark.parametrize(
    ("api", "url"),
    [("http://host:1/v1", "http://user:hidden@host:1/v1?key=hidden"), (None, "http://user:hidden@host:1/?key=hidden")],
)
def test_later_runs_go_to_where_the_api_was(tmp_path: Path, api: str | None, url: str) -> None:
    there = Server("http://user:hidden@host:1/?key=hidden", None, (), tmp_path, lambda title: NullView(), None)
    there.move_to(api)
    assert there.url == url


def test_a_start_is_waited_for_no_longer_than_the_budget_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def slow_start(*_: str, log: Path, progress: Callable[[float, str], None]) -> Iterator[str]:
        progress(0.4, "loading")
        yield "http://host:1/v1"

    monkeypatch.setattr("loadgen.load_search.server.served", slow_start)
    for budget_s, is_over in ((-0.1, True), (60.0, False)):
        starting = Server("", "sim", (), tmp_path, lambda title: NullView(), None, monotonic() + budget_s)
        fault = pytest.raises(LoadgenError, match=r"the server sim did not start within the 0\.4 s left")
        with fault if is_over else nullcontext(), starting:
            assert starting.url == "http://host:1/v1"
