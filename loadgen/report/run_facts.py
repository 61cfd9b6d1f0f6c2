"""The facts about a run in words, for every view: the views only lay them out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import msgspec

from loadgen.errors import LoadgenError
from loadgen.record import ErrorKind, Kind, RequestRecord
from loadgen.report.format import UNKNOWN, clean, count, joules, number, percent, seconds, share, watts, with_unit
from loadgen.report.latencies import ABBREVIATIONS, LATENCIES, LIMITED
from loadgen.results.metrics import PERCENTILES
from loadgen.results.summary import (
    ArrivalCheck,
    Distribution,
    EnergySummary,
    Goodput,
    Latency,
    NaturalEndings,
    RequestCounts,
    ServerLoad,
    Summary,
    WorkloadSummary,
)
from loadgen.results.timekeeping import MAX_LATE_P99_S
from loadgen.results.verdict import LAW_ROWS, Status

if TYPE_CHECKING:
    from loadgen.results.run_folder import RunInfo, RunResult

_GOOD_R_SQUARED, _LARGE_MISFIT = 0.9, 0.2

DEFINITIONS = {
    "TTFT": "from the instant a request was sent to its first token",
    "TTFA": "from the instant a request was sent to the first token of its answer, after the reasoning",
    "TPOT": "mean time of each output token after the first",
    "ITL": "gap between two chunks of an answer",
    "E2E": "from the instant a request was sent to the end of its answer",
    "Response": "from the instant a request was due to the end of its answer: E2E and the client's own delay",
}
"""Latency -> its meaning."""

INFINITE = "∞"
"""A percentile that falls on a failed request."""

RunPart = tuple[str, Summary | WorkloadSummary]
"""A name ("all", or a workload) and its numbers."""

ERROR_MEANING: dict[str, str] = {
    "connect": "refused, or dead before an answer began",
    "timeout": "no complete answer within --timeout",
    "http": "a status of 400 or more",
    "protocol": "an answer that is not the API",
    "truncated": "the answer began and did not end",
    "server": "an error event inside the stream",
    "cancelled": "in flight when the run was aborted or killed",
    "not_sent": "the run ended before its turn, or its session broke off",
}
assert set(ERROR_MEANING) == set(get_args(ErrorKind))


def summary_of(result: RunResult) -> Summary:
    """Return the summary. LoadgenError when the run was not analysed."""
    if result.summary is None:
        raise LoadgenError(f"run {result.info.run_id} has no summary: it was read but not analysed")
    return result.summary


def is_simulated(info: RunInfo) -> bool:
    return bool(info.server.get("simulated"))


def title(info: RunInfo, summary: Summary) -> str:
    """Return a title such as "chat.jsonl at 4 requests/s"."""
    trace = info.config.get("trace")
    name = clean(PurePath(str(trace)).name) if trace else "run"
    rate = summary.rate.requested_rps
    return name if rate is None else f"{name} at {rate:.4g} requests/s"


def server_line(info: RunInfo) -> str:
    """Return model, engine and address, those that are known."""
    server = info.server
    parts = [clean(server[key]) for key in ("model", "engine", "base_url") if server.get(key)]
    if server.get("proxy"):
        parts.append(f"through the proxy {clean(server['proxy'])}")
    if len(server.get("addresses") or ()) > 1:
        parts.append(f"{len(server['addresses'])} addresses")
    return " · ".join(parts) or "unknown server"


def ending(summary: Summary) -> str:
    """Return what ended the run; of one whose client was killed, that nothing did."""
    return summary.stopped_by or "did not end by itself"


HEADLINES: dict[Status | None, str] = {
    "ok": "OK",
    "warning": "OK, with warnings",
    "failed": "FAILED",
    None: "NOT JUDGED",
}
BOXES: dict[Status | None, str] = {"ok": "good", "warning": "fair", "failed": "bad", None: "fair"}
"""Kind of the box on a page that has the verdict."""
SIMULATED = "The server was simulated: joules and times are a model's, not a machine's."


class Remark(NamedTuple):
    """A check that has something to say; a status of None is a note."""

    status: Status | None
    text: str


def verdict_remarks(summary: Summary) -> list[Remark]:
    """Return the reasons of the verdict, the worst first. Empty when every check is ok."""
    order: tuple[Status | None, ...] = ("failed", "warning", "ok", None)
    checks = sorted((check for check in summary.verdict.checks if check.reason), key=lambda c: order.index(c.status))
    return [Remark(check.status, f"{check.name.replace('_', ' ')}: {clean(check.reason)}") for check in checks]


MARKS: dict[Status | None, str] = {"failed": " !!", "warning": " !", "ok": "", None: ""}
MARKS_LEGEND = "! a warning of the verdict touches this; !! a failed check does"


def mark(summary: Summary, row: str) -> str:
    """Return the mark of a row of summary.json, such as "ttft_s": empty when no check touches it."""
    touching = [
        check.status
        for check in summary.verdict.checks
        if any(row == touched or row.startswith(f"{touched}.") for touched in check.rows)
    ]
    return MARKS["failed" if "failed" in touching else "warning" if "warning" in touching else None]


def energy_note(summary: Summary) -> str | None:
    """Return one line on energy that is missing or not valid; None when it is valid. The verdict has the reasons."""
    energy = summary.energy
    if energy.measured_joules is not None:
        if summary.verdict.check("energy").status == "failed" or not (energy.valid or energy.totals_valid):
            return "ENERGY NOT VALID: see the verdict"
        return None if energy.valid else "ENERGY OF REQUESTS NOT VALID: see the verdict; totals are"
    return f"Energy was not measured: {clean('; '.join(energy.reasons))}"


def power_words(energy: EnergySummary) -> str:
    """Return the mean and the idle power, and how long the power limit held, if it did."""
    held = f", at the power limit {percent(energy.at_limit_share)} of the time" if energy.at_limit_share else ""
    return f"mean {watts(energy.mean_watts)}, idle {watts(energy.idle_watts)}{held}"


def speculation_note(summary: Summary) -> str | None:
    """Return speculative decoding in a sentence or two; None without it."""
    drafting = summary.speculation
    if drafting is None:
        return None
    text = (
        f"Draft model: {count(drafting.drafts)} drafts of {number(drafting.draft_tokens / drafting.drafts)} tokens, "
        f"{percent(drafting.acceptance)} of them accepted, {number(drafting.tokens_per_step)} tokens a step and stream."
    )
    if drafting.rejected_joules is None:
        return f"{text} What the rejected tokens used is not known."
    return (
        f"{text} The rejected tokens used about {joules(drafting.rejected_joules)} ± "
        f"{joules(drafting.rejected_se_joules)}, {percent(drafting.rejected_share)} of the attributed energy."
    )


def fit_warning(coefficients: dict[str, float | None]) -> str | None:
    """Return what a poor fit means for the joules of requests; None for a good one, or where its quality is unknown."""
    r_squared, misfit = coefficients.get("r_squared"), coefficients.get("misfit")
    signs = []
    if r_squared is not None and r_squared < _GOOD_R_SQUARED:
        signs.append(f"it explains {percent(max(r_squared, 0.0))} of the windows' variation")
    if misfit is not None and misfit > _LARGE_MISFIT:
        signs.append(f"one window is typically off by {percent(misfit)}")
    if not signs:
        return None
    return (
        f"The fit is poor: {', and '.join(signs)}. The joules of single requests, and how they divide into prefill and "
        "decode, are uncertain, as their standard errors show; means over many requests and totals are less so."
    )


def cache_note(energy: EnergySummary | WorkloadSummary) -> str | None:
    """Return what the prefix cache saved, and what was computed again, in a sentence; None where neither is known, or
    both are 0."""
    cache, spent = energy.cache, energy.attributed_joules
    if cache is None or not (cache.saved_joules or cache.recomputed_joules):
        return None
    parts = []
    if (saved := cache.saved_joules) is not None:
        part = f", {share(saved, saved + spent)} of what the requests would have cost without it" if spent else ""
        parts.append(f"by the fitted law the prefix cache saved {with_error(saved, cache.saved_se_joules)}{part}")
    if cache.recomputed_joules:
        again = with_error(cache.recomputed_joules, cache.recomputed_se_joules)
        parts.append(f"{again} were used for tokens that had been computed before")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def with_error(value: float | None, error: float | None) -> str:
    """Return joules with their standard error, such as "2.10 J ± 0.0300 J"; without it where it is unknown."""
    return joules(value) if error is None else f"{joules(value)} ± {joules(error)}"


def invalid_by(summary: Summary, row: str) -> str | None:
    """Return the name of the check by which a row of summary.json supports no claim; None when it supports one."""
    failed = (check for check in summary.verdict.checks if check.status == "failed")
    names = [check.name for check in failed if any(row == of or row.startswith(f"{of}.") for of in check.rows)]
    energy = summary.energy
    measured = row.split(".")[0] == "energy" and energy.measured_joules is not None
    if measured and not energy.valid and (not energy.totals_valid or row in LAW_ROWS):
        names.append("energy")
    return names[0].replace("_", " ") if names else None


def is_invalid(runs: Iterable[RunResult], row: str) -> bool:
    """Return whether a row of summary.json supports no claim in one of the runs, nor then does a difference of them."""
    return any(invalid_by(summary_of(run), row) is not None for run in runs)


def error_of(value: float | None, energy: EnergySummary) -> str:
    """Return how far joules may be off, such as "± 1.21 mJ": those of a part have the relative error of the attributed
    total. Empty where that is not known."""
    total, error = energy.attributed_joules, energy.attributed_se_joules
    if value is None or not total or error is None:
        return ""
    return f"± {joules(value * error / total)}: standard error of the measurement"


class LimitLine(NamedTuple):
    """One latency limit of a goodput, and whether p50 and p99 are within it; None where they are not known."""

    text: str
    is_met: bool | None


def limit_lines(summary: Summary, field: str) -> list[LimitLine]:
    """Return the limits on a latency of Summary: the run's, or those of the workloads where they differ.

    Failed requests count as infinitely late.
    """
    good = summary.goodput
    parts: list[RunPart] = [("", summary)]
    if good is not None and not good.slo_ms:
        parts = [(f"{clean(name)}: ", part) for name, part in sorted(summary.by_workload.items())]
    return [
        _limit_line(f"{name}limit {seconds(limit_ms / 1000)}", getattr(part, field), limit_ms, share_met)
        for name, part in parts
        if part.goodput
        for metric, limit_ms in part.goodput.slo_ms.items()
        if LIMITED.get(metric) == field
        for share_met in [share(part.goodput.met.get(metric), part.requests.scheduled)]
    ]


def _limit_line(text: str, spread: Latency, limit_ms: float, share_met: str) -> LimitLine:
    if not spread.count:
        return LimitLine(f"{text}: not known", None)
    reached = (spread.p50_with_failures, spread.p99_with_failures) if spread.left_out else (spread.p50, spread.p99)
    p50, p99 = (value is not None and value * 1000 <= limit_ms for value in reached)
    why = ", failed requests counted" if spread.left_out and not p99 else ""
    within = f"; {share_met} within" if share_met != UNKNOWN else ""
    return LimitLine(f"{text}: {'met' if p99 else f'p50 met, p99 missed{why}' if p50 else f'missed{why}'}{within}", p99)


def limits_text(slo_ms: dict[str, float]) -> str:
    """Return the limits of a goodput, such as "TTFT ≤ 200 ms, TPOT ≤ 50.0 ms"."""
    limits = (
        f"{ABBREVIATIONS.get(LIMITED.get(metric, ''), clean(metric))} ≤ {seconds(limit / 1000)}"
        for metric, limit in slo_ms.items()
    )
    return ", ".join(limits) or "their stream's limits"


def failed_kinds(requests: RequestCounts) -> str:
    """Return the number of failed requests of each kind, the most frequent first."""
    kinds = sorted(requests.by_error.items(), key=lambda kind: (-kind[1], kind[0]))
    return ", ".join(f"{number:,} {clean(kind).replace('_', ' ')}" for kind, number in kinds if number)


class Fact(NamedTuple):
    """One line about the load; `workload` is empty where it concerns the whole run."""

    label: str
    text: str
    workload: str = ""


def engine_facts(info: RunInfo) -> list[Fact]:
    """Return whether the engine's own counters were read; nothing in the folder of an older or an unended run."""
    page = info.server.get("metrics")
    if not isinstance(page, dict):
        return []
    if page.get("understood"):
        text = f"its own counters were read from {clean(page.get('path'))}, which has the names of "
        return [Fact("engine", text + clean(page.get("names_of")))]
    why = page.get("reason") or ("it has counted nothing yet" if page.get("answered") else "no answer")
    return [Fact("engine", f"its own counters were not read: {clean(why)}")]


