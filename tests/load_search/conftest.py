import math
from collections.abc import Iterator

import pytest

from loadgen.load_search import faults, plan, prober
from loadgen.servers.launcher import served
from support.small_search import SHORT


@pytest.fixture(scope="session")
def slow() -> Iterator[str]:
    """A server that answers one request at a time: about nine a second of those of a small search."""
    with served("sim", "--engine-option", "max_num_seqs=1", "--engine-option", "counter_period_ms=20") as url:
        yield url


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes take a second or two, and a busy machine that runs the tests is no slow client."""
    monkeypatch.setattr(faults, "_client_fault", lambda result, summary: None)
    monkeypatch.setattr(prober, "client_limit_rps", lambda rate_rps, result: math.inf)
    for name, value in SHORT.items():
        monkeypatch.setattr(plan, name, value)
