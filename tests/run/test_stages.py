"""A run says what it is doing from its first moment to its last request, whatever it waits for."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from loadgen.run.config import RunConfig
from loadgen.run.interrupts import run_to_the_end
from loadgen.run.progress import NullView, Progress, Stage
from loadgen.run.replay import replay
from loadgen.simulator.app import ServerOptions, running_simulator
from loadgen.simulator.faults import parse_faults
from loadgen.units import NS_PER_MS
from loadgen.workload.schedule import Schedule, ScheduledRequest

FIRST = ["asking which model it serves", "waiting for the first answer", "asking how it counts tokens"]


class Recorder(NullView):
    """Keeps what it is shown; `react` is called with each of it."""

    def __init__(self, react: Callable[[Stage, Progress | None], None] = lambda stage, progress: None) -> None:
        self.shown: list[tuple[Stage, Progress | None]] = []
        self._react = react

    def update(self, stage: Stage, progress: Progress | None = None) -> None:
        self.shown.append((stage, progress))
        self._react(stage, progress)

    @property
    def stages(self) -> list[str]:
        """The names of the stages in their order."""
        names = [stage.name for stage, _ in self.shown]
        return [name for name, earlier in zip(names, ["", *names], strict=False) if name != earlier]


def run(view: Recorder, out: Path, *faults: str, output_tokens: int = 2, **options: Any) -> None:
    """Replay three requests against the simulator."""
    request = ScheduledRequest(index=0, offset_ns=0, workload="chat", input_tokens=20, output_tokens=output_tokens)
    three = [msgspec.structs.replace(request, index=i, offset_ns=300 * i * NS_PER_MS) for i in range(3)]

    async def main() -> Schedule:
        async with running_simulator(ServerOptions(port=0, faults=parse_faults(faults))) as (_, url):
            config = RunConfig(out=out, base_url=f"{url}/v1", goodput={"ttft": 60_000.0}, **options)
            return await replay(Schedule(tuple(three), "trace", None, 0), config, view)

    run_to_the_end(main())


def test_the_stages_of_a_run_in_their_order(tmp_path: Path) -> None:
    view = Recorder()
    run(view, tmp_path / "run", idle_s=0.6, warmup=2)
    meter = ["opening the energy meter", "warming up", "measuring idle", "sending"]
    assert [name for name in view.stages if name != "draining"] == [*FIRST, *meter, "reading the last counters"]
    _, last = [shown for shown in view.shown if shown[1] is not None][-1]
    assert last is not None
    assert last.target.endswith("/v1 (loadgen-simulator)") and last.limits_ms == {"ttft": 60_000.0}


def test_a_run_without_a_meter_measures_no_idle_power(tmp_path: Path) -> None:
    view = Recorder()
    run(view, tmp_path / "run", energy="none", idle_s=0.6)
    assert "measuring idle" not in view.stages and "sending" in view.stages


def test_a_run_that_breaks_leaves_no_thread_behind(tmp_path: Path) -> None:
    def break_off(stage: Stage, progress: Progress | None) -> None:
        if progress is not None and progress.sent:
            raise ZeroDivisionError

    before = set(threading.enumerate())
    with pytest.raises(ExceptionGroup):
        run(Recorder(break_off), tmp_path / "run", idle_s=0.0, output_tokens=5000)  # it cannot end before it is shown
    meters = [t for t in set(threading.enumerate()) - before if t.name in ("engine-metrics", "energy-sampler")]
    for thread in meters:
        thread.join(10)
    assert not any(thread.is_alive() for thread in meters)


def test_a_drain_names_its_requests_and_the_screen_changes_at_each_ctrl_c(tmp_path: Path) -> None:
    interrupted: list[Stage] = []

    def interrupt(stage: Stage, progress: Progress | None) -> None:
        """Press Ctrl-C once all requests are sent, and again when the drain is shown."""
        is_next = progress is not None and progress.sent == 3 and bool(stage.hint) == bool(interrupted)
        if is_next and len(interrupted) < 2:
            interrupted.append(stage)
            os.kill(os.getpid(), signal.SIGINT)

    view = Recorder(interrupt)
    run(view, tmp_path / "run", energy="none", idle_s=0.0, output_tokens=5000)
    assert [stage.hint for stage in interrupted] == ["", "Ctrl-C again to abort"]
    assert view.stages[-3:] == ["draining", "aborting", "reading the last counters"]
    stage, progress = next(shown for shown in view.shown if shown[0].hint)
    assert stage.hint == "Ctrl-C again to abort" and progress is not None
    assert [waiting.request for waiting, _ in progress.oldest] == [0, 1, 2]
    ages_s = [age_s for _, age_s in progress.oldest]
    assert ages_s == sorted(ages_s, reverse=True) and ages_s[0] > 0


def test_a_server_that_never_answers_is_waited_for_in_sight_and_a_ctrl_c_ends_the_wait(tmp_path: Path) -> None:
    def interrupt(stage: Stage, progress: Progress | None) -> None:
        if stage.name == "waiting for the first answer" and stage.waited_s > 0.3:
            os.kill(os.getpid(), signal.SIGINT)

    view = Recorder(interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(view, tmp_path / "run", "stall:1", energy="none", idle_s=0.0)
    assert view.stages == FIRST[:2]
    assert not (tmp_path / "run").exists()
