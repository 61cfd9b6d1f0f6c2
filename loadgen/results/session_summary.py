"""The sessions of a run together: their cost, their time, their goodput, and what a turn costs by its depth. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from loadgen.results.metrics import distribution, sum_known, with_counted_prompts
from loadgen.results.session_accounts import (
    Account,
    SessionAccount,
    account_of,
    depth_rows,
    session_accounts,
    session_rows,
)
from loadgen.results.summary import DepthCost, Distribution, SessionSummary
from loadgen.units import j_from_mj

if TYPE_CHECKING:
    from loadgen.attribution.shapley import RequestEnergy
    from loadgen.record import RequestRecord
    from loadgen.results.run_folder import RunResult


def account_sessions(result: RunResult, start_ns: int) -> tuple[list[SessionAccount], SessionSummary | None]:
    """Return the account of each session of an attributed run, and their summary; None where no session has several
    requests. start_ns: the run's first scheduled instant."""
    accounts = session_accounts(result, start_ns)
    return accounts, _summarize(result, accounts) if accounts else None


def _summarize(result: RunResult, accounts: Sequence[SessionAccount]) -> SessionSummary:
    sessions, shares = session_rows(result.schedule), result.shares
    records = with_counted_prompts(result.schedule, result.records)
    inside = [records[row] for session in sessions for row in session.rows]
    indices = {record.index for record in inside}
    other_mj = sum(share.known_mj for index, share in shares.items() if index not in indices)
    errors = result.attribution.sums.get("sessions") if result.attribution else None
    whole = account_of(inside, shares, errors, result.info.config, 0)
    tasks = [task for account in accounts for task in account.tasks]
    verdicts = [account.within_limits for account in accounts if account.within_limits is not None]
    return SessionSummary(
        sessions=len(accounts),
        completed=sum(is_completed(account) for account in accounts),
        tasks=len(tasks),
        requests=whole.requests,
        session_requests=distribution(account.requests for account in accounts),
        time_to_last_answer_s=distribution(account.duration_s for account in accounts if is_completed(account)),
        model_s=sum_known(account.model_s for account in accounts),
        tool_s=sum_known(account.tool_s for account in accounts),
        waiting_s=sum_known(account.waiting_s for account in accounts),
        input_tokens=whole.input_tokens,
        cached_tokens=whole.cached_tokens,
        output_tokens=whole.output_tokens,
        cached_share=whole.cached_share,
        good=sum(verdicts) if verdicts else None,
        goodput=sum(verdicts) / len(verdicts) if verdicts else None,
        joules=whole.joules,
        other_joules=j_from_mj(other_mj) if shares else None,
        joules_per_session=_joules_per(accounts) if shares else None,
        joules_per_task=_joules_per(tasks) if shares else None,
        joules_per_turn=_joules_per_turn(inside, shares) if shares else None,
        cache=whole.cache,
        by_depth=[
            _depth_cost(result, first, [records[row] for row in rows]) for first, rows in depth_rows(sessions).items()
        ],
    )


def is_completed(account: Account) -> bool:
    """Return whether every request completed."""
    return account.completed == account.requests


def _joules_per(accounts: Sequence[Account]) -> Distribution:
    """Return the joules of completed ones: a session that broke off is not a cheap one."""
    return distribution(account.joules for account in accounts if is_completed(account))


def _joules_per_turn(records: Sequence[RequestRecord], shares: Mapping[int, RequestEnergy]) -> Distribution:
    return distribution(shares[record.index].joules for record in records if record.ok and record.index in shares)


def _depth_cost(result: RunResult, first_turn: int, records: Sequence[RequestRecord]) -> DepthCost:
    attribution, shares = result.attribution, result.shares
    errors = attribution.sums.get(f"turns from {first_turn}") if attribution else None
    part = account_of(records, shares, errors, result.info.config, 0)
    return DepthCost(
        first_turn=first_turn,
        last_turn=2 * first_turn - 1,
        requests=part.requests,
        sent=part.sent,
        completed=part.completed,
        input_tokens=part.input_tokens,
        cached_share=part.cached_share,
        output_tokens=part.output_tokens,
        joules=part.joules,
        se_joules=part.se_joules,
        prefill_joules=part.prefill_joules,
        decode_joules=part.decode_joules,
        joules_per_turn=_joules_per_turn(records, shares) if shares else None,
        cache=part.cache,
    )
