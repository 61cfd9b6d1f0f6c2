"""The run as each of several engines saw it: its domains, its counters, and the requests that it served. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import msgspec
import numpy as np

from loadgen.attribution.likely_engine import engine_probabilities
from loadgen.energy.named_engine import domains_of
from loadgen.telemetry.engine_sample import PROMPT_COUNTERS

if TYPE_CHECKING:
    from loadgen.energy.named_engine import NamedEngine
    from loadgen.record import RequestRecord
    from loadgen.results.run_folder import RunResult
    from loadgen.stats.arrays import Floats
    from loadgen.telemetry.engine_span import EngineSpan

NamedBy: TypeAlias = Literal["header", "span", "only engine", "counters"]
"""Evidence for the engine of a request: a response header, the engine's span, that no other engine can have served it,
or what the engines counted meanwhile."""


LIKELY = 0.505
"""Probability above which a request is taken to have been served by an engine. At a half, the counters tell nothing."""


class EnginePart(NamedTuple):
    """One engine's part of a run. In `result`, requests that it did not serve are as if they had not been sent, and
    those that it may have served have no tokens."""

    engine: NamedEngine
    result: RunResult
    probability: Floats
    """float64[n]: that it served each request, by row; 0 for those that it is not taken to have served."""
    named_by: Mapping[str, int]
    """Requests that it served by the evidence."""


class _Choice(NamedTuple):
    """Number of each request's engine among some, with its probability and the evidence; None: not known."""

    engine: list[int | None]
    probability: Floats
    named_by: list[NamedBy | None]


def engine_parts(result: RunResult) -> list[EnginePart]:
    """Return each engine's part of a run with several.

    A request is served by one engine; or by one that computes its prompt, until the end of that engine's span or else
    until the first token, and from then on by one that generates. The latter has its prompt's keys and values, all but
    the last token's.
    """
    engines, records = result.info.engines, result.records
    spans: defaultdict[int, dict[str, EngineSpan]] = defaultdict(dict)
    for span in result.spans:
        name, _, index = span.id.rpartition("-")
        if span.engine is not None and name == result.info.run_id and index.isdecimal():
            spans[int(index)][span.engine] = span
    serving = [engine for engine in engines if engine.role != "prefill"]
    prefilling = [engine for engine in engines if engine.role == "prefill"]
    last = _choose(result, serving, records, spans)
    split = [number is not None and serving[number].role == "decode" for number in last.engine]
    ends_ns = [
        _prefill_end(record, spans[record.index], prefilling, result.info.anchor.offset_ns) if is_split else None
        for record, is_split in zip(records, split, strict=True)
    ]
    pairs = list(zip(records, ends_ns, strict=True))
    prompts = [_unserved(record) if end_ns is None else _prompt_part(record, end_ns) for record, end_ns in pairs]
    answers = [record if end_ns is None else _answer_part(record, end_ns) for record, end_ns in pairs]
    first = _choose(result, prefilling, prompts, spans)
    unplaced = [number is None for number in last.engine]
    without_prompt = [
        number is None and (is_split or is_unplaced)
        for number, is_split, is_unplaced in zip(first.engine, split, unplaced, strict=True)
    ]
    parts = [_part(result, engine, k, answers, last, unplaced) for k, engine in enumerate(serving)]
    parts += [_part(result, engine, k, prompts, first, without_prompt) for k, engine in enumerate(prefilling)]
    order = {engine.name: k for k, engine in enumerate(engines)}
    return sorted(parts, key=lambda part: order[part.engine.name])


def _choose(
    result: RunResult,
    engines: Sequence[NamedEngine],
    records: Sequence[RequestRecord],
    spans: Mapping[int, Mapping[str, EngineSpan]],
) -> _Choice:
    """Choose the engine of each request that was sent, of these engines."""
    number = {engine.name: k for k, engine in enumerate(engines)}
    known: list[int | None] = [None] * len(records)
    evidence: list[NamedBy | None] = [None] * len(records)
    for row, record in enumerate(records):
        by_header = [number[name] for name in record.engines or () if name in number]
        by_span = [number[name] for name in spans.get(record.index, ()) if name in number]
        if record.sent_ns is None:
            continue
        if len(by_header) == 1:
            known[row], evidence[row] = by_header[0], "header"
        elif len(by_span) == 1:
            known[row], evidence[row] = by_span[0], "span"
        elif len(engines) == 1 and record.engines != []:  # none of these: an engine that --engine does not name
            known[row], evidence[row] = 0, "only engine"
    probability = np.array([0.0 if engine is None else 1.0 for engine in known])
    open_rows = [row for row, record in enumerate(records) if known[row] is None and record.sent_ns is not None]
    if len(engines) > 1 and open_rows:
        samples = [own_samples(result, engine) for engine in engines]
        likely = engine_probabilities(records, samples, known)
        for row in open_rows:
            best = int(likely[row].argmax())
            if likely[row, best] > LIKELY:
                known[row], probability[row], evidence[row] = best, likely[row, best], "counters"
    return _Choice(known, probability, evidence)


