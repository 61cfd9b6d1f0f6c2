"""--verbose and --log-file: what support needs, and nothing secret."""

import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from loadgen.cli import cli
from loadgen.cli.log import MAX_CHARS, logging_to, say, stated_options
from loadgen.errors import LoadgenError
from support.recording_server import RecordingServer

KEY, HEADER, PASSWORD, FIELD = "sk-key-0123456789", "header-value-42", "pass word:word", "alice@example.com"
PROMPT, ANSWER = "the words of a prompt that nobody may read", " a b c"
_LOG = logging.getLogger("loadgen.somewhere")


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(*arguments: object, **environment: str) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], env=environment)


@pytest.fixture
def url() -> Iterator[str]:
    """A server that refuses one's own prompts and an unknown field, and quotes all that it was sent."""

    def refuses(body: bytes) -> str | None:
        if b"min_tokens" in body or PROMPT.encode() in body:
            return f"{KEY} {HEADER} {PASSWORD} {FIELD} {body.decode()} {PROMPT}"
        return None

    with RecordingServer(refuses).serving() as url:
        yield url


@pytest.mark.parametrize("processes", [1, 2])
def test_a_log_has_what_support_needs_and_no_secret_prompt_or_answer(tmp_path: Path, url: str, processes: int) -> None:
    rows = [{"messages": [{"role": "user", "content": text}]} for text in (PROMPT, "hi", "ho")]
    (prompts := tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    secret_url = url.replace("//", "//user:pass%20word%3Aword@")
    result = run(
        "replay", prompts, "--rps", 100, "--base-url", secret_url, "--header", f"X-Key: {HEADER}", "--extra-body",
        json.dumps({"user": FIELD, "metadata": {"inner": "inner-secret"}}), "--energy", "none", "--ui", "none",
        "--processes", processes, "--log-file", tmp_path / "log.jsonl", "-v", "--out", tmp_path / "run",
        OPENAI_API_KEY=KEY,
    )  # fmt: skip
    assert result.exit_code == 1, result.output
    log = entries(tmp_path / "log.jsonl")
    found = {key: value for entry in log for key, value in entry.items()}
    assert (found["model"], found["url"], found["verdict"], found["status"]) == ("m", url, "failed", 1)
    stated = found["options"]
    assert (stated["rps"], stated["api_key"], stated["base_url"]) == (100, "[redacted]", url)
    assert (stated["headers"], stated["extra_body"]) == (["X-Key"], ["metadata", "user"]) and "seed" not in stated
    failures = [(entry["index"], entry["error"], entry["status"]) for entry in log if "index" in entry]
    assert failures == [(0, "http", 400)]
    answers = [(entry["status"], entry["dialect"]["min_tokens"]) for entry in log if "dialect" in entry]
    assert answers == [(400, True), (200, False)]
    assert {"versions", "lengths_from", "reasons", "stopped_by"} <= found.keys()
    assert any("has no timestamps" in entry["message"] for entry in log)
    assert result.stderr.count("has no timestamps") == 1  # what is printed anyway is not printed again
    stages = [entry["stage"] for entry in log if "stage" in entry]
    assert len(stages) == len(set(stages)) > 2 and "sending" in stages
    assert [entry["time"] for entry in log] == sorted(entry["time"] for entry in log)
    for text in ((tmp_path / "log.jsonl").read_text(), result.stderr):
        assert "request 0 failed: http, status 400" in text
        for secret in (KEY, HEADER, PASSWORD, "pass%20word", FIELD, "inner-secret", PROMPT, ANSWER):
            assert secret not in text, secret


def test_without_the_options_nothing_is_printed_and_no_logger_is_changed(tmp_path: Path, url: str) -> None:
    logger = logging.getLogger("loadgen")
    before = (logger.level, logger.propagate, list(logger.handlers))
    arguments = ("--input", 5, "--output", 3, "--rps", 50, "--num-requests", 2, "--base-url", url, "--energy", "none")
    quiet = run("replay", *arguments, "--ui", "none", "--out", tmp_path / "a")
    verbose = run("replay", *arguments, "--ui", "none", "-v", "--out", tmp_path / "b")
    assert quiet.stderr == "" and len(verbose.stderr.splitlines()) > 5
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


OPTIONS: dict[str, tuple[Any, Any]] = {
    "api_key": ("k", "[redacted]"),
    "headers": ({"B": "1", "A": "2"}, ["A", "B"]),
    "extra_body": ({"user": "me"}, ["user"]),
    "engine_option": ({"slots": "8", "api_key": "k"}, {"slots": "8", "api_key": "[redacted]"}),
    "base_url": ("http://u:p@h/v1?k=v", "http://h/v1"),
    "energy": ("http://[broken", "[redacted]"),
    "gpus": (("0", "http://u:p@h"), ["0", "http://h"]),
    "rps": (2.5, 2.5),
    "only_plan": (True, True),
    "out": (Path("runs/x"), "runs/x"),
}


@pytest.mark.parametrize(("name", "value", "stated"), [(name, *pair) for name, pair in OPTIONS.items()])
def test_options_are_stated_without_secrets(name: str, value: Any, stated: Any) -> None:
    assert stated_options({name: value}) == {name: stated}


def test_a_file_is_appended_to_and_its_lines_are_json_whatever_is_logged(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for _ in range(2):
        with logging_to(path, False, {"api_key": "hidden-key"}):
            _LOG.info("a %(what)s", {"what": f"line\n'hidden-key' \x1b[31m\ud83d{'x' * MAX_CHARS}", "parts": [1, None]})
    first, second = entries(path)
    assert first["logger"] == "loadgen.somewhere" and first["parts"] == [1, None] and second["message"]
    assert len(first["what"]) == MAX_CHARS and "hidden-key" not in path.read_text()


def test_the_terminal_gets_one_printable_line_per_entry(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to(None, True, {}):
        _LOG.info("a %(what)s", {"what": "line\nof \x1b[31mred\x07"})
        say("said once")
    logged, said = capsys.readouterr().err.splitlines()
    assert logged[13:] == "a line of \ufffd[31mred\ufffd" and said == "said once"


def test_what_is_not_known_is_called_so_and_is_null_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with logging_to(path := tmp_path / "log.jsonl", True, {}):
        _LOG.info("engine %(engine)s of %(parts)s", {"engine": None, "parts": {"a": None}})
    assert capsys.readouterr().err.splitlines()[0][13:] == 'engine unknown of {"a": null}'
    (entry,) = entries(path)
    assert (entry["engine"], entry["parts"]) == (None, {"a": None})


def test_without_verbose_the_terminal_gets_warnings_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to(tmp_path / "log.jsonl", False, {}):
        _LOG.info("quiet")
        _LOG.warning("loud")
    assert [line[13:] for line in capsys.readouterr().err.splitlines()] == ["loud"]
    assert [entry["level"] for entry in entries(tmp_path / "log.jsonl")] == ["info", "warning"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/dev/full", "No space left on device"),
        ("/nowhere/log.jsonl", "No such file or directory"),
        ("/proc", "Is a directory"),
    ],
)
def test_a_log_that_cannot_be_written_is_one_line_before_anything_starts(path: str, reason: str) -> None:
    result = run("study", Path(__file__), "--log-file", path)
    assert isinstance(result.exception, LoadgenError)
    assert str(result.exception) == f"--log-file {path} cannot be written: {reason}"
    assert logging.getLogger("loadgen").handlers == []


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full")
def test_a_disk_that_fills_up_ends_the_log_and_not_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to(path := tmp_path / "log.jsonl", False, {}):
        _LOG.info("first")
        (handler,) = [h for h in logging.getLogger("loadgen").handlers if hasattr(h, "_file")]
        with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123
            os.dup2(full.fileno(), handler._file.fileno())
        _LOG.info("second")
        _LOG.info("third")
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"loadgen: --log-file {path} cannot be written: No space left on device; going on without it"


@pytest.mark.parametrize(
    ("error", "status"),
    [(LoadgenError("no such file"), 2), (KeyboardInterrupt(), 130), (ValueError("prompt"), 1)],
)
def test_the_log_ends_with_the_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int
) -> None:
    from loadgen.study import spec

    def read_study(*_: object) -> None:
        raise error

    monkeypatch.setattr(spec, "read_study", read_study)
    run("study", Path(__file__), "--plan", "--log-file", tmp_path / "log.jsonl")
    *_, cause, ending = entries(tmp_path / "log.jsonl")
    assert ending["status"] == status and "prompt" not in str(cause)
    assert ("test_log.py" in str(cause.get("trace"))) == (status == 1)


@pytest.mark.parametrize("name", ["replay", "study", "profile", "sidecar", "serve", "selftest"])
def test_each_command_that_runs_something_has_both_options(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    options = [option for parameter in command.params for option in parameter.opts]
    assert {"-v", "--verbose", "--log-file"} <= set(options)


SECRETS: list[tuple[dict[str, Any], str]] = [
    ({"api_key": "sk-12345678"}, "sk-12345678"),
    ({"headers": {"Authorization": "Bearer abcdefgh"}}, "abcdefgh"),
    ({"base_url": "http://h/v1?api-version=1&key=query-secret"}, "query-secret"),
    ({"engine_url": "http://user:pass%20word@h"}, "pass word"),
    ({"energy": "http://h,http://user:plug-secret@p/metrics#a_watts"}, "plug-secret"),
    ({"extra_body": {"a": [{"b": "nested-value"}]}}, "nested-value"),
    ({"engine_option": {"api_key": "engine-key"}}, "engine-key"),
]


@pytest.mark.parametrize(("options", "secret"), SECRETS)
def test_a_secret_of_an_option_is_in_no_entry_whoever_quotes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], secret: str
) -> None:
    with logging_to(path := tmp_path / "log.jsonl", True, options):
        _LOG.info("said %(text)s", {"text": f"<{secret}>", "deep": {"list": [f"'{secret}'"]}})
    assert "said <[redacted]>" in capsys.readouterr().err
    (entry,) = entries(path)
    assert (entry["text"], entry["deep"]) == ("<[redacted]>", {"list": ["'[redacted]'"]})


@pytest.mark.parametrize("variable", ["HF_TOKEN", "LOADGEN_ENERGY_TOKEN", "LOADGEN_REDFISH_PASSWORD", "https_proxy"])
def test_a_secret_of_the_environment_is_in_no_entry(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str
) -> None:
    monkeypatch.setenv(variable, "http://user:hf_secret_1@proxy" if "proxy" in variable else "hf_secret_1")
    with logging_to(None, True, {}):
        _LOG.info("said hf_secret_1")
    assert "hf_secret_1" not in capsys.readouterr().err
