"""A server that says exactly what a test tells it to, byte for byte and pause for pause."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

Step = bytes | float | Literal["close", "reset"]
"""Bytes to write, seconds to wait, or an end."""

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


END = chunk(b"")


def token(text: str, finish: str = "null") -> bytes:
    return chunk(
        b'data: {"choices":[{"delta":{"content":"%b"},"finish_reason":%b}]}\n\n' % (text.encode(), finish.encode())
    )


ROLE = chunk(b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n')
USAGE = chunk(b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}\n\n')
FINISH = chunk(b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n')
DONE = chunk(b"data: [DONE]\n\n")
GOOD: Sequence[Step] = (HEAD, ROLE, token("a"), token("b"), token("c", '"length"'), USAGE, DONE, END)


@dataclass
class Wire:
    """`requests` holds the head and body of each request that came, `connections` counts them."""

    url: str = ""
    connections: int = 0
    requests: list[bytes] = field(default_factory=list)


@asynccontextmanager
async def wire(
    script: Sequence[Step] | Callable[[int], Sequence[Step]], tls: ssl.SSLContext | None = None
) -> AsyncIterator[Wire]:
    """Answers request n (from 0) with `script`, or with `script(n)`."""
    served = Wire()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(
                    (int(h.split(b":")[1]) for h in head.lower().split(b"\r\n") if h[:15] == b"content-length:"), 0
                )
                served.requests.append(head + await reader.readexactly(length))
                steps = script(len(served.requests) - 1) if callable(script) else script
                if not await play(steps, writer):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    served.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield served
    finally:
        server.close()


async def play(steps: Sequence[Step], writer: asyncio.StreamWriter) -> bool:
    """Whether the connection is still up afterwards."""
    for step in steps:
        match step:
            case "close":
                return False
            case "reset":
                writer.transport.abort()
                return False
            case bytes():
                writer.write(step)
                await writer.drain()
            case pause_s:
                await asyncio.sleep(float(pause_s))
    return True