def span_facts(info: RunInfo) -> list[Fact]:
    """Return how many requests the sidecar does not know of; nothing when it took all spans, or none was sent."""
    spans = info.instrument.get("spans") or {}
    if not (lost := spans.get("lost")):
        return []
    why = f" ({clean(spans['last_error'])})" if spans.get("last_error") else ""
    return [Fact("spans", f"{lost:,} of {lost + spans['sent']:,} did not reach the sidecar{why}")]


def load_facts(summary: Summary) -> list[Fact]:
    """Return the facts about load and timekeeping, in the order of reading."""
    rate, lag, lengths = summary.rate, summary.schedule_lag_s, summary.lengths
    requested = with_unit(rate.requested_rps, "/s")
    streams = [
        Fact("arrivals", _arrivals(part.arrivals), clean(name))
        for name, part in sorted(summary.by_workload.items())
        if part.arrivals
    ]
    dispersion = f"{number(rate.index_of_dispersion)} in 1 s windows (1 Poisson, 0 constant)"
    facts = [
        *_goodput_facts(summary),
        Fact("rate", f"{with_unit(rate.achieved_rps, '/s')} sent, {requested} requested{_served(summary.server)}"),
        *([Fact("dispersion", dispersion)] if rate.index_of_dispersion is not None else []),
        *(streams or ([Fact("arrivals", _arrivals(summary.arrivals))] if summary.arrivals else [])),
        Fact("schedule lag", f"p50 {seconds(lag.p50)}, p99 {seconds(lag.p99)}, max {seconds(lag.max)}"),
        Fact("client", timekeeping(summary)),
    ]
    if lengths is not None:
        facts.append(Fact("input length", _length(lengths.input_asked, lengths.input_counted, lengths.input_max_off)))
        if lengths.output_asked is not None or (summary.endings is None and summary.tokens.output is not None):
            planned = (lengths.output_asked, lengths.output_counted, lengths.output_max_off)
            facts.append(Fact("output length", _length(*planned)))
    if summary.endings is not None:
        facts.append(Fact("endings", _endings(summary.endings)))
    tokens = summary.tokens
    media = (
        ("input audio", tokens.input_audio), ("input images", tokens.input_image), ("output audio", tokens.output_audio)
    )  # fmt: skip
    if counted := [f"{label} {amount:,}" for label, amount in media if amount]:
        facts.append(Fact("media tokens", f"{', '.join(counted)} by the server's count"))
    if unseen := summary.tokens.output_without_chunk:
        facts.append(
            Fact(
                "output chunks",
                f"{unseen:,} of {count(summary.tokens.output)} output tokens came without a chunk of their own",
            )
        )
    return facts


