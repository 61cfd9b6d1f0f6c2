"""What is read without Python is what Python would have read, and at the instant at which it came."""

import select
import socket
import struct
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.test_socket_poller import tcp_pair
from loadgen.client.connection import READ_BYTES
from loadgen.client.kernel_timestamps import SO_TIMESTAMPNS, enable_timestamps
from loadgen.client.socket_poller import READ, reads_tokens
from loadgen.client.token_template import skip_tokens_in_python
from support.scripted_server import chunk, token
from support.token_chunks import CHUNKS, PREFIX, SUFFIX

if not reads_tokens():
    pytest.skip("loadgen.client._token_reader is not compiled here", allow_module_level=True)

from loadgen.client._token_reader import Reader

pytestmark = pytest.mark.usefixtures("stamping")


@dataclass
class Reading:
    """One stream that was lent: `ready` and `spilt` hold what its owner was told."""

    reader: Reader
    near: socket.socket
    far: socket.socket
    sent_ns: int
    last_ns: int = 0
    ready: list[int] = field(default_factory=list)
    spilt: list[tuple[bytes, bytes, int, int]] = field(default_factory=list)

    def lend(self, sent_ns: int | None = None) -> None:
        self.reader.take_over(
            self.near.fileno(),
            PREFIX,
            SUFFIX,
            self.sent_ns if sent_ns is None else sent_ns,
            self.last_ns,
            lambda *told: self.spilt.append(told),
        )

    def send(self, data: bytes) -> None:
        """Over loopback it is there when this returns."""
        self.far.sendall(data)
        self.reader.serve()

    def taken(self) -> list[int]:
        return array("q", self.reader.give_back(self.near.fileno())).tolist()


@contextmanager
def reading() -> Iterator[Reading]:
    near, far = tcp_pair()
    with near, far, select.epoll() as poll:
        enable_timestamps(near)
        reader = Reader(poll.fileno())
        one = Reading(reader, near, far, time.monotonic_ns())
        poll.register(near, READ | select.EPOLLRDHUP | select.EPOLLET)
        reader.watch(near.fileno(), one.ready.append)
        one.lend()
        yield one
        reader.forget(near.fileno())


def heard(data: bytes) -> int | None:
    """How many tokens `data` was taken for; None: it was handed on as it came."""
    with reading() as one:
        one.send(data)
        taken = one.taken()
        if not one.spilt:
            return len(taken)
        assert [(instants, bytes_, err) for instants, bytes_, _, err in one.spilt] == [(b"", data, 0)]
        assert not taken
        return None


def by_template(data: bytes) -> int | None:
    stop, count = skip_tokens_in_python(data, 0, PREFIX, SUFFIX)
    return count if stop == len(data) else None


@pytest.mark.parametrize(("data", "is_token"), [row[1:] for row in CHUNKS], ids=[row[0] for row in CHUNKS])
def test_the_rule(data: bytes, is_token: bool) -> None:
    assert heard(data) == (1 if is_token else None)


@given(
    st.binary(min_size=1, max_size=8) | st.text(min_size=1, max_size=8).map(str.encode), st.sampled_from([0, 180, 4050])
)
def test_a_chunk_is_a_token_if_it_is_one_for_python(text: bytes, more: int) -> None:
    data = token("x").replace(b'"x"', b'"' + text + b"y" * more + b'"')
    data = chunk(data[data.index(b"\r\n") + 2 : -2])
    assert heard(data) == by_template(data)


@given(st.data())
def test_any_bytes_of_a_token_changed(data: st.DataObject) -> None:
    whole = bytearray(token(data.draw(st.sampled_from(["a", "é\\n", "x" * 180]))))
    for _ in range(data.draw(st.integers(1, 2))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    assert heard(bytes(whole)) == by_template(bytes(whole))


@given(
    st.lists(st.sampled_from(["a", " the", "é", "\\n", "x" * 200]), min_size=1, max_size=5),
    st.sampled_from([b"", b"\r\n", b"0\r\n\r\n", token("a")[:-1], token(""), token("a", '"stop"'), b"46", b"046\r\n"]),
    st.booleans(),
)
def test_a_read_is_all_tokens_or_handed_on_whole(words: list[str], other: bytes, first: bool) -> None:
    tokens = b"".join(map(token, words))
    data = other + tokens if first else tokens + other
    assert heard(data) == by_template(data)


def test_instants_are_of_arrival_in_order_and_handed_on_with_what_follows() -> None:
    with reading() as one:
        one.send(token("a"))
        one.far.sendall(token("b") * 2)
        time.sleep(0.05)
        awake_ns = time.monotonic_ns()
        one.reader.serve()
        one.send(b"0\r\n\r\n")
        ((instants, data, arrived_ns, err),) = one.spilt
        assert one.taken() == [], "they are told once"
    a, b, c = array("q", instants)
    assert one.sent_ns <= a < b == c < awake_ns - 40_000_000 < arrived_ns <= time.monotonic_ns()
    assert (data, err, one.ready) == (b"0\r\n\r\n", 0, [])


def test_after_it_spilt_reading_is_its_owners_until_it_is_lent_again() -> None:
    with reading() as one:
        one.send(b"x")
        one.send(token("a"))
        assert (len(one.spilt), one.ready) == (1, [READ])
        assert one.near.recv(100) == token("a")
        one.lend()
        one.send(token("b"))
        assert (len(one.spilt), len(one.taken())) == (1, 1)


def test_a_stamp_from_before_the_request_is_not_believed() -> None:
    """Somebody has set the clock: the time of reading has to do."""
    with reading() as one:
        one.taken()
        one.far.sendall(token("a"))
        sent_ns = time.monotonic_ns()
        one.lend(sent_ns)
        one.reader.serve()
        (read_ns,) = one.taken()
    assert sent_ns <= read_ns <= time.monotonic_ns()


def test_without_a_stamp_python_says_when_it_was() -> None:
    with reading() as one:
        one.near.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 0)
        one.send(token("a"))
    assert one.spilt == [(b"", token("a"), -1, 0)]


