"""The environment gives a login or a proxy, or nothing; it never fails a run that needs neither."""

from pathlib import Path

import pytest

from loadgen.client.server_url import parse_server_url
from loadgen.client.surroundings import login_of, netrc_login, proxy_of
from loadgen.errors import LoadgenError


@pytest.mark.parametrize(
    ("text", "login"),
    [
        ("machine h login me password pw", "Basic bWU6cHc="),
        ("default login me password pw", "Basic bWU6cHc="),
        ("machine other login me password pw", None),
        ("machine h login", None),
        ("nonsense", None),
        ("", None),
        (b"machine h login \xff\xfe password \x00", None),
    ],
)
def test_a_netrc_file_gives_the_login_of_its_host(
    text: str | bytes, login: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_bytes(text if isinstance(text, bytes) else text.encode())
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    assert netrc_login("h") == login


@pytest.mark.parametrize("path", ["missing", ".", "file/below"])
def test_a_netrc_file_that_cannot_be_read_is_none(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NETRC", str(tmp_path / path))
    assert netrc_login("h") is None


def test_a_home_that_may_not_be_entered_has_no_netrc_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.delenv("NETRC")
    monkeypatch.setattr("loadgen.client.surroundings.netrc.netrc", denied)
    assert login_of(parse_server_url("http://h/v1"), None) is None


@pytest.mark.parametrize(
    ("variables", "url", "proxy"),
    [
        ({}, "http://h/v1", None),
        ({"http_proxy": "http://p:3128"}, "http://h/v1", ("http://p:3128", "http_proxy")),
        ({"http_proxy": "p:3128"}, "http://h/v1", ("http://p:3128", "http_proxy")),
        ({"http_proxy": "http://me:secret@p:3128/"}, "http://h/v1", ("http://p:3128", "http_proxy")),
        ({"http_proxy": "http://p:3128"}, "https://h/v1", None),
        ({"https_proxy": "http://p:3128"}, "https://h/v1", ("http://p:3128", "https_proxy")),
        ({"http_proxy": "http://p:3128", "no_proxy": "h"}, "http://h/v1", None),
        ({"http_proxy": "http://p:3128", "no_proxy": "*"}, "http://h/v1", None),
        ({"http_proxy": ""}, "http://h/v1", None),
    ],
)
def test_a_proxy_is_the_one_that_the_environment_names_for_the_host(
    variables: dict[str, str], url: str, proxy: tuple[str, str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    parsed = parse_server_url(url)
    named = proxy_of(parsed.scheme, parsed.host)
    assert (named and (named.clean, named.variable)) == proxy


@pytest.mark.parametrize("proxy", ["socks5://me:secret@p:1080", "https://p:3128"])
def test_a_proxy_that_cannot_be_used_is_refused_without_its_login(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(LoadgenError, match=r"^\$http_proxy names a proxy .* \$no_proxy") as error:
        proxy_of("http", "h")
    assert "secret" not in str(error.value)
