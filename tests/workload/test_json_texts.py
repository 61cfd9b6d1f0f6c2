"""A file of JSON is read value by value, whatever its shape, its size and the place where it is cut."""

import io
import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.errors import LoadgenError
from loadgen.workload import json_texts as module
from loadgen.workload.json_texts import decoded, json_texts, list_elements

PATH = Path("data.json")
TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(['"', "\\", "]},["])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
)


def texts(data: bytes, max_bytes: int = 2**20) -> list[tuple[int, str]]:
    return list(json_texts(PATH, io.BufferedReader(io.BytesIO(data)), max_bytes))  # type: ignore[arg-type]


@given(st.lists(VALUES, max_size=5), st.integers(1, 40), st.sampled_from([None, 1]), st.booleans())
def test_a_list_is_read_element_by_element_wherever_a_chunk_ends(
    values: list[object], chunk: int, indent: int | None, is_ascii: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_BYTES", chunk)
        data = json.dumps(values, indent=indent, ensure_ascii=is_ascii).encode()
        elements = list(list_elements(PATH, io.BytesIO(data)))
    assert [json.loads(text) for _, text in elements] == values
    assert [number for number, _ in elements] == list(range(1, len(values) + 1))


def test_lines_lists_and_an_indented_object_are_told_apart() -> None:
    assert texts(b'{"a": 1}\n\n{"a": 2}\r\n') == [(1, '{"a": 1}'), (3, '{"a": 2}')]
    assert texts(b'\xef\xbb\xbf \n[{"a": 1},\n {"a": 2}]\n') == [(1, '{"a": 1}'), (2, '{"a": 2}')]
    ((number, text),) = texts(json.dumps({"a": [1, {"b": 2}]}, indent=2).encode())
    assert number == 1
    assert json.loads(text) == {"a": [1, {"b": 2}]}
    assert texts(b'[{"a":\n 1}]') == [(1, '{"a":  1}')]
    assert texts(b"") == texts(b"[]") == texts(b" [ ] ") == []


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b'[{"a": 1}, {"a": ', "data.json:2: the file ends within its list; it was cut off"),
        (b'[{"a": "x', "data.json:1: the file ends within its list; it was cut off"),
        (b'[{"a": 1}] {"a": 2}', 'data.json: {"a": 2} follows the end of its list'),
        (b'[{"a": "' + b"x" * 2**21 + b'"}]', "data.json:1: the element is longer than 1 MiB"),
        (b'{"a": "' + b"x" * 2**21 + b'"}', "data.json:1: the line is longer than 1 MiB"),
        (b'[1, "a\nb"]', "data.json:2: a text has a line end in it; JSON writes it as \\n"),
        (b'[1, "\xff"]', "data.json:2: byte 0xff at 1 is not UTF-8"),
    ],
)
def test_a_file_that_is_cut_or_hostile_is_an_error_with_its_place(data: bytes, fault: str) -> None:
    with pytest.raises(LoadgenError) as raised:
        texts(data)
    assert str(raised.value) == fault


@pytest.mark.parametrize("text", ["[" * 10**5, '{"a":' * 10**5, "[}", "[1,]", "[,1]", "[1 2]", '["a" "b"]'])
def test_a_list_of_anything_else_than_values_ends_in_one_error(text: str) -> None:
    decoder = msgspec.json.Decoder(int | str)
    with pytest.raises(LoadgenError, match=r"data\.json:[12]: "):
        list(decoded(PATH, texts(text.encode()), decoder))


def test_a_list_is_read_in_the_memory_of_an_element(tmp_path: Path) -> None:
    class Counting(io.BytesIO):
        taken = 0

        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            Counting.taken += len(data)
            return data

    data = b"[" + b",".join([b'{"a": "%s"}' % (b"x" * 1000)] * 10_000) + b"]"
    elements = list_elements(PATH, Counting(data))
    next(elements)
    assert Counting.taken <= 2**20 < len(data)
    assert sum(1 for _ in elements) == 9_999


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"a": [{"b": "x"}]}', "a[0][...]: expected `int`, got `str`"),
        ('{"c": 1}', "unknown field `c`"),
    ],
)
def test_a_value_of_another_type_is_described_by_its_field(text: str, fault: str) -> None:
    class Row(msgspec.Struct, forbid_unknown_fields=True):
        a: list[dict[str, int]]

    with pytest.raises(LoadgenError) as raised:
        list(decoded(PATH, [(7, text)], msgspec.json.Decoder(Row)))
    assert str(raised.value) == f"data.json:7: {fault}"
