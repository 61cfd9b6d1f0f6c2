"""Analysed runs of agent sessions: turns with tools between them, sub-agents beside them, energy by the work done."""

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from loadgen.energy.series import EnergyDomain, EnergySample
from loadgen.record import RequestRecord
from loadgen.results.run_folder import RunResult
from loadgen.results.summarize import analyse_run
from loadgen.units import NS_PER_S
from loadgen.workload.schedule import ScheduledRequest
from support import sample_runs
from support.sample_runs import START_NS


def turn(
    index: int,
    session: str | None,
    sent_s: float,
    end_s: float,
    *,
    due_s: float | None = None,
    task: str | None = None,
    prompt: int = 1000,
    cached: int | None = 0,
    tokens: int = 20,
    workload: str = "agent",
    **fields: Any,
) -> tuple[ScheduledRequest, RequestRecord]:
    """Return a request that is sent and answered at these seconds; by default it is due when it is sent."""
    due_s = sent_s if due_s is None else due_s
    due_ns, sent_ns, end_ns = (START_NS + round(seconds * NS_PER_S) for seconds in (due_s, sent_s, end_s))
    chunks = np.linspace(sent_ns + (end_ns - sent_ns) // 4, end_ns, tokens).astype(np.int64).tolist()
    answer: dict[str, Any] = {
        "sent_ns": sent_ns, "first_token_ns": chunks[0], "last_token_ns": chunks[-1], "finished_ns": end_ns,
        "chunk_ns": chunks, "input_tokens": prompt, "cached_tokens": cached, "output_tokens": tokens,
        "token_source": "usage", "status": 200, "finish_reason": "length",
    }  # fmt: skip
    request = ScheduledRequest(
        index=index, offset_ns=due_ns - START_NS, workload=workload, input_tokens=prompt, output_tokens=tokens,
        session_id=session, task=task,
    )  # fmt: skip
    return request, RequestRecord(index=index, workload=workload, scheduled_ns=due_ns, **(answer | fields))


def analysed(turns: list[tuple[ScheduledRequest, RequestRecord]], watts: float = 400.0, **config: Any) -> RunResult:
    """Return the analysed run of these turns: 100 W of idle power, and `watts` more while a request is in flight."""
    schedule, records = [request for request, _ in turns], [record for _, record in turns]
    end_ns = max(record.finished_ns or START_NS for record in records) + NS_PER_S
    t_ns = np.arange(START_NS - 2 * NS_PER_S, end_ns, NS_PER_S // 20)
    busy = np.zeros(len(t_ns), bool)
    for record in records:
        if record.sent_ns is not None and record.finished_ns is not None:
            busy |= (t_ns >= record.sent_ns) & (t_ns < record.finished_ns)
    noise = np.random.default_rng(0).normal(1, 0.02, len(t_ns))
    joules = np.concatenate(([0.0], np.cumsum(((100 + watts * busy) * noise)[:-1] / 20)))
    samples = [EnergySample(int(t), "gpu:0", float(j)) for t, j in zip(t_ns, joules, strict=True)] if watts else []
    domains = [EnergyDomain(name="gpu:0", source="nvml-counter", period_s=0.05)] if watts else []
    info = msgspec.structs.replace(sample_runs.single().info, domains=domains, instrument={}, config=config)
    return analyse_run(replace(sample_runs.single(), info=info, schedule=schedule, records=records, energy=samples))


def agent_run(sessions: int = 6, seed: int = 5, **config: Any) -> RunResult:
    """Return a run of sessions of 3 to 20 turns whose prompts grow and are mostly cached, some of them with a sub-agent
    beside their third turn."""
    rng, turns = np.random.default_rng(seed), list[tuple[float, tuple[str, float, float], dict[str, Any]]]()
    for number in range(sessions):
        at_s, prompt, cached = float(rng.uniform(0, 3 * sessions)), int(rng.integers(2_000, 9_000)), 0
        for position in range(int(rng.integers(3, 20))):
            tokens = int(rng.integers(10, 60))
            took_s = 0.05 + (prompt - cached) / 40_000 + tokens * 0.01
            name, end_s = f"s{number}", at_s + took_s
            rest = {"due_s": at_s - 0.002, "prompt": prompt, "cached": cached, "tokens": tokens}
            turns.append((at_s, (name, at_s, end_s), rest))
            if position == 2 and number % 2:
                turns.append((end_s, (name, end_s, end_s + took_s), {"prompt": 1_500, "task": "search"}))
            at_s += took_s + float(rng.exponential(1.5))
            cached = prompt
            prompt += tokens + int(rng.integers(30, 800))
    turns.sort(key=lambda line: line[0])
    return analysed([turn(index, *times, **rest) for index, (_, times, rest) in enumerate(turns)], **config)
