"""Were the answers those requested: their lengths, their coming token by token, and the counts of their tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadgen.results.metrics import MIN_GAP_NS, came_in_one_piece, prompts_are_counted
from loadgen.results.verdict import Check
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    from loadgen.results.run_folder import RunResult
    from loadgen.results.summary import LengthCheck, Summary

_MAX_OUTPUT_OFF, _MAX_INPUT_OFF = 0.01, 0.05
"""Share by which the tokens of all answers, and those of all prompts, may differ from the requested ones. Prompts are
made to a length that is estimated where the server does not count their tokens beforehand."""
_MAX_SHARE = 0.01
"""Share of the answers that may have another length without a remark."""
_MAX_PIECES, _MIN_PIECES = 0.05, 3
"""Share of the answers that may come in one piece, and the smallest number that is a remark: a client that the machine
halts for a moment reads a short answer at once."""
_MAX_CHUNKS_A_TOKEN = 1.25
"""Chunks of an answer that may come for one token: the name of a tool and its arguments are two."""
_CLUMPED_TPOT_S = 0.001
"""Time per token from which on chunks that come together were held back."""


def check_lengths(result: RunResult, summary: Summary) -> Check:
    """Return whether prompts and answers had the requested lengths, by the server's own count.

    The length of an answer that ends where the model ends it was not requested, and is no fault.
    """
    counted = summary.lengths
    if counted is None:
        return Check(name="lengths", status=None)
    reasons, rows = [], []
    planned, made = counted.output_asked or 0, counted.output_counted or 0  # 0: no length was requested
    answers_off = counted.shorter + counted.longer > _MAX_SHARE * counted.count
    if answers_off and abs(made - planned) > _MAX_OUTPUT_OFF * planned:
        reasons.append(_answers_off(counted))
        rows += ["tokens.output", "tokens.output_per_s", "e2e_s", "response_s"]
    asked, tokens = counted.input_asked, counted.input_counted
    is_known = prompts_are_counted(result.schedule, result.records)
    if is_known and asked and tokens and abs(tokens / asked - 1) > _MAX_INPUT_OFF:
        reasons.append(f"the prompts had {tokens:,} of {asked:,} requested tokens by the server's count")
        rows += ["tokens.input", "tokens.input_per_s", "ttft_s"]
    if not reasons:
        return Check(name="lengths", status="ok")
    return Check(name="lengths", status="warning", reason="; ".join(reasons), rows=rows)


def _answers_off(counted: LengthCheck) -> str:
    parts = [f"the answers had {counted.output_counted:,} of {counted.output_asked:,} requested tokens"]
    if counted.shorter:
        ends = f", of which {counted.stopped:,} were ended by the model" if counted.stopped else ""
        parts.append(f"{counted.shorter:,} of {counted.count:,} were shorter than requested{ends}")
    if counted.longer:
        parts.append(f"{counted.longer:,} of {counted.count:,} were longer")
    if counted.not_honoured:
        parts.append(f"the server accepts {' and '.join(counted.not_honoured)} without honouring them")
    return ": ".join([parts[0], ", ".join(parts[1:])]) if parts[1:] else parts[0]


def check_streaming(result: RunResult, summary: Summary) -> Check:
    """Return whether the answers came token by token."""
    answers = [record for record in result.records if record.ok and record.chunk_ns]
    if not answers:
        return Check(name="streaming", status=None)
    pieces = sum(came_in_one_piece(record) for record in answers)
    if pieces == len(answers) or (pieces >= _MIN_PIECES and pieces > _MAX_PIECES * len(answers)):
        reason = (
            f"{pieces:,} of {len(answers):,} answers came in one piece: a proxy or the server held their tokens back, "
            "and TTFT, TPOT and ITL leave these answers out"
        )
        return Check(name="streaming", status="warning", reason=reason, rows=["ttft_s", "tpot_s", "itl_s"])
    gap_s, itl, tpot = MIN_GAP_NS / NS_PER_S, summary.itl_s, summary.tpot_s
    if itl.p50 is not None and itl.p50 < gap_s and tpot.p50 is not None and tpot.p50 >= _CLUMPED_TPOT_S:
        share = "nine tenths" if itl.p90 is not None and itl.p90 < gap_s else "half"
        reason = (
            f"more than {share} of the chunks came within {gap_s * 1000:g} ms of the one before, at "
            f"{tpot.p50 * 1000:.3g} ms a token: a proxy or the server sends tokens together, and ITL is the "
            "time between such groups"
        )
        return Check(name="streaming", status="warning", reason=reason, rows=["ttft_s", "itl_s"])
    return Check(name="streaming", status="ok")


def check_token_counts(result: RunResult, _: Summary) -> Check:
    """Return whether the server counts the tokens of prompts and answers, all of which were sent."""
    answers = [record for record in result.records if record.ok and record.token_source]
    if not answers:
        return Check(name="token_counts", status=None)
    reasons, rows = [], []
    uncounted = sum(record.token_source == "chunks" for record in answers)
    if uncounted:
        reasons.append(
            f"the server sent no usage for {uncounted:,} of {len(answers):,} answers: their chunks were counted, and a "
            "chunk can hold several tokens"
        )
        rows += ["tokens.output", "tokens.output_per_s", "tpot_s", "energy.joules_per_output_token"]
    undercounted = sum(
        record.token_source == "usage" and len(record.chunk_ns) > _MAX_CHUNKS_A_TOKEN * (record.output_tokens or 0)
        for record in answers
    )
    if undercounted:
        reasons.append(
            f"{undercounted:,} of {len(answers):,} answers came in more chunks than the server counts tokens: its "
            "count is too low, or a proxy cuts tokens into pieces"
        )
        rows += ["tokens.output", "tokens.output_per_s", "tpot_s", "itl_s", "energy.joules_per_output_token"]
    hidden = [record.hidden_tokens for record in answers if record.hidden_tokens]
    if hidden:
        reasons.append(
            f"{len(hidden):,} of {len(answers):,} answers have hidden reasoning, {sum(hidden):,} tokens that were "
            "counted and not sent: TTFT contains their time, TPOT is that of the visible tokens"
        )
        rows += ["tokens.output", "ttft_s"]
    if not prompts_are_counted(result.schedule, result.records):
        reasons.append("the server does not count the tokens of the prompts, or counts the same for each length")
        rows += ["tokens.input", "energy.joules_per_token"]
    if not reasons:
        return Check(name="token_counts", status="ok")
    return Check(name="token_counts", status="warning", reason="; ".join(reasons), rows=list(dict.fromkeys(rows)))
