"""When bytes arrived does not depend on when they are read; and no socket's news is lost."""

import asyncio
import socket
import struct
import sys
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.test_client import on_uvloop
from loadgen.client import socket_poller
from loadgen.client.client import Client
from loadgen.client.socket_poller import READ, ROOM_FOR_A_STAMP, WRITE, ArrivalClock, Selector, Sockets, reads_tokens
from loadgen.clock import anchor
from support.scripted_server import END, HEAD, token

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux stamps what it receives")
MS = 1_000_000
pytestmark = pytest.mark.usefixtures("stamping")


@linux
def test_a_token_that_came_while_this_process_slept_has_the_instant_at_which_it_came() -> None:
    async def main() -> tuple[int, int, str | None]:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            host, port = listening.getsockname()
            async with Client(f"http://{host}:{port}", timeout_s=5) as client:
                exchange = asyncio.ensure_future(client.post("/x", b"{}", workload="late"))
                far, _ = await asyncio.to_thread(listening.accept)
                with far:
                    await asyncio.to_thread(far.recv, 1000)
                    far.send(HEAD + token("a"))
                    time.sleep(0.05)  # the loop's own thread
                    awake_ns = time.monotonic_ns()
                    await asyncio.sleep(0.01)  # what is read at once has one stamp
                    far.send(token("b", '"length"') + END)
                    record = await exchange
            return record.chunk_ns[0], awake_ns, client.stamped_by

    first_ns, awake_ns, by = on_uvloop(main())
    assert by == "kernel"
    assert first_ns < awake_ns


@linux
def test_bytes_read_late_have_the_stamp_of_their_arrival() -> None:
    clock, (near, far) = ArrivalClock(), tcp_pair()
    with near, far:
        clock.start(near)
        sent_ns = time.monotonic_ns()
        far.send(b"x")
        asleep_ns = time.monotonic_ns()
        time.sleep(0.05)
        _, ancillary, _, _ = near.recvmsg(10, ROOM_FOR_A_STAMP)
        arrived_ns = clock.arrived_ns(ancillary, sent_ns, time.monotonic_ns())
    assert sent_ns <= arrived_ns < asleep_ns + 50 * MS
    assert clock.stamped_by == "kernel"


def test_without_a_stamp_it_is_the_time_of_reading() -> None:
    clock = ArrivalClock()
    assert clock.stamped_by is None
    assert clock.arrived_ns([], 5, 9) == 9
    assert clock.stamped_by == "reading"


@given(off_ns=st.integers(-(10**12), 10**12), sent=st.integers(0, 10**9), taken=st.integers(0, 10**9))
def test_a_stamp_from_before_the_clock_was_set_is_not_believed(off_ns: int, sent: int, taken: int) -> None:
    """Whatever the wall clock did, an arrival lies between sending and reading."""
    both = anchor()
    sent_ns, read_ns = both.monotonic_ns - sent, both.monotonic_ns + taken
    stamp = struct.pack("@ll", *divmod(both.wall_ns + off_ns, 10**9))
    found = ArrivalClock().arrived_ns([(socket.SOL_SOCKET, 35, stamp)], sent_ns, read_ns)
    assert sent_ns <= found <= read_ns
    if abs(off_ns) > 3 * 10**9:
        assert found == read_ns


@pytest.fixture(params=["compiled", "epoll", "selectors"])
def on_each(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "compiled" and not reads_tokens():
        pytest.skip("loadgen.client._token_reader is not compiled here")
    if request.param == "epoll":
        if socket_poller.Poll is Selector:
            pytest.skip("no epoll here")
        monkeypatch.setattr(socket_poller, "Compiled", None)
    if request.param == "selectors":
        monkeypatch.setattr(socket_poller, "Poll", Selector)
    return str(request.param)


@pytest.mark.usefixtures("on_each")
def test_what_came_before_a_reset_is_read_and_then_the_reset() -> None:
    heard: list[bytes | str] = []

    def read(watched: Sockets, near: socket.socket) -> None:
        try:
            heard.append(near.recv(3))
            watched.again(near)
        except ConnectionResetError:
            heard.append("reset")

    async def main() -> None:
        near, far = tcp_pair()
        with far:
            watched = Sockets()
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
            watched = Sockets()
            watched.watch(near, heard.append)
            await asyncio.sleep(0.01)
            assert not heard
            watched.again(near, writes=True)
            await until(lambda: bool(heard))
            assert set(heard) == {WRITE}
            watched.again(near)
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
        watched = Sockets()

        def close_all(_: int) -> None:
            nonlocal calls
            calls += 1
            for near, _far in pairs:
                watched.close_one(near)

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
