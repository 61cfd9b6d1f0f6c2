"""Tables of docs/results/several-engines.md: prefill and decode on two GPUs, replicas, and two engines on one GPU."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.paper.added_load import with_error
from benchmarks.paper.ingest import FOLDER
from benchmarks.paper.words import percent, percents, sig, table
from loadgen.stats.arrays import Floats
from loadgen.stats.intervals import paired_reduction

DATA = FOLDER / "several-engines.json"
LOADS = (4, 10)
SEEDS = (1, 2)
ARRANGEMENTS = {"pd": "disaggregated", "rep": "two replicas"}

ONE = {
    "single": "one at a time",
    "single1": "one at a time, prompts alone",
    "load4": "3.4/s",
    "load4p": "3.4/s, prompts alone",
}


def runs() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(DATA.read_text())
    return read


def title(name: str) -> str:
    """Return a run's name in words, such as "disaggregated, 4/s, seed 1"."""
    kind, _, load = name.partition("-")
    if kind == "duo":
        return f"two engines, {'both' if load == 'both' else f'{load} alone'}"
    if kind == "one":
        return ONE[load]
    if load == "single":
        return f"{ARRANGEMENTS[kind]}, one at a time"
    rate, _, seed = load.removeprefix("load").partition("-")
    return f"{ARRANGEMENTS[kind]}, {rate}/s, seed {seed}"


def joules(mj: float) -> str:
    return f"{mj / 1e3:,.3f}"


def floats(values: Sequence[float | None]) -> Floats:
    """Return a column, NaN where a value is not known."""
    return np.array(values, dtype=np.float64)


# -- accounts --------------------------------------------------------------------------------------------------------


def accounts() -> str:
    """Return the account of the GPU of each engine, or of the engines that share one, in each run."""
    body = []
    for name, run in runs().items():
        for engines, gpu in run["gpus"].items():
            own = [run["engines"][engine] for engine in engines.split("+")]
            parts = [gpu[f"{part}_mj"] for part in ("idle", "prefill", "decode", "unattributed")]
            held_out = [engine["held_out_r_squared"] for engine in own]
            body.append([
                title(name), engines.replace("+", " and "), str(sum(engine["requests"] for engine in own)),
                joules(gpu["counter_mj"]), *map(joules, parts), str(gpu["counter_mj"] - sum(parts)),
                sig(gpu["idle_w"]), ", ".join(dict.fromkeys("-" if r is None else f"{r:.2f}" for r in held_out)),
            ])  # fmt: skip
    head = ["run", "GPU of", "requests", "counter, J", "idle, J", "prefill, J", "decode, J", "unattributed, J"]
    return table([*head, "off by, mJ", "W at rest", "R² of windows held out"], body)


# -- a prefill, by the counter of a GPU that does nothing else -------------------------------------------------------

WARM = 1
"""The first request of a run warms the engine up, and is left out where requests are compared one at a time."""


def above_rest(burst: dict[str, Any], idle_w: float, *, whole: bool) -> float:
    """Return what a burst used above the power at rest, by the counter; `whole` with the power at rest while a request
    was there, as attribution counts it."""
    seconds = burst["seconds"] - (burst["busy_s"] if whole else 0.0)
    return float(burst["joules"] - idle_w * seconds)


def one_at_a_time(run: dict[str, Any], engine: str, value: Callable[[dict[str, Any]], float | None]) -> Floats:
    """Return a value of each request's burst, NaN where the engine did not have the request alone."""
    values: list[float | None] = [None] * len(run["columns"]["input_tokens"])
    for burst in run["by_counter"][engine]["bursts"]:
        if len(burst["rows"]) == 1 and burst["rows"][0] >= WARM:
            values[burst["rows"][0]] = value(burst)
    return floats(values)


def used(run: dict[str, Any], engine: str, *, whole: bool) -> Floats:
    """Return what an engine's GPU used for each request, by its counter; NaN where it was not measured."""
    idle_w = run["by_counter"][engine]["idle_w"]
    return one_at_a_time(run, engine, lambda burst: above_rest(burst, idle_w, whole=whole))


def error_of_mean(values: Floats, idle_j: float = 0.0) -> float:
    """Return the standard error of a mean, by the repeats, with that of the power at rest; NaN for one value."""
    return float(np.hypot(values.std(ddof=1) / np.sqrt(len(values)), idle_j)) if len(values) > 1 else float("nan")