def _served(server: ServerLoad | None) -> str:
    """Return the rate that was served beside the one that was sent, and the queues that formed."""
    if server is None:
        return ""
    engine = server.engine_waiting_max
    queue = "" if engine is None else f", {engine:,.0f} in the engine's queue"
    drain = "" if server.drain_s is None else f"; drained in {seconds(server.drain_s)}"
    return f", {with_unit(server.served_rps, '/s')} served; at most {server.waiting_max:,} waiting{queue}{drain}"


def _goodput_facts(summary: Summary) -> list[Fact]:
    """Return the goodput of the run, and of each workload where the workloads have limits of their own."""
    if summary.goodput is None:
        return []
    parts = [] if summary.goodput.slo_ms else sorted(summary.by_workload.items())
    own = [Fact("goodput", _goodput(part.goodput), clean(name)) for name, part in parts if part.goodput]
    return [Fact("goodput", _goodput(summary.goodput)), *own]


def _goodput(good: Goodput) -> str:
    return f"{with_unit(good.rps, '/s')}, {percent(good.ratio)} of requests within {limits_text(good.slo_ms)}"


def _length(requested: int | None, counted: int | None, max_off: int | None) -> str:
    if requested is None or counted is None:
        return "not counted by the server"
    difference = f"{counted - requested:+,} by the server's count"
    return f"{requested:,} tokens requested, {difference}; at most {count(max_off)} off in one request"


