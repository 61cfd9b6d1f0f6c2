"""Measure the error per request of each attribution method against the simulated engine's own account.

    python -m benchmarks.accuracy.attribution_oracle [--seconds 300] [--seed 0] [--json FILE] [--markdown]

Every row is simulated, in virtual time: an engine whose cost law is not the fit's own (attention grows with context,
compute and memory overlap, power saturates and drifts with temperature), a counter that updates every 100 ms, a client
that sees each chunk 0.2 to 0.8 ms after its step. Errors are per request, |attributed - true| / true, over requests
that ended. The 95 % interval of a request, and of a sum of requests, is Z standard errors to either side.
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.accuracy.agent_sessions import AgentLoad, agent_turns, parents
from benchmarks.accuracy.oracle_tables import table_of_agents, table_of_loads, table_of_strangers
from loadgen.attribution.beside_others import steps_beside_others
from loadgen.attribution.cached_tokens import with_cached_tokens
from loadgen.attribution.foreign_spans import engine_spans
from loadgen.attribution.shapley import METHODS, RunAttribution, attribute_energy
from loadgen.attribution.window_fit import align_phase
from loadgen.clock import Anchor
from loadgen.energy.counter_clock import align_to_counter_clock
from loadgen.energy.counter_track import CounterTrack
from loadgen.energy.nvml import VERNIER
from loadgen.energy.series import EnergyDomain, EnergySeries, series_by_domain
from loadgen.energy_model.hardware import read_hardware, read_model
from loadgen.record import RequestRecord
from loadgen.results.reusable_tokens import reusable_tokens
from loadgen.simulator.cost_model import CounterOptions
from loadgen.simulator.engine import KV_BLOCK_TOKENS, EngineOptions, SimulatedRun, SubmittedRequest, simulate
from loadgen.simulator.experts import Routing
from loadgen.simulator.spans import Finished, export_finished
from loadgen.simulator.speculation import Speculation
from loadgen.telemetry.engine_sample import EngineSample
from loadgen.telemetry.engine_span import EngineSpan
from loadgen.telemetry.otlp_parse import parse_spans
from loadgen.units import NS_PER_MS, NS_PER_S
from loadgen.workload.schedule import ScheduledRequest, build_schedule
from loadgen.workload.trace import Trace, TraceRequest, read_trace

TRACES = Path(__file__).parents[2] / "traces"
IDLE_NS = 2 * NS_PER_S
PERIOD_NS = 100 * NS_PER_MS
CHUNK_DELAY_NS = (200_000, 800_000)
CLIENT_ONLY = ", client only"
"""End of the name of a scenario without the engine's counters."""
Z = 1.96
"""Standard errors in half of a 95 % interval."""
RUN_ID = "run"
LONG = Trace("100k", (TraceRequest(arrival_s=0.0, input_tokens=100_000, output_tokens=200),) * 1000, "", timed=False)
"""Prompts of 100,000 tokens."""
WALL_NS = 1_700_000_000 * NS_PER_S
"""Wall-clock time at the virtual instant 0."""


@dataclass(frozen=True)
class Scenario:
    name: str
    rates: dict[str, float]
    """Rate of each trace, in requests/s."""
    hardware: str = "h200"
    limit_w: float | None = None
    """Power limit of the GPU; None: the card's own."""
    model: str = "llama-3.1-8b"
    options: EngineOptions = field(default_factory=EngineOptions)
    counter: CounterOptions = field(default_factory=CounterOptions)
    foreign: float = 0.0
    """Share of the requests that another client sends."""
    engine: bool = True
    """True when the engine's counters are available."""
    spans: bool = False
    """True when the engine's spans are available, of other clients' requests too."""
    shared_prefix: float = 0.0
    """Share of each prompt that every prompt has in common."""
    polled: bool = False
    """True when the counter is read by polling, as with NVML, instead of at the instants of its updates."""
    agents: AgentLoad | None = None
    """Sessions of agents, instead of requests at rates; those that are listed run in 300 s, fewer in less."""
    told: bool = True
    """True when the server's usage tells the cached tokens of a request."""


