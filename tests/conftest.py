import os
import socket
import time
from collections.abc import Iterator

import hypothesis
import pytest

from loadgen.client.kernel_timestamps import enable_timestamps

# A busy machine is not a failing test.
hypothesis.settings.register_profile("loadgen", deadline=None)
hypothesis.settings.load_profile("loadgen")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the developer's own server, key, proxy or GPUs."""
    for name in list(os.environ):
        if name.startswith("OPENAI_") or name.lower().endswith("_proxy") or name == "CUDA_VISIBLE_DEVICES":
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", os.devnull)


@pytest.fixture(scope="module")
def stamping() -> Iterator[None]:
    """The first socket that asks for stamps makes the kernel begin with them, soon: until then they tell of reading."""
    with socket.socket() as first:
        enable_timestamps(first)
        time.sleep(0.2)
        yield
