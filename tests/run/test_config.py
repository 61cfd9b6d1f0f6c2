"""One list of options: click fills it in, every process gets it whole, and run.json states it without secrets."""

import pickle
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from loadgen.cli import cli
from loadgen.cli.replay import replay
from loadgen.errors import LoadgenError
from loadgen.run.config import RunConfig, open_client, recorded_command, recorded_options

TRACE = str(Path(__file__).parents[2] / "traces" / "chat.jsonl")

GIVEN: dict[str, tuple[list[str], Any]] = {
    "base_url": (["--base-url", "http://me:password@host:1/v1"], "http://me:password@host:1/v1"),
    "goodput": (["--goodput", "ttft:200", "--goodput", "tpot=50"], {"ttft": 200.0, "tpot": 50.0}),
    "headers": (["--header", "x-token: a=b", "--header", "x-user=me"], {"x-token": "a=b", "x-user": "me"}),
    "extra_body": (["--extra-body", '{"top_p": 0.5}'], {"top_p": 0.5}),
    "processes": (["--processes", "3"], 3),
    "count": (["--count", "all"], "all"),
    "history": (["--history", "recorded"], "recorded"),
    "keep_answers": (["--keep-answers"], True),
    "tokenizer": (["--tokenizer", "t.json"], Path("t.json")),
    "model": (["--model", "m"], "m"),
    "endpoint": (["--endpoint", "completions"], "completions"),
    "energy": (["--energy", "http://u:secret@host:9/"], "http://u:secret@host:9/"),
    "gpus": (["--gpu", "0", "--gpu", "GPU-1"], ("0", "GPU-1")),
    "engines": (["--engine", "a=http://host:2,gpus=0"], ("a=http://host:2,gpus=0",)),
    "engine_headers": (["--engine-header", "X-Served-By"], ("X-Served-By",)),
    "share_host": (["--share-host", "tokens"], "tokens"),
    "pue": (["--pue", "1.2"], 1.2),
    "grid_intensity": (["--grid-intensity", "380"], 380.0),
    "grid_source": (["--grid-source", "a table of 2025"], "a table of 2025"),
    "price": (["--price", "0.25"], 0.25),
    "max_concurrency": (["--max-concurrency", "7"], 7),
    "warmup": (["--warmup", "4"], 4),
    "idle_s": (["--idle", "1.5"], 1.5),
    "timeout_s": (["--timeout", "9"], 9.0),
    "otlp": (["--otlp", "http://host:9478"], "http://host:9478"),
    "max_failed": (["--max-failed", "2.5%"], "2.5%"),
    "max_tokens": (["--max-tokens", "99"], 99),
    "too_long": (["--too-long", "cut"], "cut"),
    "max_context": (["--max-context", "9000"], 9000),
    "keep_bodies": (["--keep-bodies"], True),
    "api_key": (["--api-key", "sk-1"], "sk-1"),
    "out": (["--out", "folder"], Path("folder")),
    "overwrite": (["--overwrite"], True),
}
"""Field -> what is typed for it, and its value in the struct."""

STATED = (
    "base_url", "goodput", "headers", "extra_body", "processes", "count", "tokenizer", "model", "endpoint", "energy",
    "gpus", "share_host", "max_concurrency", "warmup", "idle_s", "timeout", "max_failed", "max_tokens",
    "history", "too_long", "max_context", "keep_bodies", "keep_answers",
)  # fmt: skip
"""The keys of run.json's `config` after the plan. PUE, grid and price follow `share_host` where they are given, and
`otlp` is the last."""


class ReplayedError(Exception):
    pass


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """The options of each run that the command would have made."""
    configs: list[RunConfig] = []

    def keep(schedule: object, config: RunConfig, *_: object) -> None:
        configs.append(config)
        raise ReplayedError

    monkeypatch.setattr("loadgen.run.replay.replay", keep)
    monkeypatch.delenv("LOADGEN_IDLE", raising=False)
    return configs


def invoke(*arguments: str) -> None:
    result = CliRunner().invoke(cli, ["replay", TRACE, "--num-requests", "2", *arguments])
    assert isinstance(result.exception, ReplayedError), result.output


def test_every_field_is_an_option_of_the_command_but_the_plan_the_words_and_the_command_itself() -> None:
    fields = set(RunConfig.__struct_fields__)
    assert fields - {param.name for param in replay.params} == {"plan", "words", "command"}
    assert set(GIVEN) == fields - {"plan", "words", "command"}


