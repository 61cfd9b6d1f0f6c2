import os

import hypothesis
import pytest

# A busy machine is not a failing test.
hypothesis.settings.register_profile("loadgen", deadline=None)
hypothesis.settings.load_profile("loadgen")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the developer's own server, key, proxy or GPUs."""
    for name in list(os.environ):
        if name.startswith("OPENAI_") or name.lower().endswith("_proxy") or name == "CUDA_VISIBLE_DEVICES":
            monkeypatch.delenv(name)