def _endings(endings: NaturalEndings) -> str:
    """Return what the lengths of the answers were, and what those of the recorded answers are."""
    tokens = endings.tokens
    parts = [
        f"{tokens.count:,} answers without a requested length: {tokens.count - endings.limited:,} ended by the model, "
        f"{endings.limited:,} by a limit",
        f"tokens p50 {number(tokens.p50)}, p90 {number(tokens.p90)}, max {number(tokens.max)}",
    ]
    if endings.recorded_tokens is not None:
        parts.append(
            f"{count(endings.counted_tokens)} tokens where the {endings.recorded:,} recorded answers have "
            f"{endings.recorded_tokens:,} ({endings.shorter:,} shorter, {endings.longer:,} longer)"
        )
    return "; ".join(parts)


def _arrivals(check: ArrivalCheck) -> str:
    sent, unit = check.sent, "sessions/s" if check.of == "sessions" else "/s"
    parts = [f"{with_unit(sent.rate, unit)} of {with_unit(check.asked_rps, unit)} requested"]
    if check.turns != 1 and check.asked_rps is not None:
        parts[0] += f" ({check.asked_rps * check.turns:.3g} requests/s in {check.turns:.3g} turns each)"
    if sent.dispersion is not None:
        parts.append(f"dispersion {number(sent.dispersion)}")
    if sent.gap_cv is not None:
        parts.append(f"CV {number(sent.gap_cv)}")
    if sent.ks is not None and sent.ks_critical is not None:
        parts.append(f"KS {sent.ks:.3f} ({'below' if sent.ks <= sent.ks_critical else 'above'} {sent.ks_critical:.3f})")
    law = {"trace": "the trace's own", None: "all streams'"}.get(check.process, check.process)
    return f"{clean(check.verdict)}: {law} {check.of}, {', '.join(parts)}"