def test_no_token_comes_before_the_one_before_it() -> None:
    """Stamps are of another clock, and what lies between the two is not known to the ns."""
    with reading() as one:
        one.taken()
        one.last_ns = time.monotonic_ns() + 10**12
        one.lend()
        one.send(token("a"))
        one.send(token("a"))
        assert one.taken() == [one.last_ns] * 2


def test_of_a_read_that_fills_its_room_nothing_is_kept() -> None:
    """More may be left, and only the owner can ask for it."""
    with reading() as one:
        one.far.setblocking(False)
        sent = one.far.send(token("a") * 2000)
        assert sent > READ_BYTES
        one.reader.serve()
        assert [len(data) for _, data, _, _ in one.spilt] == [READ_BYTES]


def test_an_end_and_a_reset_are_told_as_news() -> None:
    for linger in (None, struct.pack("ii", 1, 0)):
        with reading() as one:
            one.send(token("a"))
            if linger:
                one.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            one.far.close()
            one.reader.serve()
            assert len(one.ready) == 1
            assert one.ready[0] != READ
            assert len(one.taken()) == 1


def test_it_is_no_use_to_lend_what_is_not_watched_or_is_lent() -> None:
    with reading() as one:
        with pytest.raises(ValueError, match="lent already"):
            one.lend()
        one.reader.forget(one.near.fileno())
        one.reader.forget(one.near.fileno())
        with pytest.raises(ValueError, match="not watched"):
            one.lend()
        assert one.taken() == []
        with pytest.raises(ValueError, match="-1"):
            one.reader.watch(-1, one.ready.append)


def test_who_raises_is_heard() -> None:
    def bad(*_: object) -> None:
        raise ZeroDivisionError

    with reading() as one:
        one.taken()
        one.reader.take_over(one.near.fileno(), PREFIX, SUFFIX, 0, 0, bad)
        with pytest.raises(ZeroDivisionError):
            one.send(b"x")
        one.reader.watch(one.near.fileno(), bad)
        with pytest.raises(ZeroDivisionError):
            one.send(b"x")


# -- words of the tokens ----------------------------------------------------------------------------------------------


def test_the_bytes_of_tokens_are_kept_on_request_and_handed_over_once() -> None:
    with reading() as one:
        one.reader.keep_words(one.near.fileno())
        one.send(token("a"))
        one.send(token("b") + token("c"))
        assert len(one.taken()) == 3
        assert one.reader.kept_words(one.near.fileno()) == token("a") + token("b") + token("c")
        assert one.reader.kept_words(one.near.fileno()) == b""
        one.lend()
        one.send(token("d"))
        assert len(one.taken()) == 1
        assert one.reader.kept_words(one.near.fileno()) == b"", "only of the lending that it was requested for"


def test_the_bytes_before_other_data_are_kept_and_those_of_it_are_not() -> None:
    with reading() as one:
        one.reader.keep_words(one.near.fileno())
        one.send(token("a"))
        one.send(token("b") + chunk(b"data: [DONE]\n\n"))
        ((instants, data, _, _),) = one.spilt
        assert (len(instants) // 8, data) == (1, token("b") + chunk(b"data: [DONE]\n\n"))
        assert one.reader.kept_words(one.near.fileno()) == token("a")


def test_only_a_socket_that_is_lent_keeps_words() -> None:
    with reading() as one:
        one.taken()
        with pytest.raises(ValueError, match="is not lent"):
            one.reader.keep_words(one.near.fileno())
        assert one.reader.kept_words(one.near.fileno()) == b""
        assert one.reader.kept_words(9999) == b""