def mean_of(values: Floats) -> float:
    """Return the mean, NaN of no values."""
    return float(values.mean()) if len(values) else float("nan")


def known(value: float) -> float | None:
    return None if np.isnan(value) else value


def mean_with_error(values: Floats, idle_j: float = 0.0) -> str:
    if not len(values):
        return "-"
    error = error_of_mean(values, idle_j)
    return sig(float(values.mean())) + ("" if np.isnan(error) else f" ± {sig(error, 2)}")


def at_engine(run: dict[str, Any], engine: str, values: Floats) -> Floats:
    """Return a column with NaN for requests that another engine answered."""
    return np.where([name == engine for name in run["columns"]["engine"]], values, np.nan)


def by_length(lengths: Floats, values: Floats) -> list[Floats]:
    """Return the known values of the requests of each prompt length, the shortest first."""
    return [values[(lengths == length) & ~np.isnan(values)] for length in np.unique(lengths)]


def prefill_by_length() -> str:
    return lengths_table("one-single1", "a", "one-single")


def split_by_length() -> str:
    return lengths_table("pd-single", "p", "rep-single")


def lengths_table(prompts: str, engine: str, served: str) -> str:
    """Return a row for each prompt length: the joules of a prefill by the counter of a GPU that computes prompts alone,
    by the law of that run, and by the law of each engine that serves the same requests whole."""
    alone, whole_run = of_same_prompts(prompts, served)
    counter, lengths = alone["by_counter"][engine], floats(alone["columns"]["input_tokens"])
    above, whole = (by_length(lengths, used(alone, engine, whole=whole)) for whole in (False, True))
    at_rest = (
        one_at_a_time(alone, engine, value)
        for value in (lambda burst: burst["seconds"] - burst["busy_s"], lambda burst: burst["rest_w"])
    )
    resting_s, rest_w = (by_length(lengths, values) for values in at_rest)
    laws = {"its own law": by_length(lengths, prefills_of(alone))}
    laws |= {f"law of {name}": by_length(lengths, prefills_of(whole_run, name)) for name in whole_run["engines"]}
    body = []
    for row, length in enumerate(np.unique(lengths)):
        idle_j = (counter["idle_se_w"] or 0.0) * mean_of(resting_s[row])
        cells = [mean_with_error(values[row], idle_j) for values in (above, whole)]
        for law in laws.values():
            off = mean_of(law[row]) / mean_of(whole[row]) - 1
            cells += [mean_with_error(law[row]), percent(known(off), True)]
        body.append([f"{length:,.0f}", str(len(whole[row])), *cells, sig(known(mean_of(rest_w[row])), 4)])
    sums = [sum(map(mean_of, of_each)) for of_each in (above, whole, *laws.values())]
    cells = [cell for law in sums[2:] for cell in (sig(known(law), 4), percent(known(law / sums[1] - 1), True))]
    rest_w_of_all = sig(counter["idle_w"], 4)
    body.append(["sum of means", "", *(sig(known(value), 4) for value in sums[:2]), *cells, rest_w_of_all])
    head = ["prompt tokens", "requests", "counter, above rest, J", "with rest meanwhile, J"]
    head += [cell for name in laws for cell in (f"{name}, J", "off by")]
    return table([*head, "W at rest after it"], body)


def prefills_of(run: dict[str, Any], engine: str | None = None) -> Floats:
    """Return the prefill joules by the law of each request but those that warm up; of one engine, if it is named."""
    values = floats(run["columns"]["prefill_j"])
    values[:WARM] = np.nan
    return values if engine is None else at_engine(run, engine, values)


SIZES = {"1": (1, 1), "2 to 4": (2, 4), "5 and more": (5, 10**9)}


