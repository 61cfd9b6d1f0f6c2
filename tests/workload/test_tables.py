"""The rows of a table are requests: its columns are fields by their names, or as they are told."""

import gzip
import json
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest

from loadgen.errors import LoadgenError
from loadgen.workload.tables import check_columns, dataset_texts
from support.foreign_files import rows_of


def read(tmp_path: Path, text: str, name: str = "t.csv", **columns: str) -> list[dict[str, Any]]:
    (path := tmp_path / name).write_text(text, encoding="utf-8", newline="")
    return rows_of(path, "jsonl", **columns)


def test_quotes_may_hold_commas_quotes_and_lines(tmp_path: Path) -> None:
    rows = read(tmp_path, '\ufeffprompt,output_length\r\n"a, ""b""\r\nc",5\r\n\r\n é ,7\r\n')
    assert rows == [{"prompt": 'a, "b"\r\nc', "output_length": 5}, {"prompt": " é ", "output_length": 7}]


def test_cells_become_values_of_their_fields_and_empty_ones_none(tmp_path: Path) -> None:
    text = (
        "q,t,n,m,s,f\n"
        'x,1.5,3,gpt,7,"{""type"": ""json_object""}"\n'
        "y,2026-01-01T00:00:00,,,,\n"
    )  # fmt: skip
    columns = {"prompt": "q", "timestamp": "t", "max_tokens": "n", "model": "m", "session_id": "s"}
    stated = {"max_tokens": 3, "model": "gpt", "session_id": "7", "response_format": {"type": "json_object"}}
    assert read(tmp_path, text, **columns, response_format="f") == [
        {"prompt": "x", "timestamp": 1.5} | stated,
        {"prompt": "y", "timestamp": 1767225600000.0},
    ]


def test_a_column_may_be_the_message_of_a_chat(tmp_path: Path) -> None:
    rows = read(tmp_path, "q\ts\nhi\tbe kind\nbye\t\n", "t.tsv", message="q", system="s")
    assert rows == [
        {"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]},
        {"messages": [{"role": "user", "content": "bye"}]},
    ]


def test_columns_of_the_same_name_are_fields_and_the_others_are_counted(tmp_path: Path) -> None:
    (path := tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"prompt,model,user,seed\na,m,u,5\n"))
    left_out: Counter[str] = Counter()
    assert rows_of(path, "jsonl", left_out) == [{"prompt": "a"}]  # a model that answered is not one to ask
    assert set(left_out) == {"column 'model'", "column 'user'", "column 'seed'"}


@pytest.mark.parametrize(
    ("text", "columns", "fault"),
    [
        ("a,b\n1,2\n", {}, "t.csv: no column of words; say which it is, for instance --column prompt=COLUMN"),
        ("a,b\n1,2\n", {"prompt": "c"}, "t.csv: no column c; there are a, b"),
        ("prompt,b\n1,2\n1\n", {}, "t.csv:3: it has 1 columns; the header has 2"),
        ("prompt,output_length\nx,5.5\n", {}, "t.csv:2: output_length: '5.5': expected an integer"),
        ("prompt,timestamp\nx,soon\n", {}, "t.csv:2: timestamp: 'soon': expected milliseconds, or a date and time"),
        ("prompt,timestamp\nx,nan\n", {}, "t.csv:2: timestamp: 'nan': expected milliseconds"),
        ("messages\n[{]\n", {}, "t.csv:2: messages: '[{]': expected JSON"),
        ('prompt\n"x\n', {}, "t.csv:2: unexpected end of data"),
        ('prompt\n"x"y\n', {}, "t.csv:2: ',' expected after '\"'"),
    ],
)
def test_a_wrong_cell_is_named_with_its_line_and_field(
    tmp_path: Path, text: str, columns: dict[str, str], fault: str
) -> None:
    with pytest.raises(LoadgenError) as raised:
        read(tmp_path, text, **columns)
    assert fault in str(raised.value)


def test_a_csv_that_is_not_utf_8_names_the_line(tmp_path: Path) -> None:
    (path := tmp_path / "t.csv").write_bytes(b"prompt\nok\n\xff\n")
    with pytest.raises(LoadgenError, match=r"t\.csv:\d: it is not UTF-8"):
        rows_of(path, "jsonl")


def test_a_cell_may_be_as_large_as_a_request(tmp_path: Path) -> None:
    (row,) = read(tmp_path, 'prompt\n"' + "x" * 2**20 + '"\n')
    assert len(row["prompt"]) == 2**20


def test_a_field_that_there_is_not_is_refused_by_name() -> None:
    check_columns({"prompt": "a", "message": "b", "temperature": "c"})
    with pytest.raises(LoadgenError, match=r"--column promt=\.\.\.: there is no such field; there are answer, body"):
        check_columns({"promt": "a"})


