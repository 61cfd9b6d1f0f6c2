"""A program of a user, which `mypy --strict` accepts: each `type: ignore` is a mistake that it must find."""

import asyncio
from pathlib import Path

import loadgen


def p99_ttft_s(folder: Path) -> float | None:
    run: loadgen.Run = loadgen.read(folder)
    if not run.verdict.stands:
        raise loadgen.LoadgenError("; ".join(run.verdict.reasons))
    return run.summary.ttft_s.p99


def tables(run: loadgen.Run) -> dict[str, str | None]:
    frame = run.requests.to_pandas()
    print(frame["ttft_s"].mean(), run.energy["watts"].max(), len(run.engine), run.info.to_dict()["seed"])
    return {name: column.unit for name, column in run.requests.columns.items()}


def sweep() -> list[loadgen.Run]:
    return [loadgen.replay("chat", rps=rps, duration_s=10, serve="sim", goodput={"ttft": 200}) for rps in (1, 2.5)]


async def both() -> loadgen.Difference:
    first = await loadgen.areplay([{"prompt": "a"}], base_url="http://h/v1", rps=1, max_tokens=10)
    second, _ = await asyncio.gather(loadgen.areplay("chat"), asyncio.sleep(1))
    return loadgen.compare(first, second, allow=["rate"]).rows["ttft_s.p99"]


async def limit() -> tuple[float, float | None] | None:
    search: loadgen.Search = await loadgen.asearch(
        "chat", goodput={"ttft": 200}, serve="sim", over={"max_num_seqs": [8, 64], "a": ["on"]}, budget_s=60
    )
    print(search.probes["good_rps"].max(), search.result.to_dict()["best"], search.answer)
    print(loadgen.read_search(search.path).least_joules_rate)
    return None if search.rate is None else (search.rate.value, search.rate.low)


def joules(trace: loadgen.Trace) -> float:
    loadgen.write_trace("short.jsonl", [request for request in trace.requests if (request.input_tokens or 0) < 100])
    return loadgen.estimate(trace, profile="h200-sim-llama-3.1-8b", rps=4).method("interpolated").joules


loadgen.replay("chat", rps="fast")  # type: ignore[arg-type]
loadgen.replay("chat", request_rate=3)  # type: ignore[call-arg]
loadgen.replay("chat", arrival="now")  # type: ignore[arg-type]
loadgen.areplay("chat", request_rate=3)  # type: ignore[call-arg, unused-coroutine]
print(loadgen.read("run").summary.ttft.p99)  # type: ignore[attr-defined]
print(loadgen.find)  # type: ignore[attr-defined]
loadgen.search("chat", over=["max_num_seqs=8"])  # type: ignore[arg-type]
loadgen.asearch("chat", rps=3)  # type: ignore[call-arg, unused-coroutine]