def prefill_by_burst() -> str:
    """Return the joules of bursts of prompts under load by the counter of a GPU that computes prompts alone, by the law
    of that run, and by the law of an engine that serves the same requests whole."""
    alone, served = of_same_prompts("one-load4p", "one-load4")
    counter = alone["by_counter"]["a"]
    at_alone, at_served = (floats(run["columns"]["prefill_j"]) for run in (alone, served))
    body = []
    for size, (least, most) in (SIZES | {"all": (1, 10**9)}).items():
        bursts = [burst for burst in counter["bursts"] if least <= len(burst["rows"]) <= most]
        above, measured = (
            np.array([above_rest(burst, counter["idle_w"], whole=whole) for burst in bursts]) for whole in (False, True)
        )
        cells = []
        for law in (at_alone, at_served):
            booked = np.array([law[burst["rows"]].sum() for burst in bursts])
            low, median, high = (f"{value:.2f}" for value in np.percentile(booked / measured, [25, 50, 75]))
            cells += [f"{booked.sum():,.0f}", percent(float(booked.sum() / measured.sum()) - 1, True)]
            cells += [f"{median} [{low}, {high}]"]
        requests = sum(len(burst["rows"]) for burst in bursts)
        counted = [f"{values.sum():,.0f}" for values in (above, measured)]
        body.append([size, str(len(bursts)), str(requests), *counted, *cells])
    head = ["prompts in a burst", "bursts", "prompts", "counter, above rest, J", "with rest meanwhile, J"]
    for name in ("its own law", "served whole"):
        head += [f"{name}, J", "off by", "ratio: median [quartiles]"]
    return table(head, body)


LENGTHS = {"up to 500": (0, 500), "to 2,000": (500, 2000), "more": (2000, 10**9)}


def prefill_by_prompt() -> str:
    """Return for prompts under load, by their length, the prefills by the law of the run of prompts alone and by that
    of the run of whole requests."""
    alone, served = of_same_prompts("one-load4p", "one-load4")
    tokens = floats(alone["columns"]["input_tokens"])
    body = []
    for name, (above, most) in (LENGTHS | {"all": (0, 10**9)}).items():
        rows = (tokens > above) & (tokens <= most)
        both = [floats(run["columns"]["prefill_j"])[rows] for run in (alone, served)]
        low, median, high = (f"{value:.2f}" for value in np.percentile(both[1] / both[0], [25, 50, 75]))
        sums = [float(values.sum()) for values in both]
        body.append([
            name, str(int(rows.sum())), f"{tokens[rows].sum():,.0f}", *(f"{value:,.0f}" for value in sums),
            percent(sums[1] / sums[0] - 1, True), f"{median} [{low}, {high}]",
        ])  # fmt: skip
    for words, field in (("standard error of all", "prefill_se_j"), ("left to others in their steps", "company_j")):
        body.append([words, "", "", *(f"{run['engines']['a'][field]:,.0f}" for run in (alone, served)), "", ""])
    head = ["prompt tokens", "requests", "tokens", "prompts alone, J", "served whole, J", "difference"]
    return table([*head, "ratio of a request: median [quartiles]"], body)


def request_by_length() -> str:
    """Return a row for each prompt length: the joules of a whole request above rest by the counters, on two GPUs and on
    one."""
    split, replicas = of_same_prompts("pd-single", "rep-single")
    lengths = floats(split["columns"]["input_tokens"])
    by_engine = {
        name: by_length(lengths, used(run, name, whole=False))
        for run in (split, replicas)
        for name in run["by_counter"]
    }
    body = []
    for row, length in enumerate(np.unique(lengths)):
        p, d, a, b = (mean_of(values[row]) for values in by_engine.values())
        cells = [mean_with_error(values[row]) for values in by_engine.values()]
        change = (p + d) / ((a + b) / 2) - 1
        body.append([f"{length:,.0f}", *cells, sig(known(p + d)), percent(known(change), True)])
    head = ["prompt tokens", *(f"{name}, J" for name in by_engine), "p and d, J", "against the mean of a and b"]
    return table(head, body)


