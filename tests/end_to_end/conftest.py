from collections.abc import Iterator

import pytest

from support.recording_server import RecordingServer


@pytest.fixture
def server() -> RecordingServer:
    return RecordingServer()


@pytest.fixture
def url(server: RecordingServer) -> Iterator[str]:
    with server.serving() as url:
        yield url
