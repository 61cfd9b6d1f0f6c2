"""Engines are found by their names and addresses, and nothing else names one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.energy.engine_names import EngineNames
from loadgen.energy.named_engine import NamedEngine

A, B = NamedEngine(name="a", url="http://127.0.0.1:8001"), NamedEngine(name="b", url="https://gpu-b/v1")
P = NamedEngine(name="p", url="http://h:1", role="prefill")
D = NamedEngine(name="d", url="http://h:2", role="decode")


@pytest.mark.parametrize(
    ("names", "number"),
    [
        (("a",), 0),
        (("0b9c4d1e", "b"), 1),  # an SDK's random service.instance.id, then service.name
        (("localhost:8001",), 0),
        (("127.0.0.1:8001",), 0),
        (("http://[::1]:8001/v1",), 0),
        (("127.0.0.1:8002",), None),
        (("gpu-b:443",), 1),
        (("gpu-b",), 1),
        (("gpu-b:80",), None),
        (("vllm",), None),
        (("http://[::1",), None),
        (("gpu-b:port",), None),
        (("",), None),
        ((), None),
        (("A",), None),
    ],
)
def test_an_engine_is_named_by_its_name_or_its_address(names: tuple[str, ...], number: int | None) -> None:
    assert EngineNames([A, B]).find(names) == number


def test_a_host_with_several_engines_names_none_of_them() -> None:
    assert EngineNames([P, D]).find(["h"]) is None
    assert EngineNames([P, D]).find(["h:2"]) == 1


def test_engines_at_one_address_are_named_by_their_whole_urls() -> None:
    names = EngineNames([NamedEngine(name="c", url="http://h:1/c"), NamedEngine(name="d", url="http://h:1/d")])
    assert [names.find([url]) for url in ("http://h:1/c", "http://h:1/d/", "http://h:1", "h:1")] == [0, 1, None, None]


@given(st.lists(st.text(max_size=40), max_size=4))
def test_any_text_names_an_engine_or_none(names: list[str]) -> None:
    assert EngineNames([A, B]).find(names) in (None, 0, 1)