def prefill_under_load() -> str:
    """Return a row for each load and seed: what the GPU of prompts used for prefills, and what the laws of replicas
    book as prefill for the same requests."""
    body = []
    for load, seed, split, replicas in pairs():
        at_p, on_one = (floats(run["columns"]["prefill_j"]) for run in (split, replicas))
        ratio = (on_one / np.where(at_p > 0, at_p, np.nan))[~np.isnan(on_one) & (at_p > 0)]
        quartiles = [f"{value:.2f}" for value in np.percentile(ratio, [25, 50, 75])]
        claimed_se_j = float(np.hypot.reduce([engine["prefill_se_j"] for engine in replicas["engines"].values()]))
        computed = [computed_tokens(split, ["p"]), computed_tokens(replicas, list(replicas["engines"]))]
        by_kind = [kind_ratio(split, replicas, kind) for kind in ("chat", "code")]
        body.append([
            f"{load}/s", str(seed), str(len(ratio)), *("-" if n is None else f"{n:,}" for n in computed),
            f"{np.nansum(at_p):,.0f}", with_error(float(np.nansum(on_one)), claimed_se_j),
            percent(float(np.nansum(on_one) / np.nansum(at_p)) - 1, True),
            f"{quartiles[1]} [{quartiles[0]}, {quartiles[2]}]", *by_kind,
        ])  # fmt: skip
    head = ["load", "seed", "requests", "prompt tokens computed at p", "at the replicas", "p used, J"]
    head += ["replicas book as prefill, J", "difference", "ratio of a request: median [quartiles]"]
    return table([*head, "ratio of sums, chat", "code"], body)


def kind_ratio(split: dict[str, Any], replicas: dict[str, Any], kind: str) -> str:
    rows = [workload == kind for workload in split["columns"]["workload"]]
    sums = [float(np.nansum(floats(run["columns"]["prefill_j"])[rows])) for run in (split, replicas)]
    return f"{sums[1] / sums[0]:.2f}" if sums[0] else "-"


def computed_tokens(run: dict[str, Any], engines: Sequence[str]) -> int | None:
    """Return the prompt tokens that these engines computed, by their counters; None where they do not count them."""
    counters = [run["engines"][name]["counters"] for name in engines]
    if any(counted["prompt_tokens"] is None or counted["cached_tokens"] is None for counted in counters):
        return None
    return sum(counted["prompt_tokens"] - counted["cached_tokens"] for counted in counters)


def pairs() -> list[tuple[int, int, dict[str, Any], dict[str, Any]]]:
    """Return load, seed, and both runs of the same prompts, for every load and seed that has both."""
    names = [(load, seed, f"pd-load{load}-{seed}", f"rep-load{load}-{seed}") for load in LOADS for seed in SEEDS]
    measured = runs().keys()
    return [(load, seed, *of_same_prompts(pd, rep)) for load, seed, pd, rep in names if {pd, rep} <= measured]


