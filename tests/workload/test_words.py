"""Words are stored once, one line each, and read back byte for byte or not at all."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.errors import LoadgenError
from loadgen.workload.words import WordsFile, WordsReader, WordsRef, decode_fields, hide_halves, stored_words

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(), lambda inner: st.lists(inner, max_size=3)
)


def stored(folder: Path, *rows: dict[str, Any]) -> tuple[Path, list[WordsRef]]:
    with (path := folder / "bodies.jsonl").open("wb") as file:
        words = WordsFile(file)
        refs = [words.add(row, line, None) for line, row in enumerate(rows, 1)]
        words.flush()
    return path, refs


@given(st.lists(st.dictionaries(st.text(max_size=5), JSON, max_size=4), min_size=1, max_size=5))
def test_words_come_back_as_they_were_stored_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    path, refs = stored(tmp_path_factory.mktemp("words"), *rows)
    reader = WordsReader(path)
    read = [{name: json.loads(bytes(raw)) for name, raw in reader.fields(ref).items()} for ref in reversed(refs)]
    assert read == [json.loads(json.dumps(row)) for row in reversed(rows)]
    assert len(path.read_bytes().splitlines()) == len(rows)


@pytest.mark.parametrize(
    "value",
    [
        *(rb'"\ud83d"', rb'"\uD83d \ude00 \uDE00\ud83d\ud83d\ude00"', rb'"\\ud83d \u0000"', rb'"\/ \u0041"'),
        *(b"[ 1 ,1.0, 1e2 ]", b'{"a" :\t{"a":1},"a":2}', '"\u00e9"'.encode(), rb'{"a":{"b":["\udfff"]}}'),
    ],
)
def test_a_value_keeps_the_bytes_in_which_it_was_written(tmp_path: Path, value: bytes) -> None:
    path, (ref,) = stored(tmp_path, {"prompt": msgspec.Raw(value)})
    assert bytes(WordsReader(path).fields(ref)["prompt"]) == value


def test_a_line_end_between_tokens_becomes_a_space_so_that_words_are_one_line(tmp_path: Path) -> None:
    path, (ref,) = stored(tmp_path, {"body": msgspec.Raw(b'{\n  "a": "x\\ny"\r\n}')})
    assert bytes(WordsReader(path).fields(ref)["body"]) == b'{   "a": "x\\ny"\r }'
    assert path.read_bytes().count(b"\n") == 1


def test_the_words_of_a_run_are_in_no_folder_and_other_processes_read_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    read = "import sys; print(open(sys.argv[1]).read(), end='')"
    with stored_words() as (words, path):
        words.add({"prompt": "secret"}, 1, None)
        words.flush()
        assert subprocess.check_output([sys.executable, "-c", read, path]) == b'{"prompt":"secret"}\n'
        assert not list(tmp_path.iterdir())  # nothing is there for a process that is killed to leave behind


def test_a_temporary_folder_that_is_missing_is_an_error_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(LoadgenError, match="temporary file: No such file"), stored_words():
        pass


@pytest.mark.parametrize("damage", ["changed", "cut", "emptied"])
def test_words_that_were_changed_or_cut_are_an_error_that_names_their_line(tmp_path: Path, damage: str) -> None:
    path, refs = stored(tmp_path, {"prompt": "first"}, {"prompt": "second"})
    reader, data = WordsReader(path), path.read_bytes()
    with path.open("r+b") as file:
        match damage:
            case "changed":
                file.write(data.replace(b"second", b"sesond"))
            case "cut":
                file.truncate(len(data) - 4)
            case _:
                file.truncate(0)
    with pytest.raises(LoadgenError, match="the words of line 2 were changed or cut while the run lasted"):
        reader.fields(refs[1])
    if damage != "emptied":
        assert bytes(reader.fields(refs[0])["prompt"]) == b'"first"'


def test_words_without_a_file_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(LoadgenError, match=r"cannot read the words of the requests in .*: No such file"):
        WordsReader(tmp_path / "none")


def test_only_a_whole_body_is_marked_as_such(tmp_path: Path) -> None:
    _, (messages, body) = stored(tmp_path, {"messages": []}, {"body": {}})
    assert (messages.is_body, body.is_body) == (False, True)


def test_half_a_surrogate_pair_is_hidden_and_nothing_else() -> None:
    assert hide_halves(rb'"\ud83d\ude00 \\ud83d \n \u0041"') == rb'"\ud83d\ude00 \\ud83d \n \u0041"'
    assert json.loads(hide_halves(rb'["\ud83dx", "\\\uDE00"]')) == ["\ue0ddud83dx", "\\\ue0dduDE00"]


@pytest.mark.parametrize(
    "data", [b"", b"{", rb'{"a": "\ud83d"', b"[]", '{"a": "\ue0dd \\ud83d"}'.encode(), rb'{"a": "\ud83"}']
)
def test_what_is_no_object_is_refused_with_or_without_half_a_pair(data: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        decode_fields(data)
