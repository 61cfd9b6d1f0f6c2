"""Laws of reading and replacing whole files."""

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loadgen.errors import LoadgenError
from loadgen.files import (
    data_dir,
    locked,
    profile_path,
    read_json,
    replacing,
    sha256_of,
    study_path,
    write_atomic,
    writing,
)


def test_write_atomic_replaces_the_content_and_leaves_no_draft(tmp_path: Path) -> None:
    for data in (b"old and longer", b"new", b""):
        write_atomic(tmp_path / "x", data)
        assert (tmp_path / "x").read_bytes() == data
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644


def test_write_atomic_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_atomic(tmp_path / "x", b"data")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_replacement_takes_its_place_only_when_the_block_ends_well(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with replacing(path) as file:
        file.write(b"first")
        assert not path.exists()
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write(b"second")
        raise ZeroDivisionError
    assert path.read_bytes() == b"first"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_the_sha256_is_that_of_the_bytes_and_a_pipe_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_of(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    os.mkfifo(tmp_path / "pipe")
    assert sha256_of(tmp_path / "pipe") is None and sha256_of(tmp_path / "absent") is None


def test_without_overwrite_the_same_bytes_are_no_change(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"same")
    path.touch()
    modified_ns = path.stat().st_mtime_ns
    for data in (b"same", b"also"):
        if data == b"same":
            with replacing(path, overwrite=False) as file:
                file.write(data)
        else:
            with pytest.raises(LoadgenError, match="--overwrite to replace"), replacing(path, overwrite=False) as file:
                file.write(data)
    assert path.read_bytes() == b"same" and path.stat().st_mtime_ns >= modified_ns
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_link_keeps_its_name_and_its_target_is_replaced(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    with replacing(link) as file:
        file.write(b"new")
    assert link.is_symlink() and target.read_bytes() == b"new"


def test_a_device_or_a_folder_is_not_replaced(tmp_path: Path) -> None:
    for path in (Path("/dev/null"), tmp_path, tmp_path / "none" / "t.jsonl"):
        with pytest.raises(LoadgenError, match="cannot write"), replacing(path):
            pass
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot read .*: No such file or directory"),
        (b"{", "not a list of numbers: "),
        (b'["a"]', "not a list of numbers: Expected `int`"),
        (b'["\xff"]', "not a list of numbers: "),
        (b"[" * 100_000, "not a list of numbers: "),
    ],
)
def test_a_json_file_that_cannot_be_used_is_refused_by_name(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "numbers.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LoadgenError, match=words) as refused:
        read_json(path, list[int], "a list of numbers")
    assert str(path) in str(refused.value)


def test_a_json_file_is_decoded_as_its_type(tmp_path: Path) -> None:
    (tmp_path / "numbers.json").write_bytes(b"[1, 2]")
    assert read_json(tmp_path / "numbers.json", list[int], "a list of numbers") == [1, 2]


def test_a_profile_is_a_name_or_a_path_and_unknown_names_list_the_known_ones(tmp_path: Path) -> None:
    known = data_dir("profiles") / "workloads" / "azure-2023-chat.json"
    assert profile_path("workloads", "azure-2023-chat", "json") == known
    mine = tmp_path / "mine.json"
    mine.write_text("{}")
    assert profile_path("workloads", str(mine), "json") == mine
    with pytest.raises(LoadgenError, match=r"no workloads profile called 'azure'; there are: .*azure-2023-chat, "):
        profile_path("workloads", "azure", "json")
    with pytest.raises(LoadgenError, match=r"there are: none \(or give a path to a \.xyz file\)"):
        profile_path("workloads", "azure-2023-chat", "xyz")


def test_a_study_is_a_file_or_the_name_of_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert study_path("rate-sweep") == data_dir("studies") / "rate-sweep.toml"
    Path("rate-sweep").touch()
    assert study_path("rate-sweep") == Path("rate-sweep")
    for name in ("rate-swep", "./simulated", "../studies/simulated"):
        with pytest.raises(LoadgenError, match=r"no file or study called .*there are: .*simulated"):
            study_path(name)


def test_an_error_of_writing_a_folder_is_one_line_that_names_it(tmp_path: Path) -> None:
    with (
        pytest.raises(LoadgenError, match=r"^cannot write the search's folder .*out: No space left on device$"),
        writing(tmp_path / "out", "the search's folder"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


HOLDER = """
import sys, time
from pathlib import Path
from loadgen.files import locked
with locked(Path(sys.argv[1]), "the folder"):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_locked_folder_is_refused_in_one_line_until_its_holder_ends_even_if_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"locked\n"
        fault = f"another process writes the folder {tmp_path}"
        with pytest.raises(LoadgenError, match=fault), locked(tmp_path, "the folder"):
            pass
        holder.kill()
    with locked(tmp_path, "the folder"), pytest.raises(LoadgenError, match=fault), locked(tmp_path, "the folder"):
        pass
    with locked(tmp_path, "the folder"):
        pass


def test_a_file_system_without_locks_is_written_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(number: int) -> Callable[..., None]:
        def flock(file: object, operation: int) -> None:
            raise OSError(number, os.strerror(number))

        return flock

    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOLCK))
    with locked(tmp_path, "the folder"):
        pass
    monkeypatch.setattr(fcntl, "flock", failing(errno.EIO))
    with pytest.raises(LoadgenError, match="cannot write the folder"), locked(tmp_path, "the folder"):
        pass


def test_a_lock_that_is_a_named_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(LoadgenError), locked(tmp_path, "the ledger"):
        pass