def timekeeping(summary: Summary) -> str:
    """Return whether the client's timing is valid, and by which measure."""
    instrument = summary.instrument
    verdict = {True: "timing valid", False: "TIMING UNRELIABLE", None: "timing not verified"}[instrument.kept_time]
    parts = [f"{verdict} (limit: 1 % more than {seconds(MAX_LATE_P99_S)} late)"]
    if instrument.stamped_by is not None:
        stamps = {"kernel": "stamped by the kernel", "reading": "stamped as read"}
        parts.append(f"tokens {stamps[instrument.stamped_by]}")
    if (delay := instrument.loop_delay_s) is not None:
        parts.append(f"event loop late p50 {seconds(delay.p50)}, p99 {seconds(delay.p99)}")
    if instrument.waited_s is not None:
        parts.append(f"waited {seconds(instrument.waited_s)} for a core")
    return "; ".join(parts)


def parts_of(summary: Summary) -> list[RunPart]:
    """Return ("all", the run), then each workload by name when there are several, then each model, then each value of
    the tags that have several."""
    several = len(summary.by_workload) > 1
    workloads = sorted(summary.by_workload.items()) if several else []
    models = [(name.rsplit("/", 1)[-1], part) for name, part in sorted(summary.by_model.items())]
    return [("all", summary), *workloads, *models, *_parts_by_tag(summary)]


def _parts_by_tag(summary: Summary) -> list[RunPart]:
    names = Counter(label.partition("=")[0] for label in summary.by_tag)
    parts: list[RunPart] = []
    for label, part in sorted(summary.by_tag.items()):
        name, _, value = label.partition("=")
        if names[name] > 1:
            parts.append((label if value else f"no {name}", part))
    return parts


def with_short(words: str, short: str) -> str:
    """Return the name of a latency with its abbreviation, where the name does not hold it."""
    return words if short in words else f"{words} ({short})"


def part_heading(summary: Summary) -> str:
    """Return the heading of the column that names the parts of `parts_of`."""
    kinds = ["workload", *(["model"] if summary.by_model else []), *(["tag"] if _parts_by_tag(summary) else [])]
    return " or ".join(kinds)


def latencies_of(summary: Summary) -> list[tuple[str, str, str]]:
    """Return the rows of LATENCIES that say something of this run: without reasoning, the answer begins at once."""
    return [row for row in LATENCIES if row[0] != "ttfa_s" or "reasoning" in summary.output_kinds]


KIND_NAMES: dict[Kind, str] = {"reasoning": "reasoning", "answer": "answer", "tools": "tool calls"}


