"""Tables of docs/results/several-engines.md: a prefill by the counter on one GPU and on two, and two engines on one."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.paper.added_load import with_error
from benchmarks.paper.ingest import FOLDER
from benchmarks.paper.words import percent, sig, table
from loadgen.stats.arrays import Floats

DATA = FOLDER / "several-engines.json"
LOADS = {"load4-1": "3.3/s", "load14-1": "11.0/s", "load14-2": "12.1/s"}
"""Loads of two GPUs, by their arrivals per second."""
TITLES = {
    "duo-x": "two engines, x alone",
    "duo-y": "two engines, y alone",
    "duo-both": "two engines, both",
    "one-single": "one at a time",
    "one-single1": "one at a time, prompts alone",
    "one-load4": "3.4/s",
    "one-load4p": "3.4/s, prompts alone",
    "pd-single": "one at a time, two GPUs",
    **{f"pd-{load}": f"{rate}, two GPUs" for load, rate in LOADS.items()},
    **{f"rep-{load}": f"{rate}, replicas" for load, rate in LOADS.items()},
}


def runs() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(DATA.read_text())
    return read


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
                TITLES[name], engines.replace("+", " and "), str(sum(engine["requests"] for engine in own)),
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


def by_length(run: dict[str, Any], values: Floats) -> dict[float, Floats]:
    """Return the known values of a run's requests by their prompt length, the shortest first."""
    lengths = floats(run["columns"]["input_tokens"])
    return {float(length): values[(lengths == length) & ~np.isnan(values)] for length in np.unique(lengths)}


def prefills_of(run: dict[str, Any]) -> Floats:
    """Return the prefill joules by the law of each request but those that warm up."""
    values = floats(run["columns"]["prefill_j"])
    values[:WARM] = np.nan
    return values


def prefill_by_length() -> str:
    return lengths_table("one-single1", "a")


def split_by_length() -> str:
    return lengths_table("pd-single", "p")


def lengths_table(prompts: str, engine: str) -> str:
    """Return a row for each prompt length: the joules of a prefill by the counter of a GPU that computes prompts alone,
    by the law of that run, and by the law of an engine that serves the same requests whole."""
    alone, served = of_same_prompts(prompts, "one-single")
    counter = alone["by_counter"][engine]
    above, whole = (by_length(alone, used(alone, engine, whole=whole)) for whole in (False, True))
    at_rest = (
        one_at_a_time(alone, engine, value)
        for value in (lambda burst: burst["seconds"] - burst["busy_s"], lambda burst: burst["rest_w"])
    )
    resting_s, rest_w = (by_length(alone, values) for values in at_rest)
    laws = {"its own law": by_length(alone, prefills_of(alone)), "law of a": by_length(served, prefills_of(served))}
    body = []
    for length in above:
        idle_j = (counter["idle_se_w"] or 0.0) * mean_of(resting_s[length])
        cells = [mean_with_error(values[length], idle_j) for values in (above, whole)]
        for law in laws.values():
            off = mean_of(law[length]) / mean_of(whole[length]) - 1
            cells += [mean_with_error(law[length]), percent(known(off), True)]
        last = sig(known(mean_of(rest_w[length])), 4)
        body.append([f"{length:,.0f}", str(len(whole[length])), *cells, last])
    sums = [sum(mean_of(of_each[length]) for length in above) for of_each in (above, whole, *laws.values())]
    cells = [cell for law in sums[2:] for cell in (sig(known(law), 4), percent(known(law / sums[1] - 1), True))]
    rest_w_of_all = sig(counter["idle_w"], 4)
    body.append(["sum of means", "", *(sig(known(value), 4) for value in sums[:2]), *cells, rest_w_of_all])
    head = ["prompt tokens", "requests", "counter, above rest, J", "with rest meanwhile, J"]
    head += [cell for name in laws for cell in (f"{name}, J", "off by")]
    return table([*head, "W at rest after it"], body)


def split_errors() -> str:
    """Return by how much the prefills by two laws are off the counter of a GPU that computes prompts alone, request by
    request: by the law of that run, and of the engine that serves the same requests whole."""
    body = []
    for prompts, engine in (("one-single1", "a"), ("pd-single", "p")):
        alone, served = of_same_prompts(prompts, "one-single")
        counter = used(alone, engine, whole=True)
        for name, law in (("its own law", prefills_of(alone)), ("law of a", prefills_of(served)[: len(counter)])):
            off = (law / counter - 1)[~np.isnan(counter)]
            errors = (float(np.median(off)), float(off[np.abs(off).argmax()]))
            middle, worst = (percent(error, True) for error in errors)
            cells = [middle, percent(float(np.median(np.abs(off)))), worst]
            body.append([f"{TITLES[prompts]}: {engine}", name, str(len(off)), *cells])
    return table(["counter of", "law", "requests", "median", "median without sign", "worst"], body)