@pytest.mark.parametrize(
    "text", ['{"q": "%s", "n": 5, "t": 1}\n{"q": "b"}', '[{"q": "%s", "n": 5, "t": 1}, {"q": "b"}]']
)
def test_fields_of_json_are_columns_too_and_keep_their_words(tmp_path: Path, text: str) -> None:
    rows = read(tmp_path, text % "\\ud83d é", "t.json", message="q", output_length="n", session_id="t")
    assert rows == [
        {"messages": [{"role": "user", "content": "\ud83d é"}], "output_length": 5, "session_id": "1"},
        {"messages": [{"role": "user", "content": "b"}]},
    ]
    with pytest.raises(LoadgenError, match=r"t\.json: no column x; there are q, n, t"):
        read(tmp_path, text, "t.json", prompt="x")


def written(path: Path, columns: dict[str, list[Any]]) -> Path:
    parquet.write_table(arrow.table(columns), path, row_group_size=2)
    return path


def test_parquet_keeps_its_types_and_its_nulls_are_no_values(tmp_path: Path) -> None:
    path = written(tmp_path / "t.bin", {
        "messages": [[{"role": "user", "content": "é"}]] * 3,
        "output_length": [5, None, 7],
        "max_tokens": [1.0, None, 2.0],
        "timestamp": [datetime(2026, 1, 1, tzinfo=UTC)] * 3,
        "session_id": [1, 2, 3],
        "embedding": [[0.5]] * 3,
    })  # fmt: skip
    left_out: Counter[str] = Counter()
    rows = rows_of(path, "jsonl", left_out)
    common = {"messages": [{"role": "user", "content": "é"}], "timestamp": 1767225600000.0}
    assert rows == [
        common | {"output_length": 5, "max_tokens": 1, "session_id": "1"},
        common | {"session_id": "2"},
        common | {"output_length": 7, "max_tokens": 2, "session_id": "3"},
    ]
    assert left_out == {"column 'embedding'": 1}


def test_conversations_in_a_table_are_requests_like_those_in_json(tmp_path: Path) -> None:
    spoken = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "A"}]
    path = written(tmp_path / "t.parquet", {"chat": [spoken]})
    assert rows_of(path, "conversations", conversations="chat") == [
        {"messages": [{"role": "user", "content": "a"}], "answer": "A"}
    ]


@pytest.mark.parametrize(
    ("data", "fault"),
    [(b"PAR1", "cannot read"), (b"PAR1" + b"x" * 100, "cannot read")],
)
def test_a_cut_parquet_file_is_an_error(tmp_path: Path, data: bytes, fault: str) -> None:
    (path := tmp_path / "t.parquet").write_bytes(data)
    with pytest.raises(LoadgenError, match=fault):
        rows_of(path, "jsonl")


def test_a_wrong_cell_of_parquet_is_named_with_its_row_and_field(tmp_path: Path) -> None:
    path = written(tmp_path / "t.parquet", {"prompt": ["a", "b"], "output_length": [1.0, 1.5]})
    with pytest.raises(LoadgenError, match=r"t\.parquet:2: output_length: 1\.5: expected an integer"):
        rows_of(path, "jsonl")


def test_a_data_set_is_read_from_a_folder_by_its_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"question": split, "n": 3, "meta": {"a": 1}}) + "\n")
    left_out: Counter[str] = Counter()
    columns = {"prompt": "question", "output_length": "n"}
    (text,) = dataset_texts(str(tmp_path), None, "test", columns, left_out)
    assert text == (1, '{"prompt":"test","output_length":3}')
    assert left_out == {"column 'meta'": 1}


@pytest.mark.parametrize(
    ("folder", "split", "columns", "fault"),
    [
        ("there-is-none", "train", {}, "cannot read the data set .*there-is-none: "),
        (".", "validation", {}, "cannot read the data set"),
        (".", "train", {}, "no column of words"),
        (".", "train", {"prompt": "answer"}, "no column answer; there are question"),
    ],
)
def test_a_data_set_that_cannot_be_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, split: str, columns: dict[str, str], fault: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "train.jsonl").write_text('{"question": "a"}\n')
    with pytest.raises(LoadgenError, match=fault) as raised:
        list(dataset_texts(str(tmp_path / folder), None, split, columns, Counter()))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("module", "extra"), [("pyarrow.parquet", "parquet"), ("datasets", "datasets")])
def test_a_library_that_is_missing_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, extra: str
) -> None:
    path = written(tmp_path / "t.parquet", {"prompt": ["a"]})
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(LoadgenError, match=rf"needs the extra '{extra}': .*install"):
        rows_of(path, "jsonl") if extra == "parquet" else list(dataset_texts("x", None, "train", {}, Counter()))
