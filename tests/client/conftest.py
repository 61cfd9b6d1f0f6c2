import pytest

from loadgen.client.socket_poller import reads_tokens
from loadgen.client.token_template import skip_tokens_in_python


@pytest.fixture(params=["compiled", "python", "aiohttp"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test on every transport: plain with the compiled token reader, plain without it, and aiohttp."""
    if request.param == "compiled" and not reads_tokens():
        pytest.skip("loadgen.client._token_reader is not compiled here")
    if request.param == "python":
        monkeypatch.setattr("loadgen.client.socket_poller.CompiledReader", None)
        monkeypatch.setattr("loadgen.client.token_template.skip_tokens", skip_tokens_in_python)
    if request.param == "aiohttp":
        monkeypatch.setattr("loadgen.client.client.is_plain", lambda *_: False)
    return str(request.param)


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a probe try again without a pause."""

    async def sleep(_seconds: float) -> None:
        pass

    monkeypatch.setattr("loadgen.client.patience.sleep", sleep)
