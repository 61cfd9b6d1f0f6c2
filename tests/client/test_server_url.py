"""A URL's parts go where they belong: the query into every request, the login into a header, neither into a message."""

import pytest

from loadgen.client.server_url import parse_server_url
from loadgen.errors import LoadgenError


@pytest.mark.parametrize(
    ("url", "clean", "target"),
    [
        ("http://h:8000/v1", "http://h:8000/v1", "/v1/x"),
        ("http://h:8000/v1///", "http://h:8000/v1", "/v1/x"),
        ("http://h", "http://h", "/x"),
        ("http://h?a=b", "http://h", "/x?a=b"),
        ("HTTPS://Me:Secret@H.example/V1?api-version=1#top", "https://h.example/V1", "/V1/x?api-version=1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1", "/v1/x"),
        ("http://bücher.example/v1", "http://xn--bcher-kva.example/v1", "/v1/x"),
        ("http://h/a b/é?q=a b&r=%20", "http://h/a%20b/%C3%A9", "/a%20b/%C3%A9/x?q=a%20b&r=%20"),
        ("http://h/v1\r\nX: y", "http://h/v1X:%20y", "/v1X:%20y/x"),
    ],
)
def test_a_request_has_the_path_and_the_query_and_a_message_the_address(url: str, clean: str, target: str) -> None:
    parsed = parse_server_url(url)
    assert (parsed.clean, parsed.target("/x")) == (clean, target)
    assert parse_server_url(parsed.text) == parsed
    assert target.isascii()


@pytest.mark.parametrize(
    "url",
    ["localhost:8000", "ftp://h", "http://", "http://[::1", "http://h:99999/v1", "http://h:x/v1", "http://a..b/v1",
     "http://" + "a" * 64 + ".example/v1"],
)  # fmt: skip
def test_what_is_no_url_of_a_server_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(LoadgenError) as error:
        parse_server_url(url)
    assert "\n" not in str(error.value)


def test_a_refused_url_is_quoted_without_its_login() -> None:
    with pytest.raises(LoadgenError) as error:
        parse_server_url("http://me:secret@[::1/v1")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "guesses"),
    [
        ("http://h", ["", "/v1"]),
        ("http://h/v1", ["/v1"]),
        ("http://h/v1/chat/completions", ["/v1"]),
        ("http://h/completions", ["", "/v1"]),
        ("http://h/openai/deployments/d", ["/openai/deployments/d", "/openai/deployments/d/v1"]),
        ("http://h/v1beta/openai", ["/v1beta/openai"]),
        ("http://h/api/v3", ["/api/v3"]),
        ("http://h/v1/models", ["/v1"]),
        ("http://h/vllm", ["/vllm", "/vllm/v1"]),
    ],
)
def test_an_endpoint_is_left_out_and_a_version_is_added_where_there_is_none(url: str, guesses: list[str]) -> None:
    assert [guess.path for guess in parse_server_url(url + "?k=v").guesses()] == guesses
    assert {guess.query for guess in parse_server_url(url + "?k=v").guesses()} == {"k=v"}


def test_what_moves_keeps_its_login_and_query_and_the_root_is_without_v1() -> None:
    moved = parse_server_url("http://me:pw@h/old?k=v").moved_to("https://h:1/v1?other")
    assert moved.text == "https://me:pw@h:1/v1?k=v"
    assert moved.root.page("/info") == "https://h:1/info?k=v"
    assert moved.page("/models") == "https://h:1/v1/models?k=v"
