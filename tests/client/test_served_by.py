"""A response's headers name engines of those that are known, and nothing else of them is kept."""

import pytest

from loadgen.client.http1 import parse_head
from loadgen.client.served_by import ServedBy

ENGINES = ["a=http://127.0.0.1:8001,gpus=0", "b=http://127.0.0.1:8002/v1,gpus=1"]
HEAD = "HTTP/1.1 200 OK\r\nX-Other: a\r\n{}\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("field", "engines"),
    [
        ("X-Served-By: a", ["a"]),
        ("x-served-by:127.0.0.1:8002", ["b"]),
        ("X-SERVED-BY: http://127.0.0.1:8001/", ["a"]),
        ("X-Served-By: a, b, a", ["a", "b"]),
        ("X-Served-By: b\r\nX-Decoded-By: a", ["b", "a"]),
        ("X-Served-By: localhost:8001", ["a"]),
        ("X-Served-By: [::1]:8002", ["b"]),
        ("X-Served-By: " + 30_000 * "c," + "a", []),
        ("X-Served-By: c", []),
        ("X-Served-By:", []),
        ("X-Served-By: 127.0.0.1:8002, \xff\xfe" + 9000 * "x", ["b"]),
        ("X-Served-By: A", []),
        ("X-Not-Served-By: a", None),
    ],
)
def test_engines_are_found_by_name_url_or_address(field: str, engines: list[str] | None) -> None:
    served_by = ServedBy(["X-Served-By", "x-decoded-by"], ENGINES)
    assert served_by.engines(parse_head(HEAD.format(field).encode("latin-1")).fields) == engines


def test_without_a_header_s_name_no_field_names_an_engine() -> None:
    assert ServedBy((), ENGINES).engines(b"\r\nX-Served-By: a\r\n\r\n") is None


def test_the_name_of_a_header_is_no_pattern() -> None:
    assert ServedBy(["x.served-by"], ENGINES).engines(b"\r\nx-served-by: a\r\n\r\n") is None
