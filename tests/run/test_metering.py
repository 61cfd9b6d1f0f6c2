"""The energy of a run is that from its recording on, of the source that its user names."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from loadgen.client.server_info import ServerInfo
from loadgen.energy.series import EnergySample
from loadgen.run import metering
from loadgen.run.config import RunConfig
from loadgen.run.metering import Metering, since


def sample(t_ns: int, domain: str) -> EnergySample:
    return EnergySample(t_ns=t_ns, domain=domain, joules=float(t_ns))


def test_what_was_drawn_during_the_warm_up_is_left_out_but_for_the_point_that_covers_the_beginning() -> None:
    samples = [sample(t_ns, domain) for t_ns in range(10) for domain in ("gpu:0", "gpu:1")]
    kept = since(samples, 7)
    assert [(one.t_ns, one.domain) for one in kept] == [(t_ns, f"gpu:{k}") for t_ns in (6, 7, 8, 9) for k in (0, 1)]
    assert since(samples, 0) == samples


@pytest.mark.parametrize(("energy", "token"), [("http://meter:9478", "sesame"), ("auto", None)])
def test_the_token_of_the_environment_is_for_the_source_that_the_user_names_alone(
    energy: str, token: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A simulated server is its own source: whoever measures an unknown one gives it no token."""
    opened: list[tuple[str, Any]] = []

    def open_it(source: str, **options: Any) -> tuple[None, list[str]]:
        opened.append((source, options["token"]))
        return None, []

    monkeypatch.setenv("LOADGEN_ENERGY_TOKEN", "sesame")
    monkeypatch.setattr(metering, "open_meter", open_it)
    server = ServerInfo("http://simulated:8000/v1", "m", "loadgen-simulator")

    async def enter() -> None:
        async with Metering(RunConfig(base_url=server.base_url, out=tmp_path, energy=energy), server):
            pass

    asyncio.run(enter())
    assert opened == [("http://simulated:8000" if energy == "auto" else energy, token)]