def split_by_burst() -> str:
    """Return the joules of bursts of prompts by the counter of a GPU that computes prompts alone, and by the laws of
    that run and of replicas that serve the same requests whole."""
    body = []
    for load, rate in LOADS.items():
        split, served = of_same_prompts(f"pd-{load}", f"rep-{load}")
        counter = split["by_counter"]["p"]
        cells = bursts_by_laws(counter["bursts"], counter["idle_w"], (split, served))
        body.append([rate, *cells])
    return table(["load", *bursts_head("law of p", "law of replicas")], body)


def bursts_by_laws(bursts: Sequence[dict[str, Any]], idle_w: float, runs: Sequence[dict[str, Any]]) -> list[str]:
    """Return in words how many bursts there are, their prompts, their joules by a counter, and their prefills by
    the law of each of these runs."""
    above, measured = (
        np.array([above_rest(burst, idle_w, whole=whole) for burst in bursts]) for whole in (False, True)
    )
    cells = [str(len(bursts)), str(sum(len(burst["rows"]) for burst in bursts))]
    cells += [f"{values.sum():,.0f}" for values in (above, measured)]
    for run in runs:
        law = floats(run["columns"]["prefill_j"])
        booked = np.array([law[burst["rows"]].sum() for burst in bursts])
        low, median, high = (f"{value:.2f}" for value in np.percentile(booked / measured, [25, 50, 75]))
        cells += [f"{booked.sum():,.0f}", percent(float(booked.sum() / measured.sum()) - 1, True)]
        cells += [f"{median} [{low}, {high}]"]
    return cells


def bursts_head(*laws: str) -> list[str]:
    head = ["bursts", "prompts", "counter, above rest, J", "with rest meanwhile, J"]
    return head + [cell for law in laws for cell in (f"{law}, J", "off by", "ratio of a burst: median [quartiles]")]


SIZES = {"1": (1, 1), "2 to 4": (2, 4), "5 and more": (5, 10**9)}


def prefill_by_burst() -> str:
    """Return the joules of bursts of prompts under load by the counter of a GPU that computes prompts alone, by the law
    of that run, and by the law of an engine that serves the same requests whole."""
    alone, served = of_same_prompts("one-load4p", "one-load4")
    counter = alone["by_counter"]["a"]
    body = []
    for size, (least, most) in (SIZES | {"all": (1, 10**9)}).items():
        bursts = [burst for burst in counter["bursts"] if least <= len(burst["rows"]) <= most]
        body.append([size, *bursts_by_laws(bursts, counter["idle_w"], (alone, served))])
    return table(["prompts in a burst", *bursts_head("its own law", "served whole")], body)


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
    """Return a row for each prompt length: the joules of a request above rest by the counters, of its prompt and as a
    whole, on two GPUs and on one."""
    split, whole = of_same_prompts("pd-single", "one-single")
    _, prompts = of_same_prompts("pd-single", "one-single1")
    measured = ((split, "p"), (prompts, "a"), (split, "d"), (whole, "a"))
    columns = [by_length(run, used(run, engine, whole=False)) for run, engine in measured]
    body = []
    for length in columns[0]:
        values = [column[length] for column in columns]
        body.append([f"{length:,.0f}", *compared(list(map(mean_of, values)), list(map(mean_with_error, values)))])
    sums = [sum(mean_of(values) for values in column.values()) for column in columns]
    body.append(["sum of means", *compared(sums, [sig(known(value), 4) for value in sums])])
    head = ["prompt tokens", "p, J", "the prompt alone on one GPU, J", "difference", "d, J", "p and d, J"]
    return table([*head, "the whole request on one GPU, J", "difference"], body)


def compared(joules: Sequence[float], cells: Sequence[str]) -> list[str]:
    """Return the joules of p, of a prompt alone, of d and of a whole request in words, and how two GPUs differ from
    one."""
    p, alone, d, whole = joules
    first, last = (percent(known(change), True) for change in (p / alone - 1, (p + d) / whole - 1))
    return [cells[0], cells[1], first, cells[2], sig(known(p + d)), cells[3], last]


def of_same_prompts(first: str, second: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return two runs, the first of which had the first prompts of the second. ValueError if it had not."""
    both = runs()[first], runs()[second]
    prompts, further = (run["columns"]["input_tokens"] for run in both)
    if prompts != further[: len(prompts)]:
        raise ValueError(f"{first} and {second} had different prompts")
    return both


def one_law() -> str:
    """Return how one law over both engines books what each GPU used, beside the law of each."""
    split = runs()["pd-single"]
    body = []
    for engine, booked in split["one_law"].items():
        gpu = split["gpus"][engine]
        for name, account in (("its own", gpu), ("one for both", booked)):
            parts = [account[f"{part}_mj"] for part in ("prefill", "decode", "idle", "unattributed")]
            body.append([f"{engine} ({split['engines'][engine]['role']})", name, *(f"{mj / 1e3:,.0f}" for mj in parts)])
    return table(["GPU of", "law", "prefill, J", "decode, J", "idle, J", "unattributed, J"], body)


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
    "split-by-length": split_by_length,
    "split-errors": split_errors,
    "split-by-burst": split_by_burst,
    "request-by-length": request_by_length,
    "one-law": one_law,
    "two-on-one": two_on_one,
}
