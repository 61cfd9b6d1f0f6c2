"""Connections go round over the addresses of a name, and over those alone that can be reached."""

import asyncio
import socket
from collections import Counter

import pytest
import uvloop

from loadgen.client.client import Client
from loadgen.client.connection import Address
from loadgen.client.server_url import parse_server_url
from support.scripted_server import GOOD, play

CONCURRENT = 12


def counts(
    served: list[str], resolved: list[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[Counter[str], tuple[str, ...], list[str | None]]:
    """Return the connections by address of the servers at `served`, the addresses that the client states, and the
    errors, of concurrent requests to a name that resolves to `resolved`."""

    async def main() -> tuple[Counter[str], tuple[str, ...], list[str | None]]:
        reached: Counter[str] = Counter()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            reached[writer.get_extra_info("sockname")[0]] += 1
            await reader.readuntil(b"{}")
            await asyncio.sleep(0.05)
            await play(GOOD, writer)
            writer.close()

        first = await asyncio.start_server(serve, served[0], 0)
        port = first.sockets[0].getsockname()[1]
        servers = [first, *[await asyncio.start_server(serve, address, port) for address in served[1:]]]
        addresses: list[Address] = [
            (socket.AF_INET6, (name, port, 0, 0)) if ":" in name else (socket.AF_INET, (name, port))
            for name in resolved
        ]
        async with Client(f"http://two.pods:{port}/v1", timeout_s=5) as client:
            monkeypatch.setattr(client._pool, "addresses", addresses)
            posts = (client.post("/x", b"{}", workload="chat") for _ in range(CONCURRENT))
            records = await asyncio.gather(*posts)
            stated = client.addresses
        for server in servers:
            server.close()
        return reached, stated, [record.error for record in records]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


ONE, TWO, NOBODY = "127.0.0.1", "127.0.0.2", "127.0.0.3"


@pytest.mark.parametrize(
    ("served", "resolved", "reached", "stated"),
    [
        ([ONE], [ONE], {ONE: 12}, (ONE,)),
        ([ONE, TWO], [ONE, TWO], {ONE: 6, TWO: 6}, (ONE, TWO)),
        ([ONE, TWO], [TWO, ONE], {ONE: 6, TWO: 6}, (TWO, ONE)),
        ([ONE], [ONE, NOBODY], {ONE: 12}, (ONE,)),
        ([ONE], [NOBODY, ONE], {ONE: 12}, (ONE,)),
        ([ONE], [ONE, "::1"], {ONE: 12}, (ONE,)),
        ([ONE], ["::1", ONE], {ONE: 12}, (ONE,)),
    ],
    ids=["one", "two", "two, the other way round", "the second refuses", "the first refuses",
         "the other family is spare", "the other family when the first refuses"],
)  # fmt: skip
def test_each_connection_takes_the_next_address_that_does_not_refuse(
    served: list[str], resolved: list[str], reached: dict[str, int], stated: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert counts(served, resolved, monkeypatch) == (reached, stated, [None] * CONCURRENT)


def test_a_url_in_brackets_is_an_address() -> None:
    url = parse_server_url("http://[::1]:8000/v1")
    assert (url.host, url.netloc) == ("::1", "[::1]:8000")
