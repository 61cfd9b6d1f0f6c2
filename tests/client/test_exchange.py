"""An exchange ends once, with one record, however it ends and whatever is done to it; on every transport."""

import asyncio
import socket
from collections.abc import Callable, Sequence

import pytest

from client.test_client import on_uvloop
from loadgen.client.client import Client, Exchange, Post
from loadgen.record import RequestRecord
from support.scripted_server import DONE, END, FINISH, GOOD, HEAD, Step, Wire, token, wire

pytestmark = pytest.mark.usefixtures("transport")

Script = Sequence[Step] | Callable[[int], Sequence[Step]]
SILENT: Sequence[Step] = (60.0,)


def post(index: int = 0) -> Post:
    return Post("/chat/completions", b"{}", index, "chat", 1, f"run-{index}")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def test_a_record_arrives_after_send_has_returned_even_if_connecting_fails_at_once() -> None:
    async def main() -> None:
        async with Client("http://127.0.0.1:1/v1", timeout_s=5) as client:
            await client.post("/x", b"{}", workload="resolves the address")
            records: list[RequestRecord] = []
            exchange = client.send(post(), records.append)
            assert not records and not exchange.is_complete
            await until(lambda: bool(records))
            assert exchange.is_complete
            assert records[0].error == "connect"

    on_uvloop(main())


@pytest.mark.parametrize("is_pooled", [False, True], ids=["new connection", "pooled connection"])
@pytest.mark.parametrize("delay_s", [None, 0.0, 0.05], ids=["at once", "in the next turn", "while it waits"])
def test_cancelled_at_any_time_it_has_one_record(is_pooled: bool, delay_s: float | None) -> None:
    async def main() -> list[RequestRecord]:
        records: list[RequestRecord] = []
        async with (
            wire(lambda n: GOOD if is_pooled and n == 0 else SILENT) as server,
            Client(server.url, timeout_s=5) as client,
        ):
            if is_pooled:
                await client.post("/x", b"{}", workload="first")
            exchange = client.send(post(), records.append)
            if delay_s is not None:
                await asyncio.sleep(delay_s)
            client.cancel(exchange)
            client.cancel(exchange)
            await asyncio.sleep(0.05)
        return records

    (record,) = on_uvloop(main())
    assert (record.error, record.detail) == ("cancelled", "aborted while in flight")


def test_a_complete_exchange_cannot_be_cancelled() -> None:
    async def main() -> list[RequestRecord]:
        records: list[RequestRecord] = []
        async with wire(GOOD) as server, Client(server.url, timeout_s=5) as client:
            exchange = client.send(post(), records.append)
            await until(lambda: bool(records))
            client.cancel(exchange)
            again = await client.post("/x", b"{}", workload="uses the same connection")
            assert again.error is None
            assert server.connections == 1
        return records

    (record,) = on_uvloop(main())
    assert record.error is None


def test_cancelling_one_leaves_the_others_alone() -> None:
    async def main() -> list[RequestRecord]:
        records: list[RequestRecord] = []
        slow: Sequence[Step] = (HEAD, token("a"), 0.1, token("b", '"stop"'), DONE, END)
        async with wire(slow) as server, Client(server.url, timeout_s=5) as client:
            exchanges = [client.send(post(i), records.append) for i in range(3)]
            await asyncio.sleep(0.05)
            client.cancel(exchanges[1])
            assert [record.index for record in records] == [1]
            await until(lambda: len(records) == 3)
        return sorted(records, key=lambda record: record.index)

    assert [record.error for record in on_uvloop(main())] == [None, "cancelled", None]


def in_turn(script: Callable[[int], Sequence[Step]], count: int = 2) -> tuple[list[RequestRecord], Wire]:
    async def main() -> tuple[list[RequestRecord], Wire]:
        async with wire(script) as server, Client(server.url, timeout_s=5) as client:
            return [await client.post("/x", b"{}", workload="w", index=i) for i in range(count)], server

    return on_uvloop(main())


def test_a_stale_connection_is_replaced_once_only() -> None:
    """The new connection dies as well, but it was not stale: the fault is the server's."""
    records, server = in_turn(lambda n: GOOD if n == 0 else ("close",))
    assert [record.error for record in records] == [None, "connect"]
    assert (server.connections, len(server.requests)) == (2, 3)