def own_samples(result: RunResult, engine: NamedEngine) -> list[dict[str, Any]]:
    """Return the samples of one engine's counters.

    An engine that only generates gets its prompts computed: it counts them, and computes none of their tokens.
    """
    left_out = PROMPT_COUNTERS if engine.role == "decode" else ()
    samples = result.engines.get(engine.name, [])
    return [{name: value for name, value in sample.items() if name not in left_out} for sample in samples]


def _part(
    result: RunResult,
    engine: NamedEngine,
    number: int,
    records: Sequence[RequestRecord],
    choice: _Choice,
    unplaced: Sequence[bool],
) -> EnginePart:
    """Return the part of the engine with this number among those that were chosen from. unplaced: requests whose engine
    is not known. They may have been in flight at this one, so that it was not idle."""
    own = np.array([chosen == number for chosen in choice.engine], dtype=np.bool_)
    seen = [
        record if is_own else _in_flight(whole) if is_unplaced else _unserved(record)
        for record, whole, is_own, is_unplaced in zip(records, result.records, own.tolist(), unplaced, strict=True)
    ]
    evidence = [by for by, is_own in zip(choice.named_by, own.tolist(), strict=True) if is_own and by is not None]
    part = replace(
        result,
        info=msgspec.structs.replace(result.info, engines=[], domains=domains_of(engine, result.info.domains)),
        records=seen,
        engine=own_samples(result, engine),
        engines={},
        spans=[span for span in result.spans if span.engine == engine.name],
    )
    return EnginePart(engine, part, np.where(own, choice.probability, 0.0), Counter(evidence))


def _prefill_end(
    record: RequestRecord, spans: Mapping[str, EngineSpan], prefilling: Sequence[NamedEngine], ahead_ns: int
) -> int | None:
    """Return when the engine that computes prompts had computed the request's: the end of its span, or else the first
    token, which came a little later. None for a request that was not sent, or has no token."""
    if record.sent_ns is None or record.first_token_ns is None:
        return None
    span = next((spans[engine.name] for engine in prefilling if engine.name in spans), None)
    end_ns = record.first_token_ns if span is None else span.end_ns - ahead_ns
    return min(max(end_ns, record.sent_ns), record.first_token_ns)


def _prompt_part(record: RequestRecord, end_ns: int) -> RequestRecord:
    """Return what the engine that computes prompts saw of a request: its prompt, and one token. What was cached at the
    other engine says nothing of this one's cache."""
    return msgspec.structs.replace(
        record, first_token_ns=end_ns, last_token_ns=end_ns, finished_ns=end_ns, chunk_ns=[end_ns], kinds=None,
        output_tokens=1, cached_tokens=None, hidden_tokens=None, reasoning_tokens=None, error=None, detail=None,
    )  # fmt: skip


def _answer_part(record: RequestRecord, end_ns: int) -> RequestRecord:
    """Return what the engine that generates saw of a request: all but the computing of its prompt."""
    cached = None if record.input_tokens is None else max(record.input_tokens - 1, 0)
    return msgspec.structs.replace(record, sent_ns=end_ns, cached_tokens=cached)


def _in_flight(record: RequestRecord) -> RequestRecord:
    """Return what is known of a request at an engine that may have served it: when it was in flight."""
    return msgspec.structs.replace(_unserved(record), sent_ns=record.sent_ns, finished_ns=record.finished_ns)


def _unserved(record: RequestRecord) -> RequestRecord:
    return msgspec.structs.replace(
        record, sent_ns=None, first_token_ns=None, last_token_ns=None, finished_ns=None, chunk_ns=[], kinds=None,
        input_tokens=None, output_tokens=None, cached_tokens=None, hidden_tokens=None, reasoning_tokens=None,
        error="not_sent",
    )  # fmt: skip
