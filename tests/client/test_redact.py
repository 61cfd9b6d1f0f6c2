"""No secret is printed or written down."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.client.redact import (
    MAX_SEARCHED_BYTES,
    QUOTE_CHARS,
    clean_sources,
    clean_url,
    redact,
    redact_command,
    redact_setting,
    secrets_in,
    secrets_of,
    without_quotes,
)
from loadgen.errors import LoadgenError


@pytest.mark.parametrize(
    ("text", "secrets", "redacted"),
    [
        ("no secret here", ["sk-1"], "no secret here"),
        ("key sk-1 refused", ["sk-1"], "key [redacted] refused"),
        ("sk-1 and sk-1", ["sk-1"], "[redacted] and [redacted]"),
        ("sk-1 of tenant-2", ["sk-1", "tenant-2"], "[redacted] of [redacted]"),
        ("sk-1", [], "sk-1"),
    ],
)
def test_every_secret_is_replaced_wherever_it_stands(text: str, secrets: list[str], redacted: str) -> None:
    assert redact(text, secrets) == redacted


def test_a_key_is_a_secret_without_its_scheme_too_and_a_short_value_is_none() -> None:
    assert secrets_of(["Bearer sk-secret-1", "short", "my-tenant"]) == [
        "Bearer sk-secret-1",
        "sk-secret-1",
        "my-tenant",
    ]


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("http://localhost:8000/v1", "http://localhost:8000/v1"),
        ("http://localhost:8000/v1//", "http://localhost:8000/v1"),
        ("http://localhost", "http://localhost"),
        ("https://me:secret@example.com/v1", "https://example.com/v1"),
        ("https://me:secret@example.com:8443/v1?key=x#y", "https://example.com:8443/v1"),
        ("HTTP://Example.COM/V1", "http://example.com/V1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
        ("http://[::1]/", "http://[::1]"),
    ],
)
def test_a_url_keeps_its_address_and_loses_its_login_query_and_last_slash(url: str, clean: str) -> None:
    assert clean_url(url) == clean


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/", "http://", "/v1", ""])
def test_a_url_that_is_not_one_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(LoadgenError, match="one looks like http://localhost:8000/v1"):
        clean_url(url)


def test_a_port_that_is_none_is_named_without_the_login() -> None:
    with pytest.raises(LoadgenError, match=r"^example\.com: ") as refused:
        clean_url("http://me:secret@example.com:70000/v1")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("url", ["me:secret@host/v1", "host/v1?key=secret", "http://[me:secret@h?key=secret"])
def test_a_url_that_is_refused_is_quoted_without_its_secrets(url: str) -> None:
    with pytest.raises(LoadgenError, match="is not a server's URL") as refused:
        clean_url(url)
    assert "secret" not in str(refused.value)


PROMPT = 'Where did the grey cat hide the key?\nUnder the mat, said "Zoë" 😀.'
BODY = json.dumps({"model": "some/long-model-name-8B", "messages": [{"role": "user", "content": PROMPT}]}).encode()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("500 no room", "500 no room"),
        ("model some/long-model-name-8B is not loaded", "model some/long-model-name-8B is not loaded"),
        ("refused: 'Where did the grey cat hide the key?'", "refused: '[words of the request]'"),
        (f"refused: {PROMPT} (too rude)", "refused: [words of the request] (too rude)"),
        (f"refused: {json.dumps(PROMPT)} (too rude)", 'refused: "[words of the request]" (too rude)'),
        ("a: grey cat hide the key! b: the mat, said \"Zoë\"", "a:[words of the request]! b:[words of the request]"),
        ("short: the grey cat", "short: the grey cat"),
        ("the grey cat hi", "the grey cat hi"),
        ("the grey cat hid", "[words of the request]"),
    ],
)  # fmt: skip
def test_what_an_error_quotes_of_the_words_of_a_request_is_not_recorded(text: str, shown: str) -> None:
    assert without_quotes(text, BODY) == shown


@pytest.mark.parametrize(
    "body", [b"not json", b"[1]", b'{"prompt": "' + b"x" * MAX_SEARCHED_BYTES + b'"}', b"[" * 99999]
)
def test_an_error_is_left_out_where_its_quotations_cannot_be_looked_for(body: bytes) -> None:
    assert "left out" in without_quotes("400: x x x", body)


@given(st.text(min_size=QUOTE_CHARS), st.text(max_size=20), st.text(max_size=20))
def test_no_long_run_of_a_prompt_stays_in_an_error(prompt: str, before: str, after: str) -> None:
    shown = without_quotes(before + prompt + after, json.dumps({"prompt": prompt}).encode())
    assert all(prompt[i : i + QUOTE_CHARS] not in shown for i in range(len(prompt) - QUOTE_CHARS + 1))


@pytest.mark.parametrize(
    ("command", "written"),
    [
        ("replay chat --rps 4", "replay chat --rps 4"),
        ("replay --keep-bodies chat", "replay --keep-bodies chat"),
        ("replay --api-key sk-1 chat", "replay --api-key [redacted] chat"),
        ("replay --api-key=sk-1 chat", "replay --api-key=[redacted] chat"),
        ("replay --header Authorization:Bearer-sk-1", "replay --header Authorization:[redacted]"),
        ("replay --header=X-Key=sk-1 chat", "replay --header=X-Key:[redacted] chat"),
        ("replay --url https://me:sk-1@host/v1?key=sk-1", "replay --url https://host/v1"),
        ("replay --energy=http://me:sk-1@gpu:9400/metrics", "replay --energy=http://gpu:9400/metrics"),
        ("replay hf://org/set", "replay hf://org/set"),
        ("replay hf://me:sk-1@org/set", "replay [redacted]"),
        ('replay --extra-body {"u":"http://me:sk-1@h"}', "replay --extra-body [redacted]"),
    ],
)
def test_a_command_line_is_written_down_without_its_secrets(command: str, written: str) -> None:
    assert redact_command(command.split()) == written.split()


@pytest.mark.parametrize(
    ("name", "value", "written"),
    [
        ("api_key", "sk-1", "api_key=[redacted]"),
        ("api-key", "sk-1", "api-key=[redacted]"),
        ("HF_TOKEN", "hf_1", "HF_TOKEN=[redacted]"),
        ("max_num_batched_tokens", 8192, "max_num_batched_tokens=8192"),
        ("tokenizer", "m", "tokenizer=m"),
    ],
)
def test_the_value_of_an_engine_option_is_written_down_unless_it_is_a_secret(
    name: str, value: object, written: str
) -> None:
    assert redact_setting(name, value) == written


def test_the_environment_s_secrets_are_known_by_their_names() -> None:
    variables = {"HF_TOKEN": "hf_12345678", "API_KEY": "short", "DB_PASSWORD": "password-1", "KEYBOARD": "qwertzuiop"}
    assert secrets_in(variables) == ["hf_12345678", "password-1"]


@pytest.mark.parametrize(
    ("energy", "written"),
    [
        ("nvml, rapl", "nvml,rapl"),
        ("hwmon:power_meter/x", "hwmon:power_meter/x"),
        ("http://me:sk-1@gpu:9478/?key=sk-1", "http://gpu:9478"),
        ("nvml,redfish+https://bmc/redfish/v1/Chassis/1", "nvml,redfish+https://bmc/redfish/v1/Chassis/1"),
        ('http://me:sk-1@plug/metrics#w{a="1",b="2"},rapl', 'http://plug/metrics#w{a="1",b="2"},rapl'),
    ],
)
def test_energy_sources_are_written_down_without_their_secrets(energy: str, written: str) -> None:
    assert clean_sources(energy) == written


@pytest.mark.parametrize("energy", ["http://me:sk-1@[gpu", "nvml,http://me:sk-1@gpu:x/metrics"])
def test_an_error_about_a_malformed_energy_source_has_no_secret(energy: str) -> None:
    with pytest.raises(LoadgenError, match="malformed") as refused:
        clean_sources(energy)
    assert "sk-1" not in str(refused.value)
