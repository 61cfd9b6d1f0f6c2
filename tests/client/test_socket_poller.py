"""When bytes arrived does not depend on when they are read; and no socket's news is lost."""

import asyncio
import socket
import struct
import sys
from collections.abc import Callable

import pytest

from client.test_client import on_uvloop
from loadgen.client import socket_poller
from loadgen.client.socket_poller import READ, WRITE, SelectorPoll, SocketPoller, reads_tokens

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux stamps what it receives")
MS = 1_000_000
pytestmark = pytest.mark.usefixtures("stamping")


@pytest.fixture(params=["compiled", "epoll", "selectors"])
def on_each(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "compiled" and not reads_tokens():
        pytest.skip("loadgen.client._token_reader is not compiled here")
    if request.param == "epoll":
        if socket_poller.Poll is SelectorPoll:
            pytest.skip("no epoll here")
        monkeypatch.setattr(socket_poller, "CompiledReader", None)
    if request.param == "selectors":
        monkeypatch.setattr(socket_poller, "Poll", SelectorPoll)
    return str(request.param)


@pytest.mark.usefixtures("on_each")
def test_what_came_before_a_reset_is_read_and_then_the_reset() -> None:
    heard: list[bytes | str] = []

    def read(watched: SocketPoller, near: socket.socket) -> None:
        try:
            heard.append(near.recv(3))
            watched.rearm(near)
        except ConnectionResetError:
            heard.append("reset")

    async def main() -> None:
        near, far = tcp_pair()
        with far:
            watched = SocketPoller()
            watched.watch(near, lambda _: read(watched, near))
            far.send(b"abcdef")
            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await until(lambda: len(heard) >= 2)
        await until(lambda: len(heard) >= 3)
        watched.close()

    on_uvloop(main())
    assert heard[2] in ("reset", b"")
    assert heard[:2] == [b"abc", b"def"]


@pytest.mark.usefixtures("on_each")
def test_writes_are_watched_only_while_they_are_wanted() -> None:
    heard: list[int] = []

    async def main() -> None:
        near, far = tcp_pair()
        with far:
            watched = SocketPoller()
            watched.watch(near, heard.append)
            await asyncio.sleep(0.01)
            assert not heard
            watched.rearm(near, writes=True)
            await until(lambda: bool(heard))
            assert set(heard) == {WRITE}
            watched.rearm(near)
            heard.clear()
            far.send(b"x")
            await until(lambda: bool(heard))
            assert set(heard) == {READ}
            watched.close()
            assert near.fileno() == -1

    on_uvloop(main())


@pytest.mark.usefixtures("on_each")
def test_one_that_another_has_closed_is_not_called_any_more() -> None:
    async def main() -> int:
        calls = 0
        pairs = [tcp_pair() for _ in range(2)]
        watched = SocketPoller()

        def close_all(_: int) -> None:
            nonlocal calls
            calls += 1
            for near, _far in pairs:
                watched.close_socket(near)

        for near, far in pairs:
            watched.watch(near, close_all)
            far.send(b"x")
        await until(lambda: calls > 0)
        await asyncio.sleep(0.01)
        watched.close()
        for _near, far in pairs:
            far.close()
        return calls

    assert on_uvloop(main()) == 1


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = socket.create_connection(listening.getsockname())
        far, _ = listening.accept()
    near.setblocking(False)
    return near, far


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.001)