def test_a_stale_connection_is_replaced_by_a_new_one_with_a_state_of_its_own() -> None:
    records, server = in_turn(lambda n: ("close",) if n == 1 else GOOD)
    assert [(record.error, len(record.chunk_ns)) for record in records] == [(None, 3)] * 2
    assert (server.connections, len(server.requests)) == (2, 3)


@pytest.mark.parametrize("begun", [(HEAD,), (HEAD, token("a"))], ids=["after the head", "after a token"])
def test_no_request_is_repeated_once_its_response_has_begun(begun: Sequence[Step]) -> None:
    records, server = in_turn(lambda n: GOOD if n == 0 else (*begun, "close"))
    assert [record.error for record in records] == [None, "truncated"]
    assert len(server.requests) == 2


def test_no_request_is_repeated_after_part_of_a_head(transport: str) -> None:
    if transport == "aiohttp":
        pytest.skip("aiohttp does not report a head in part")
    records, server = in_turn(lambda n: GOOD if n == 0 else (HEAD[:20], "close"))
    assert [record.error for record in records] == [None, "connect"]
    assert len(server.requests) == 2


def test_time_limits_expire_in_the_order_of_sending_and_spare_what_is_complete() -> None:
    async def main() -> list[RequestRecord]:
        records: list[RequestRecord] = []
        async with (
            wire(lambda n: GOOD if n == 0 else SILENT) as server,
            Client(server.url, timeout_s=0.25) as client,
        ):
            client.send(post(0), records.append)
            await until(lambda: bool(records))
            for i in (1, 2, 3):
                client.send(post(i), records.append)
                await asyncio.sleep(0.03)
            await until(lambda: len(records) == 4)
            late = [record.index for record in records]
            records.append(await client.post("/x", b"{}", workload="after the timer has ended", index=4))
            assert late == [0, 1, 2, 3]
        return records

    records = on_uvloop(main())
    assert [record.error for record in records] == [None, "timeout", "timeout", "timeout", "timeout"]
    assert {record.detail for record in records[1:]} == {"no end after 0.25 s"}


def test_without_a_time_limit_it_waits() -> None:
    async def main() -> Exchange:
        async with wire(SILENT) as server, Client(server.url, timeout_s=None) as client:
            exchange = client.send(post(), lambda _: None)
            await asyncio.sleep(0.1)
            assert not exchange.is_complete
            client.cancel(exchange)
            return exchange

    assert on_uvloop(main()).is_complete


def test_a_record_may_send_the_next_request_over_the_same_connection() -> None:
    async def main() -> tuple[list[RequestRecord], int]:
        records: list[RequestRecord] = []
        async with wire(GOOD) as server, Client(server.url, timeout_s=5) as client:

            def go_on(record: RequestRecord) -> None:
                records.append(record)
                if record.index < 4:
                    client.send(post(record.index + 1), go_on)

            client.send(post(), go_on)
            await until(lambda: len(records) == 5)
            return records, server.connections

    records, connections = on_uvloop(main())
    assert [(record.index, record.error) for record in records] == [(i, None) for i in range(5)]
    assert connections == 1


def test_exchanges_in_flight_at_the_same_time_have_connections_of_their_own(transport: str) -> None:
    async def main() -> tuple[list[RequestRecord], int]:
        records: list[RequestRecord] = []
        async with (
            wire((HEAD, token("a"), 0.05, FINISH, DONE, END)) as server,
            Client(server.url, timeout_s=5) as client,
        ):
            for i in range(3):
                client.send(post(i), records.append)
            await until(lambda: len(records) == 3)
            for i in range(3):
                client.send(post(i), records.append)
            await until(lambda: len(records) == 6)
            return records, server.connections

    records, connections = on_uvloop(main())
    assert [record.error for record in records] == [None] * 6
    assert connections == 3, "idle ones are taken first"


def test_a_name_that_does_not_resolve_is_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> RequestRecord:
        async with Client("http://host.invalid/v1", timeout_s=5) as client:
            return await client.post("/x", b"{}", workload="w")

    def fails(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    with asyncio.Runner() as runner:  # uvloop resolves without Python's getaddrinfo
        record = runner.run(main())
    assert (record.error, record.sent_ns is None or record.status is None) == ("connect", True)