def scenarios() -> list[Scenario]:
    mixes = {"chat": {"chat": 1.0}, "code": {"code": 1.0}, "mix": {"chat": 0.5, "code": 0.5}}
    rates = [
        (f"{name} {rps}/s", {kind: share * rps for kind, share in mix.items()})
        for rps in (1, 6, 14)
        for name, mix in mixes.items()
    ]
    plain = [Scenario(name, mix) for name, mix in rates]
    mix = {"chat": 3.0, "code": 3.0}
    small = EngineOptions(kv_cache_tokens=20_000)
    evicting = EngineOptions(prefix_caching=True, kv_cache_tokens=20_000)
    drafting = EngineOptions(speculation=Speculation(read_model("llama-3.2-1b"), (0.8, 0.7, 0.6, 0.5)))
    return [
        *plain,
        *(replace(scenario, name=scenario.name + CLIENT_ONLY, engine=False) for scenario in plain),
        *(
            replace(scenario, name=f"{scenario.name}, polled", polled=True)
            for scenario in plain
            if "mix" in scenario.name
        ),
        Scenario("mix 6/s, 2 % noise", mix, counter=CounterOptions(noise=0.02)),
        Scenario("mix 6/s, 5 % noise", mix, counter=CounterOptions(noise=0.05)),
        Scenario("mix 6/s, prefix caching", mix, options=EngineOptions(prefix_caching=True), shared_prefix=0.5),
        Scenario("mix 6/s, prefix caching, eviction", mix, options=evicting, shared_prefix=0.5),
        Scenario("mix 6/s, preemption", mix, options=small),
        *(
            Scenario(f"mix 2/s, 100k prompts 0.02/s{kind}", {"chat": 1.0, "code": 1.0, "100k": 0.02}, engine=not kind)
            for kind in ("", CLIENT_ONLY)
        ),
        *(
            Scenario(
                f"mix {rps}/s, {100 * share:.0f} % foreign{spans and ', spans'}",
                {"chat": rps / 2, "code": rps / 2},
                foreign=share,
                spans=bool(spans),
            )
            for rps in (2, 6, 14)
            for share in (0.1, 0.3, 0.6)
            for spans in ("", ", spans")
        ),
        Scenario("70B-like, mix 2/s", {"chat": 1.0, "code": 1.0}, model="llama-3.1-70b"),
        *mixture_of_experts(),
        *at_the_power_limit(),
        *(
            replace(scenario, name=f"{scenario.name}, draft model{kind}", options=drafting, engine=not kind)
            for kind in ("", CLIENT_ONLY)
            for scenario in plain
            if "mix" in scenario.name or scenario.name == "chat 6/s"
        ),
        Scenario("mix 6/s, 30 % foreign, spans, draft model", mix, options=drafting, foreign=0.3, spans=True),
        Scenario("small GPU, mix 0.4/s", {"chat": 0.2, "code": 0.2}, hardware="l4"),
        *unseen(),
        *agents(),
    ]


def at_the_power_limit() -> list[Scenario]:
    """Return loads under which the GPU is at its limit most of the time, or at a low one some of it."""
    rows = [
        Scenario("chat 20/s", {"chat": 20.0}),
        Scenario("code 20/s", {"code": 20.0}),
        Scenario("mix 6/s, limit 500 W", {"chat": 3.0, "code": 3.0}, limit_w=500.0),
        Scenario("mix 6/s, limit 400 W", {"chat": 3.0, "code": 3.0}, limit_w=400.0),
        Scenario("chat 14/s, limit 500 W", {"chat": 14.0}, limit_w=500.0),
    ]
    return [*rows, *(replace(row, name=row.name + CLIENT_ONLY, engine=False) for row in (rows[0], rows[2]))]


def mixture_of_experts() -> list[Scenario]:
    """Return the mix at three rates, with experts of equal and of skewed popularity, and on four GPUs."""
    rates = {f"MoE mix {rps}/s": {"chat": rps / 2, "code": rps / 2} for rps in (1, 6, 14)}
    even, skewed, spread = Routing(skew=0.0), Routing(skew=1.0), Routing(skew=0.5, parallel=True)
    plain = [Scenario(name, mix, model="qwen3-30b-a3b") for name, mix in rates.items()]
    four = EngineOptions(tensor_parallel=4, routing=spread)
    served = [
        *(replace(row, name=f"{row.name}, even", options=EngineOptions(routing=even)) for row in plain),
        *(replace(row, name=f"{row.name}, skewed", options=EngineOptions(routing=skewed)) for row in plain),
        *(replace(row, name=f"{row.name}, expert-parallel", options=four) for row in plain),
    ]
    return [*served, *(replace(row, name=row.name + CLIENT_ONLY, engine=False) for row in served)]