def of_same_prompts(first: str, second: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return two runs of the same prompts. ValueError if they are not."""
    both = runs()[first], runs()[second]
    if both[0]["columns"]["input_tokens"] != both[1]["columns"]["input_tokens"]:
        raise ValueError(f"{first} and {second} had different prompts")
    return both


# -- disaggregated against replicas ----------------------------------------------------------------------------------


def total_j(run: dict[str, Any]) -> float:
    return float(sum(gpu["counter_mj"] for gpu in run["gpus"].values())) / 1e3


def totals() -> str:
    """Return the energy and the latency of the same requests, disaggregated and on two replicas."""
    body = []
    for load, seed, *both in pairs():
        for words, run in zip(ARRANGEMENTS.values(), both, strict=True):
            total = total_j(run)
            rest_j = sum(gpu["idle_w"] * gpu["seconds"] for gpu in run["gpus"].values() if gpu["idle_w"])
            idle_j = sum(gpu["idle_mj"] for gpu in run["gpus"].values()) / 1e3
            ttft, tpot = (run["latency_ms"][name] for name in ("ttft", "tpot"))
            body.append([
                f"{load}/s", str(seed), words, f"{run['completed']} of {run['requests']}", f"{run['duration_s']:.1f}",
                f"{total:,.0f}", f"{total / run['duration_s']:,.0f}", sig(total / run["tokens"]["output"]),
                *(percent(part / total) for part in (idle_j, rest_j)), *map(sig, (*ttft, *tpot)),
            ])  # fmt: skip
    head = ["load", "seed", "arrangement", "requests", "s", "J of both GPUs", "mean W", "J per output token"]
    head += ["in idle time", "power at rest, all the time"]
    return table([*head, *(f"{name} {p}, ms" for name in ("TTFT", "TPOT") for p in ("p50", "p95"))], body)


def differences() -> str:
    """Return by how much disaggregation changes the energy and the latency, over the seeds of each load."""
    body = []
    for load in dict.fromkeys(load for load, *_ in pairs()):
        both = [(split, replicas) for rate, _, split, replicas in pairs() if rate == load]
        split_j, replicas_j = ([total_j(run) for run in of_kind] for of_kind in zip(*both, strict=True))
        changes = [[total_j(split) / total_j(replicas) - 1 for split, replicas in both]]
        changes += [
            [split["latency_ms"][name][0] / replicas["latency_ms"][name][0] - 1 for split, replicas in both]
            for name in ("ttft", "tpot")
        ]
        energy, *latencies = [", ".join(percent(value, True) for value in values) for values in changes]
        body.append([f"{load}/s", energy, percents(paired_reduction(replicas_j, split_j), -1), *latencies])
    head = ["load", "energy, by seed", "energy, mean [95 %]", "TTFT p50, by seed", "TPOT p50, by seed"]
    return table(head, body)


def one_law() -> str:
    """Return how one law over both engines books what each GPU used, beside the law of each."""
    body = []
    for name, run in runs().items():
        for engine, booked in run["one_law"].items():
            gpu = run["gpus"][engine]
            own_mj = gpu["prefill_mj"] + gpu["decode_mj"]
            phase = run["engines"][engine]["role"]
            parts = [booked[f"{part}_mj"] for part in ("prefill", "decode", "idle", "unattributed")]
            right = booked[f"{phase}_mj"] / own_mj - 1 if own_mj else None
            cells = [f"{part / 1e3:,.0f}" for part in parts]
            body.append([title(name), f"{engine} ({phase})", f"{own_mj / 1e3:,.0f}", *cells, percent(right, True)])
    head = ["run", "GPU of", "used, by its own law, J", "booked as prefill, J", "as decode, J", "as idle, J"]
    return table([*head, "unattributed, J", "its phase is off by"], body)


# -- two engines on one GPU ------------------------------------------------------------------------------------------


def two_on_one() -> str:
    """Return for each of two engines on one GPU what it used by the counter, alone and beside the other one, and by the
    joint law."""
    read = runs()
    busy_j = {name: busy(run) for name, run in read.items() if name.startswith("duo-")}
    body = []
    for name, other in (("x", "y"), ("y", "x")):
        by_itself, beside = read[f"duo-{name}"]["engines"][name], read["duo-both"]["engines"][name]
        steps = [engine["counters"]["iterations"] for engine in (by_itself, beside)]
        alone, added = busy_j[f"duo-{name}"], busy_j["duo-both"] - busy_j[f"duo-{other}"]
        per_step = (by_itself["prefill_mj"] + by_itself["decode_mj"] * steps[1] / steps[0]) / 1e3
        references = [(alone + added) / 2, per_step]
        law = (beside["prefill_mj"] + beside["decode_mj"]) / 1e3
        values = [f"{value:,.0f}" for value in (alone, added, *references)]
        off = [percent(law / reference - 1, True) for reference in references]
        counts = [f"{count:,}" for count in (beside["requests"], *steps)]
        body.append([name, *counts, *values, with_error(law, beside["attributed_se_j"]), *off])
    head = ["engine", "requests", "steps alone", "steps beside the other", "alone, J", "added to the other, J"]
    head += ["mean of the two, J", "alone for as many steps, J", "joint law, J"]
    return table([*head, "off the mean by", "off as many steps by"], body)


def busy(run: dict[str, Any]) -> float:
    """Return the joules of a run outside of idle time, by the counter."""
    return float(sum(gpu["counter_mj"] - gpu["idle_mj"] for gpu in run["gpus"].values())) / 1e3


TABLES: dict[str, Callable[[], str]] = {
    "engine-accounts": accounts,
    "prefill-by-length": prefill_by_length,
    "prefill-by-burst": prefill_by_burst,
    "prefill-by-prompt": prefill_by_prompt,
    "two-on-one": two_on_one,
}
TABLES_OF_TWO_GPUS: dict[str, Callable[[], str]] = {
    "split-by-length": split_by_length,
    "request-by-length": request_by_length,
    "prefill-under-load": prefill_under_load,
    "disaggregated-totals": totals,
    "disaggregated-differences": differences,
    "one-law": one_law,
}