def test_the_command_is_kept_without_secrets_and_with_the_url_of_the_environment(
    configured: list[RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://me:pw@host:1/v1")
    invoke("--header", "X-Key:sk-1")
    invoke("--url", "http://other:2/v1")
    common = ("loadgen", "replay", TRACE, "--num-requests", "2")
    headed, other = (recorded_command(config) for config in configured)
    assert headed == [*common, "--header", "X-Key:[redacted]", "--base-url", "http://host:1/v1"]
    assert other == [*common, "--url", "http://other:2/v1"]


def test_every_option_of_the_command_has_a_place() -> None:
    """A parameter of the command's function, or a field: an option that is neither would be lost."""
    of_the_schedule_and_the_view = {
        "trace", "streams", "rps", "scale", "shape", "arrival", "burstiness", "duration_s", "num_requests", "seed",
        "serve", "stop", "ui", "as_json", "input", "output", "think", "verbose", "log_file", "repeat",
        "junit", "markdown", "timing", "speedup", "sessions_rate", "concurrent_sessions", "session_start", "tags",
    }  # fmt: skip
    names = {param.name for param in replay.params if not isinstance(param, click.Argument)} | {"trace"}
    assert names == of_the_schedule_and_the_view | set(GIVEN)


@pytest.mark.parametrize("field", GIVEN)
def test_an_option_reaches_its_field_and_no_other(configured: list[RunConfig], field: str) -> None:
    typed, value = GIVEN[field]
    out = [] if field == "out" else ["--out", "run"]
    invoke(*out)
    invoke(*out, *typed)
    plain, config = configured
    assert getattr(config, field) == value
    others = [name for name in GIVEN if name != field]
    assert [getattr(config, name) for name in others] == [getattr(plain, name) for name in others]


def test_all_options_together_are_the_struct(configured: list[RunConfig]) -> None:
    invoke(*(word for typed, _ in GIVEN.values() for word in typed))
    (config,) = configured
    assert {name: getattr(config, name) for name in GIVEN} == {name: value for name, (_, value) in GIVEN.items()}


def test_run_json_states_the_plan_and_then_every_option_without_secrets(configured: list[RunConfig]) -> None:
    invoke(*(word for typed, _ in GIVEN.values() for word in typed))
    stated = recorded_options(configured[0])
    assert tuple(stated) == (
        "trace", "rps", "arrival", "burstiness", "scale", "trace_sha256", "seed", "duration_s", "num_requests",
        "shape", "think", "serve", "stop",
        *STATED[:11], "engine_headers", "share_host", "pue", "grid_intensity", "grid_source", "price", *STATED[12:],
        "otlp",
    )  # fmt: skip
    assert stated["base_url"] == "http://host:1/v1"
    assert stated["energy"] == "http://host:9"
    assert stated["headers"] == ["x-token", "x-user"]
    assert (stated["timeout"], stated["tokenizer"]) == (9.0, "t.json")
    assert (stated["trace"], stated["num_requests"]) == (TRACE, 2)


def test_the_sidecar_is_stated_only_where_there_is_one() -> None:
    assert tuple(recorded_options(RunConfig(out=Path("run"), base_url="http://host/v1"))) == STATED


SECRET = st.text("0123456789abcdef", min_size=12, max_size=12).map("secret-".__add__)
NAME = st.text("abcdefghij-", min_size=1, max_size=8)
CONFIGS = st.builds(
    RunConfig,
    out=st.just(Path("folder-of-the-run")),
    base_url=SECRET.map("http://me:{}@host:8000/v1".format),
    headers=st.dictionaries(NAME, SECRET, max_size=3),
    api_key=st.none() | SECRET,
    extra_body=st.dictionaries(NAME, st.integers() | st.booleans() | NAME, max_size=3),
    goodput=st.dictionaries(st.sampled_from(["ttft", "tpot"]), st.floats(1, 1e6)),
    gpus=st.lists(NAME, max_size=3).map(tuple),
    energy=st.sampled_from(["auto", "none"]) | SECRET.map("https://me:{}@gpu:9478/metrics".format),
    otlp=st.none() | SECRET.map("http://me:{}@gpu:9478".format),
    tokenizer=st.none() | NAME.map(Path),
    max_concurrency=st.none() | st.integers(1, 10**6),
    timeout_s=st.none() | st.floats(0.1, 1e9),
    plan=st.dictionaries(NAME.map("plan {}".format), st.integers(), max_size=2),
)


@given(CONFIGS)
def test_no_secret_is_ever_in_run_json(config: RunConfig) -> None:
    text = msgspec.json.encode(recorded_options(config)).decode()
    assert "secret-" not in text and "folder-of-the-run" not in text


@given(CONFIGS)
def test_what_run_json_states_is_the_option_as_given(config: RunConfig) -> None:
    stated = recorded_options(config)
    plain = [name for name in STATED if name not in ("base_url", "headers", "energy", "timeout", "tokenizer")]
    assert {name: stated[name] for name in plain} == {name: getattr(config, name) for name in plain}
    assert stated["headers"] == sorted(config.headers)
    assert stated["timeout"] == config.timeout_s
    assert stated.items() >= config.plan.items()
    assert ("otlp" in stated) is (config.otlp is not None)


@given(CONFIGS)
def test_a_sending_process_gets_the_options_as_they_are(config: RunConfig) -> None:
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize("wrong", [{"endpoint": "images"}, {"warmup": "two"}, {"no_such_option": 1}])
def test_a_value_that_is_no_option_s_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"out": Path("run"), "base_url": "http://host/v1"} | wrong, RunConfig)


def test_a_url_that_is_none_cannot_be_stated() -> None:
    with pytest.raises(LoadgenError, match="is not a server's URL"):
        recorded_options(RunConfig(out=Path("run"), base_url="localhost:8000"))


def test_the_client_redacts_what_the_options_hide() -> None:
    config = RunConfig(
        out=Path("run"), base_url="http://host/v1", api_key="sk-very-secret", headers={"x-token": "also-secret"}
    )
    client = open_client(config)
    assert client.url.text == "http://host/v1"
    assert client.redact("sk-very-secret or also-secret") == "[redacted] or [redacted]"
