"""The time of arrival does not depend on the time of reading."""

import asyncio
import socket
import struct
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.test_client import on_uvloop
from client.test_socket_poller import tcp_pair
from loadgen.client import kernel_timestamps
from loadgen.client.client import Client
from loadgen.client.kernel_timestamps import (
    OFFSET_VALID_NS,
    SO_TIMESTAMPNS,
    TIMESTAMP_BYTES,
    Ancillary,
    ArrivalClock,
    enable_timestamps,
    kernel_wall_ns,
)
from loadgen.clock import Anchor, anchor
from support.scripted_server import END, HEAD, token

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux stamps what it receives")
MS = 1_000_000
pytestmark = pytest.mark.usefixtures("stamping")


def stamp(wall_ns: int, kind: int = SO_TIMESTAMPNS) -> Ancillary:
    return [(socket.SOL_SOCKET, kind, struct.pack("@ll", *divmod(wall_ns, 10**9)))]


@linux
def test_a_token_that_arrives_while_this_process_sleeps_has_the_instant_of_its_arrival() -> None:
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
        enable_timestamps(near)
        sent_ns = time.monotonic_ns()
        far.send(b"x")
        asleep_ns = time.monotonic_ns()
        time.sleep(0.05)
        _, ancillary, _, _ = near.recvmsg(10, TIMESTAMP_BYTES)
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
    arrived_ns = ArrivalClock().arrived_ns(stamp(both.wall_ns + off_ns), sent_ns, read_ns)
    assert sent_ns <= arrived_ns <= read_ns
    if abs(off_ns) > 3 * 10**9:
        assert arrived_ns == read_ns


@pytest.fixture
def wall_ahead_ns(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The offset of a wall clock that the test sets: its only element."""
    ahead = [5_000]
    monkeypatch.setattr(kernel_timestamps, "anchor", lambda: Anchor(wall_ns=ahead[0], monotonic_ns=0))
    return ahead


@pytest.mark.parametrize(
    ("monotonic_ns", "arrived_ns"),
    [(100, 100), (150, 150), (200, 200), (99, 200), (201, 200)],
    ids=["when it was sent", "between", "when it was read", "before it was sent", "after it was read"],
)
def test_a_stamp_counts_from_the_sending_to_the_reading(
    monotonic_ns: int, arrived_ns: int, wall_ahead_ns: list[int]
) -> None:
    clock = ArrivalClock()
    assert clock.arrived_ns(stamp(wall_ahead_ns[0] + monotonic_ns), 100, 200) == arrived_ns
    assert clock.stamped_by == "kernel"


def test_the_offset_of_the_clocks_is_measured_again_when_it_is_no_longer_valid(wall_ahead_ns: list[int]) -> None:
    clock = ArrivalClock()
    assert clock.arrived_ns(stamp(5_000 + 10), 0, 20) == 10
    wall_ahead_ns[0] = 5_003
    limit_ns = 20 + OFFSET_VALID_NS
    assert clock.arrived_ns(stamp(5_000 + 10), 0, limit_ns) == 10, "still the offset of before"
    assert clock.arrived_ns(stamp(5_000 + 10), 0, limit_ns + 1) == 7


def test_one_read_without_a_stamp_makes_reading_the_source(wall_ahead_ns: list[int]) -> None:
    clock = ArrivalClock()
    clock.arrived_ns(stamp(wall_ahead_ns[0] + 10), 0, 20)
    clock.arrived_ns([], 0, 30)
    clock.arrived_ns(stamp(wall_ahead_ns[0] + 40), 0, 40 + 2 * OFFSET_VALID_NS)
    assert clock.stamped_by == "reading"


def test_a_control_message_is_decoded_to_wall_clock_time() -> None:
    assert kernel_wall_ns(stamp(1_700_000_000_123_456_789)) == 1_700_000_000_123_456_789
    other: Ancillary = [(socket.SOL_SOCKET, 1, b"x" * 16)]
    assert kernel_wall_ns(other + stamp(7)) == 7
    assert kernel_wall_ns(other) is None
    assert kernel_wall_ns([(socket.SOL_SOCKET, SO_TIMESTAMPNS, b"short")]) is None
    assert kernel_wall_ns([]) is None