def unseen() -> list[Scenario]:
    """Return loads on other hardware, which no constant of the standard errors was chosen by."""
    return [
        Scenario("H100-like, mix 8/s", {"chat": 4.0, "code": 4.0}, hardware="h100"),
        Scenario("H100-like, chat 4/s", {"chat": 4.0}, hardware="h100"),
        Scenario("H100-like, MoE mix 4/s", {"chat": 2.0, "code": 2.0}, hardware="h100", model="qwen3-30b-a3b"),
        Scenario("small GPU, code 0.5/s", {"code": 0.5}, hardware="l4"),
    ]


def agents() -> list[Scenario]:
    """Return sessions of agents, by how many run at a time, what the cache holds, and what the client is told of it."""
    cached = EngineOptions(prefix_caching=True)
    small = EngineOptions(prefix_caching=True, kv_cache_tokens=500_000)
    one, four, many = (
        Scenario(f"agents, {n} at a time", {}, options=cached, agents=AgentLoad(at_a_time=n)) for n in (1, 4, 16)
    )
    evicted = replace(many, name=f"{many.name}, eviction", options=small)
    busy = AgentLoad(at_a_time=16, think_s=1.0)
    return [
        one,
        four,
        many,
        replace(many, name="agents, 16 at a time, tools of 1 s", agents=busy),
        evicted,
        replace(four, name=f"{four.name}, no caching", options=EngineOptions()),
        replace(four, name=f"{four.name}, H100-like", hardware="h100"),
        *(replace(row, name=f"{row.name}, counters", told=False) for row in (four, many, evicted)),
        *(replace(row, name=f"{row.name}{CLIENT_ONLY}", told=False, engine=False) for row in (four, many, evicted)),
    ]


@dataclass(frozen=True)
class Case:
    """A simulated run as loadgen would have recorded it, and the simulator's own account."""

    records: list[RequestRecord]
    run: SimulatedRun
    own: list[int]
    """Rows of run.requests that loadgen sent; the other rows are another client's."""
    domains: list[EnergyDomain]
    reusable: list[int | None] | None = None
    """Tokens that each prompt shares with earlier ones, by the plan; None: there is no plan."""


def simulated(scenario: Scenario, seconds: float, seed: int) -> Case:
    if scenario.agents is not None:
        return simulated_agents(scenario, scenario.agents, scenario.options, seconds, seed)
    rng = np.random.default_rng(seed)
    arrivals = []
    for row, (kind, rps) in enumerate(scenario.rates.items()):
        plan = build_schedule(
            LONG if kind == "100k" else read_trace(TRACES / f"{kind}.jsonl"),
            seed=seed + 1000 * row,  # with one seed all kinds arrive at the same instants
            rps=rps,
            arrival="poisson",
            duration_s=seconds,
        )
        for request in plan.requests:
            blocks = _blocks(request.input_tokens, scenario.shared_prefix, kind, request.index)
            at_ns = IDLE_NS + request.offset_ns
            arrivals.append((SubmittedRequest(at_ns, request.input_tokens, request.output_tokens, blocks), kind))
    hardware = read_hardware(scenario.hardware)
    if scenario.limit_w is not None:
        hardware = msgspec.structs.replace(hardware, limit_w=scenario.limit_w)
    run = simulate(
        [arrival for arrival, _ in arrivals], hardware, read_model(scenario.model),
        scenario.options, scenario.counter, tail_ns=IDLE_NS // 4, seed=seed,
    )  # fmt: skip
    own = [i for i in range(len(arrivals)) if rng.random() >= scenario.foreign]
    records = [record_of(row, arrivals[i][1], run.requests[i], rng) for row, i in enumerate(own)]
    domains = [EnergyDomain(name="gpu:0", source="simulated", limit_w=hardware.limit_w)]
    return Case(records, run, own, domains)