class KindRow(NamedTuple):
    """A row of the table of kinds of output."""

    kind: str
    part: str
    cells: list[str]
    """Requests, tokens, share of the part's output tokens, joules, and joules per token."""


def kind_rows(summary: Summary, parts: Sequence[RunPart]) -> list[KindRow]:
    """Return tokens and energy of each kind of output; nothing where all of it is answer text."""
    if set(summary.output_kinds) <= {"answer"}:
        return []
    rows = []
    for kind, label in KIND_NAMES.items():
        for name, part in parts:
            if (output := part.output_kinds.get(kind)) is not None:
                total = sum(other.tokens for other in part.output_kinds.values())
                shared = share(output.tokens, total)
                spent = [joules(output.joules), joules(output.joules_per_token)]
                rows.append(KindRow(label, name, [count(output.requests), count(output.tokens), shared, *spent]))
    return rows


class LatencyRow(NamedTuple):
    """A row of the table of latencies: `cells` are formatted values by name, such as "p99"."""

    label: str
    part: str
    counted: str
    """Number of values: "388 of 400" where failed requests have none."""
    cells: dict[str, str]


def latency_rows(summary: Summary, parts: Sequence[RunPart]) -> list[LatencyRow]:
    """Return the latencies of these parts of the run. Where requests failed, a second row of the
    whole run counts them as infinitely late."""
    rows = []
    for field, short, _ in latencies_of(summary):
        for name, part in parts:
            spread: Distribution = getattr(part, field)
            values: dict[str, Any] = msgspec.structs.asdict(spread)
            cells = {key: seconds(values[key]) for key in ("mean", *PERCENTILES, "max")}
            left_out = values.get("left_out", 0)
            counted = f"{spread.count:,} of {spread.count + left_out:,}" if left_out else count(spread.count)
            rows.append(LatencyRow(short + mark(summary, field), name, counted, cells))
            if left_out and part is summary:
                percentiles = {key: values[f"{key}_with_failures"] for key in PERCENTILES}
                cells = {key: INFINITE if value is None else seconds(value) for key, value in percentiles.items()}
                cells |= {"mean": INFINITE, "max": INFINITE}
                rows.append(LatencyRow(short + mark(summary, field), "+ failed", count(spread.count + left_out), cells))
    return rows


def left_out_note(summary: Summary) -> str | None:
    """Return how many requests the latencies leave out, in one line; None when it is none."""
    if not (left_out := summary.e2e_s.left_out):
        return None
    judged = left_out + summary.requests.completed
    return f"{left_out:,} of {judged:,} left out: failed. Rows + failed count them as infinitely late ({INFINITE})."


def request_cells(part: Summary | WorkloadSummary) -> list[str]:
    """Return the requests scheduled, sent, completed and failed."""
    counts = part.requests
    return [count(n) for n in (counts.scheduled, counts.sent, counts.completed, counts.failed)]


def energy_cells(energy: EnergySummary | WorkloadSummary) -> list[str]:
    """Return joules per request p50, p90 and p99, per output token and per token."""
    spread = energy.joules_per_request or Distribution(count=0)
    values = (spread.p50, spread.p90, spread.p99, energy.joules_per_output_token, energy.joules_per_token)
    return [joules(value) for value in values]


def host_cell(part: Summary | WorkloadSummary) -> str:
    """Return the part of the host's energy that is shared among these requests."""
    if not isinstance(part, Summary):
        return joules(part.host_joules)
    return joules(part.energy.host.attributed_joules if part.energy.host else None)


def failures(records: Iterable[RequestRecord]) -> list[tuple[str, int, RequestRecord]]:
    """Return (kind, count, an example, with a detail if any has one), the most frequent kind first."""
    kinds: dict[str, list[RequestRecord]] = {}
    for record in records:
        if record.error is not None:
            kinds.setdefault(record.error, []).append(record)
    rows = [(kind, len(failed), next((r for r in failed if r.detail), failed[0])) for kind, failed in kinds.items()]
    return sorted(rows, key=lambda row: (-row[1], row[0]))


def whole_answers(number: int) -> str:
    """Describe how the energy of answers without a stream was shared."""
    return f"{count(number)} answers came whole: each is one step, which ends with it, and shares energy by its tokens"
