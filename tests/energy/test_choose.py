"""The meters of this machine are the server's exactly when the server's address is this machine's."""

import socket
from typing import Any

import pytest

from loadgen.energy.choose import energy_token, is_local, source_beside


def own_address() -> str:
    """Return the address from which this machine would reach another one, or its loopback address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(sock.getsockname()[0])


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("0.0.0.0", True),
        (socket.gethostname(), True),
        (own_address(), True),
        ("192.0.2.1", False),
        ("[2001:db8::1]", False),
        ("nowhere.invalid", False),
    ],
)
def test_a_server_is_local_under_every_address_of_this_machine(host: str, local: bool) -> None:
    assert is_local(f"http://{host}:8000/v1") == local
    assert source_beside(f"http://{host}:8000/v1", "auto", simulated_at=None) == ("auto" if local else None)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
@pytest.mark.parametrize("host", ["[::1]", "[::]"])
def test_a_server_is_local_under_this_machines_ipv6_addresses(host: str) -> None:
    assert is_local(f"http://{host}:8000/v1")


@pytest.mark.parametrize(
    ("addresses", "local"),
    [(["127.0.0.1"], True), (["127.0.0.1", "127.0.0.2"], True), (["127.0.0.1", "192.0.2.1"], False)],
)
def test_a_name_is_local_when_all_its_addresses_are(
    addresses: list[str], local: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def getaddrinfo(*_: Any, **__: Any) -> list[tuple[Any, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert is_local("http://pods.example:8000/v1") == local


def test_the_token_is_for_sources_that_the_user_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is measured may name its own source as that of `auto`: it does not get the token."""
    monkeypatch.setenv("LOADGEN_ENERGY_TOKEN", "sesame")
    assert energy_token("http://h:9478") == energy_token("nvml,http://h:9478") == "sesame"
    assert energy_token("auto") is None
    monkeypatch.setenv("LOADGEN_ENERGY_TOKEN", "")
    assert energy_token("http://h:9478") is None
