"""No secret is printed or written down."""

import pytest

from loadgen.client.redact import clean_url, redact
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