def simulated_agents(scenario: Scenario, agents: AgentLoad, engine: EngineOptions, seconds: float, seed: int) -> Case:
    """Return sessions of agents on such an engine; the requests of a session are a workload."""
    sessions = max(agents.at_a_time, round(agents.sessions * seconds / 300))
    turns = agent_turns(replace(agents, sessions=sessions), IDLE_NS, seed)
    hardware = read_hardware(scenario.hardware)
    run = simulate(
        [turn.submitted for turn in turns], hardware, read_model(scenario.model), engine, scenario.counter,
        after=parents(turns), tail_ns=IDLE_NS // 4, seed=seed,
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    records = [
        record_of(row, f"session {turn.session}", truth, rng)
        for row, (turn, truth) in enumerate(zip(turns, run.requests, strict=True))
    ]
    schedule = [
        ScheduledRequest(
            index=row, offset_ns=0, workload="agents", input_tokens=turn.input_tokens,
            output_tokens=turn.output_tokens, prefix_ids=turn.blocks, block_size=KV_BLOCK_TOKENS,
        )
        for row, turn in enumerate(turns)
    ]  # fmt: skip
    reusable = reusable_tokens(schedule, records)
    if not scenario.told:
        untold = [msgspec.structs.replace(record, cached_tokens=None) for record in records]
        records = with_cached_tokens(untold, reusable, engine_samples_of(run) if scenario.engine else [])
    domains = [EnergyDomain(name="gpu:0", source="simulated", limit_w=hardware.limit_w)]
    return Case(records, run, list(range(len(turns))), domains, reusable)


def _blocks(tokens: int, shared: float, kind: str, index: int) -> tuple[int, ...]:
    if not shared:
        return ()
    full_blocks = tokens // 16
    common = int(full_blocks * shared)
    return tuple(hash((kind, i)) for i in range(common)) + tuple(
        hash((kind, index, i)) for i in range(common, full_blocks)
    )


def record_of(index: int, kind: str, truth: Any, rng: np.random.Generator) -> RequestRecord:
    """Return what a client records of a simulated request."""
    delays = rng.uniform(*CHUNK_DELAY_NS, len(truth.token_ns)).astype(int)
    chunks = np.maximum.accumulate(np.array(truth.token_ns) + delays).tolist()
    return RequestRecord(
        index=index, workload=kind, scheduled_ns=truth.arrival_ns, sent_ns=truth.arrival_ns - 300_000,
        first_token_ns=chunks[0], last_token_ns=chunks[-1], finished_ns=chunks[-1] + NS_PER_MS // 10, chunk_ns=chunks,
        input_tokens=truth.input_tokens, output_tokens=truth.output_tokens, cached_tokens=truth.cached_tokens,
        token_source="usage", status=200, finish_reason="length",
    )  # fmt: skip


def spans(case: Case) -> list[EngineSpan]:
    """Return the spans of all requests, as vLLM exports them, on a wall clock."""
    row = {request: index for index, request in enumerate(case.own)}
    finished = [
        Finished(
            f"chatcmpl-{RUN_ID}-{row[i]}" if i in row else f"chatcmpl-{i}", request.arrival_ns, request.started_ns,
            request.token_ns[0], request.token_ns[-1], request.input_tokens, request.output_tokens,
        )
        for i, request in enumerate(case.run.requests)
    ]  # fmt: skip
    return engine_spans(parse_spans(export_finished("model", finished, Anchor(WALL_NS, 0))).spans)


def polled(series: EnergySeries, rng: np.random.Generator) -> EnergySeries:
    """Poll the counter as the sampler polls an H200's.

    A read takes 4 ms, one in 100 takes 50 ms more; the interval is a fifth of the period at first, then VERNIER of it.
    """
    track, samples, at_ns = CounterTrack(series.domain), [], int(series.t_ns[0])
    while at_ns < series.t_ns[-1]:
        took_ns = (4 + 50 * (rng.random() < 0.01)) * NS_PER_MS
        row = int(np.searchsorted(series.t_ns, at_ns + took_ns // 2, side="right")) - 1
        if sample := track.observe(at_ns, at_ns + took_ns, int(series.mj[row])):
            capped_ns = None if series.capped_ns is None else int(series.capped_ns[row])
            samples.append(msgspec.structs.replace(sample, capped_ns=capped_ns))
        step_ns = round(PERIOD_NS * (VERNIER if track.regular else 0.2))
        at_ns += max(took_ns, step_ns) + int(rng.exponential(200_000))
    [polled_series] = series_by_domain(samples).values()
    return replace(polled_series, limit_w=series.limit_w)


def engine_samples_of(run: SimulatedRun, period_ns: int = 500 * NS_PER_MS) -> list[EngineSample]:
    """Return the engine's counters as polled every half second."""
    samples: list[EngineSample] = []
    next_ns = 0
    for sample in run.engine:
        if sample["t_ns"] >= next_ns:
            samples.append(sample)
            next_ns = int(sample["t_ns"]) + period_ns
    return samples


def score(case: Case, scenario: Scenario, method: str) -> dict[str, Any]:
    """Return one method's errors: median, p90, p99, and the sum of all accounts / the counter."""
    start = min(record.sent_ns or 0 for record in case.records)
    end = max(record.finished_ns or 0 for record in case.records)
    series = list(series_by_domain(case.run.counter, case.domains).values())
    engine = engine_samples_of(case.run) if scenario.engine else []
    shared = steps_beside_others(case.records, engine, spans(case) if scenario.spans else (), RUN_ID)
    if scenario.polled:
        series = [
            align_phase(align_to_counter_clock(polled(domain_series, np.random.default_rng(0))), shared.steps)
            for domain_series in series
        ]
    result = attribute_energy(
        series, case.records, start, end, method=method, shared=shared, sums=_sums(case), reusable=case.reusable
    )
    attributed = np.array([share.joules for share in result.requests])
    truth = np.array([case.run.requests[i].prefill_j + case.run.requests[i].decode_j for i in case.own])
    error = np.abs(attributed - truth) / truth
    median, p90, p99 = np.percentile(error, [50, 90, 99]).tolist()
    accounts = result.idle_mj + result.unattributed_mj + round(float(attributed.sum()) * 1000)
    return {
        "median": median, "p90": p90, "p99": p99, "sum_over_total": accounts / result.measured_mj,
        "attributed_over_true": float(attributed.sum() / truth.sum()),
        "rejected_over_true": _rejected(result, case),
        **_intervals(result, truth),
        "sums": _sum_errors(result, case),
        **(_of_sessions(result, case) if case.reusable is not None else {}),
    }  # fmt: skip


def _of_sessions(result: RunAttribution, case: Case) -> dict[str, Any]:
    """Return the errors of the joules of sessions, median and largest, and what the cache saved by the law, J."""
    joules = np.array([share.joules for share in result.requests])
    truth = np.array([request.prefill_j + request.decode_j for request in case.run.requests])
    sessions = [rows for name, rows in _sums(case).items() if name != "all"]
    errors = [abs(joules[rows].sum() / truth[rows].sum() - 1) for rows in sessions]
    sums = {
        name: float(sum(getattr(share, f"{name}_joules") or 0.0 for share in result.requests))
        for name in ("saved", "recomputed")
    }
    whole = result.sums.get("all")
    cache_se = {name: getattr(whole, f"{name}_se_joules", None) for name in sums}
    return {
        "session_median": float(np.median(errors)), "session_max": float(max(errors)),
        "cache": sums, "cache_se": cache_se,
    }  # fmt: skip


def cache_truth(scenario: Scenario, case: Case, seconds: float, seed: int) -> dict[str, float | None]:
    """Return the joules that prefills of the same sessions cost more without the cache, and those that they cost less
    with one in which everything stays: what it saved, and what was computed again."""
    if scenario.agents is None:
        return {"saved": None, "recomputed": None}
    prefill_j = sum(request.prefill_j for request in case.run.requests)
    off, large = (
        simulated_agents(scenario, scenario.agents, engine, seconds, seed).run.requests
        for engine in (EngineOptions(), EngineOptions(prefix_caching=True, kv_cache_tokens=10_000_000))
    )
    return {
        "saved": sum(request.prefill_j for request in off) - prefill_j if scenario.options.prefix_caching else None,
        "recomputed": prefill_j - sum(request.prefill_j for request in large),
    }


def _sums(case: Case) -> dict[str, np.ndarray]:
    """Return the rows of the records of each workload, and of all."""
    workloads = np.array([record.workload for record in case.records])
    return {"all": np.arange(len(workloads))} | {name: np.flatnonzero(workloads == name) for name in set(workloads)}


def _sum_errors(result: RunAttribution, case: Case) -> list[dict[str, Any]]:
    """Return, for each workload, the error of the joules of all of its requests and of their prefills and decodes, and
    the half width of its interval, over the true joules; for all requests only that of prefills and of decodes."""
    joules = np.array([(share.prefill_joules or 0.0, share.decode_joules or 0.0) for share in result.requests])
    true = np.array([(case.run.requests[i].prefill_j, case.run.requests[i].decode_j) for i in case.own])
    found = []
    for name, rows in _sums(case).items():
        if name not in result.sums or (name != "all" and len(rows) == len(case.records)):
            continue
        error = result.sums[name]
        prefill, decode = np.abs(joules[rows].sum(axis=0) - true[rows].sum(axis=0))
        off = abs(joules[rows].sum() - true[rows].sum())
        whole = [] if name == "all" else [("total", off, error.attributed_se_joules, true[rows].sum())]
        parts = [
            ("prefill", prefill, error.prefill_se_joules, true[rows, 0].sum()),
            ("decode", decode, error.decode_se_joules, true[rows, 1].sum()),
        ]
        found += [
            {"of": f"{name}, {part}", "error": float(off / joules), "half_width": float(Z * se / joules)}
            for part, off, se, joules in whole + parts
            if joules > 0
        ]
    return found


def _rejected(result: RunAttribution, case: Case) -> float | None:
    """Return the estimated joules of rejected draft tokens over the true ones; None without an estimate."""
    if result.rejected_joules is None:
        return None
    return result.rejected_joules / sum(case.run.requests[i].rejected_j for i in case.own)


def _intervals(result: RunAttribution, truth: np.ndarray) -> dict[str, float | None]:
    """Return the share of requests whose true joules lie within Z standard errors, and the median of Z standard errors
    over the true joules; None without standard errors."""
    errors = [share.se_joules for share in result.requests if share.se_joules is not None]
    if len(errors) < len(truth):
        return {"covered": None, "half_width": None}
    half_width = Z * np.array(errors)
    attributed = np.array([share.joules for share in result.requests])
    return {
        "covered": float(np.mean(np.abs(attributed - truth) <= half_width)),
        "half_width": float(np.median(half_width / truth)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--markdown", action="store_true", help="print the tables of docs/concepts/attribution.md as well"
    )
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print(f"simulated, {options.seconds:.0f} s each, seed {options.seed}: error per request, median / p90 / p99")
    chosen = [scenario for scenario in scenarios() if options.only in scenario.name]
    with ProcessPoolExecutor() as pool:
        for of_scenario in pool.map(partial(rows_of, seconds=options.seconds, seed=options.seed), chosen):
            rows += of_scenario
            print(f"\n{of_scenario[0]['scenario']}  ({of_scenario[0]['requests']} requests)")
            print("\n".join("  " + _line(row["method"], row) for row in of_scenario), flush=True)
    sums = [of for row in rows for of in row["sums"]]
    held = sum(of["error"] <= of["half_width"] for of in sums)
    error, half_width = (100 * float(np.median([of[name] for of in sums])) for name in ("error", "half_width"))
    print(
        f"\n95 % intervals hold {held} of {len(sums)} sums; median error {error:.2f} %, half width {half_width:.2f} %"
    )
    if options.markdown:
        print(
            "\n".join(
                ["", *table_of_loads(rows, CLIENT_ONLY), "", *table_of_strangers(rows), "", *table_of_agents(rows)]
            )
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def rows_of(scenario: Scenario, seconds: float, seed: int) -> list[dict[str, Any]]:
    """Return the scores of all methods in a scenario."""
    case = simulated(scenario, seconds, seed)
    about = {"scenario": scenario.name, "requests": len(case.records)}
    if scenario.agents is not None:
        about["cache_truth"] = cache_truth(scenario, case, seconds, seed)
    return [about | {"method": method} | score(case, scenario, method) for method in METHODS]


def _line(method: str, errors: dict[str, Any]) -> str:
    shares = " / ".join(f"{100 * (errors[name] or 0):6.1f}" for name in ("median", "p90", "p99"))
    covered = ""
    if errors["covered"] is not None and errors["half_width"] is not None:
        covered = f"  95 % interval: holds {errors['covered']:.1%}, ± {errors['half_width']:.1%}"
    sums = f"sum/total {errors['sum_over_total']:.6f}  attributed/true {errors['attributed_over_true']:.3f}"
    rejected = errors["rejected_over_true"]
    drafts = "" if rejected is None else f"  rejected/true {rejected:.2f}"
    sessions = ""
    if "cache" in errors:
        median, largest = 100 * errors["session_median"], 100 * errors["session_max"]
        true = ", ".join(f"{name} {errors['cache'][name]:.0f} J of {of}" for name, of in _true_joules(errors).items())
        sessions = f"  sessions {median:.2f} / {largest:.2f} %" + (f"  {true}" if method == "shapley" else "")
    return f"{method:14} {shares} %   {sums}{covered}{drafts}{sessions}"


def _true_joules(errors: dict[str, Any]) -> dict[str, str]:
    return {name: "-" if joules is None else f"{joules:.0f} J" for name, joules in errors["cache_truth"].items()}


if __name__ == "__main__":
    main()
