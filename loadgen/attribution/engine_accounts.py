"""The accounts of several engines, each with a law and a conservation of its own, and their sum. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec
import numpy as np

from loadgen.attribution.shapley import RequestEnergy, RunAttribution, SumErrors
from loadgen.units import j_from_mj, mj_from_j

if TYPE_CHECKING:
    from loadgen.stats.arrays import Floats


class EngineShare(NamedTuple):
    """The attribution of one engine's energy, None if that is not known. Requests that it did not serve have no joules
    of it."""

    name: str
    role: Literal["prefill", "decode"] | None
    attribution: RunAttribution | None
    probability: Floats
    """float64[n]: that it served each request, by row; 0 for those that it is not taken to have served."""
    named_by: dict[str, int]
    """Requests that it served by the evidence."""
    gpu_group: int
    """Index of the GPUs that it runs on: engines that share GPUs have the same."""
    has_idle: bool = True
    """False for all but one of the engines that share GPUs: their idle power is the same."""


class SharedGpus(NamedTuple):
    """GPUs that several engines share: energy that is none of theirs, and the errors of what they used together."""

    gpu_group: int
    """Their index, which the engines on them have too."""
    idle_mj: int
    unattributed_mj: int
    sums: Mapping[str, SumErrors]
    """Errors of sums over all of these engines, but for what caches saved."""


def sum_of_engines(shares: Sequence[EngineShare], shared: Sequence[SharedGpus] = ()) -> RunAttribution:
    """Return one attribution of all engines, of which one at least has energy.

    A request owes each engine that served it what that engine's law says: all of it is prefill at an engine that only
    computes prompts, and decode at one that only generates. It has no joules where one of these engines, or what it
    used, is not known.

    Errors of engines with GPUs of their own are independent, as their counters are. Those of engines that share GPUs
    are not: a sum over both has the error of the joint fit. The joules of rejected tokens, and those that caches saved,
    have the upper bound for any correlation there, the sum of the errors. Where it is only likely that an engine served
    a request, with probability p, the standard error grows by sqrt(p (1 - p)) of its joules there: they may be
    another's.
    """
    joint = {gpus.gpu_group: gpus.sums for gpus in shared}
    roles = [_by_role(share, share.gpu_group in joint) for share in shares]
    pairs = [(share, part) for share, part in zip(shares, roles, strict=True) if part is not None]
    parts = [part for _, part in pairs]
    rejected = [part for part in parts if part.rejected_joules is not None]
    by_group: dict[int, list[RunAttribution]] = {}
    for share, part in pairs:
        by_group.setdefault(share.gpu_group, []).append(part)
    whole = RunAttribution(
        method=parts[0].method, start_ns=parts[0].start_ns, end_ns=parts[0].end_ns,
        measured_mj=sum(part.measured_mj for part in parts)
        + sum(gpus.idle_mj + gpus.unattributed_mj for gpus in shared),
        idle_mj=sum(part.idle_mj for part in parts) + sum(gpus.idle_mj for gpus in shared),
        attributed_mj=sum(part.attributed_mj for part in parts),
        unattributed_mj=sum(part.unattributed_mj for part in parts) + sum(gpus.unattributed_mj for gpus in shared),
        requests=[_summed(row, request.index, shares, roles) for row, request in enumerate(parts[0].requests)],
        coefficients=[
            coefficients if share.has_idle else msgspec.structs.replace(coefficients, idle_w=0.0, idle_se_w=0.0)
            for share, part in pairs
            for coefficients in part.coefficients
        ],
        fits=[fit for part in parts for fit in part.fits],
        sums={
            name: _summed_errors([_errors_on(own, joint.get(group), name) for group, own in by_group.items()])
            for name in parts[0].sums
        },
        rejected_joules=sum(part.rejected_joules or 0.0 for part in rejected) if rejected else None,
        rejected_se_joules=_together(_at_most(part.rejected_se_joules for part in own) for own in by_group.values()),
        engines={share.name: part for share, part in pairs},
    )  # fmt: skip
    whole.check()
    return whole


def _by_role(share: EngineShare, is_joint: bool) -> RunAttribution | None:
    """Return the attribution with all joules in the phase that the engine computes. The joules of the other phase are
    another engine's, and not known here. What an engine that only generates has of a prompt came from another engine,
    and is no saving of its cache.

    is_joint: the engine shares its GPUs, and the errors of its attribution are those of what its requests used at both
    engines. Its own are those of its phase.
    """
    if share.attribution is None:
        return None
    attribution = msgspec.structs.replace(share.attribution, named_by=share.named_by)
    if share.role is None:
        return attribution
    is_prefill = share.role == "prefill"
    requests = [
        msgspec.structs.replace(
            request,
            prefill_joules=request.joules if is_prefill else None,
            decode_joules=None if is_prefill else request.joules,
            **({} if is_prefill else _NO_CACHE),
        )
        for request in attribution.requests
    ]
    field = f"{share.role if is_joint else 'attributed'}_se_joules"
    own: dict[str, float] = {name: getattr(errors, field) for name, errors in attribution.sums.items()}
    sums = {
        name: msgspec.structs.replace(
            errors,
            attributed_se_joules=own[name],
            prefill_se_joules=own[name] if is_prefill else 0.0,
            decode_se_joules=0.0 if is_prefill else own[name],
            saved_se_joules=errors.saved_se_joules if is_prefill else None,
            recomputed_se_joules=errors.recomputed_se_joules if is_prefill else None,
        )
        for name, errors in attribution.sums.items()
    }
    return msgspec.structs.replace(attribution, requests=requests, sums=sums)


_NO_CACHE = dict.fromkeys(("saved_joules", "saved_se_joules", "recomputed_joules", "recomputed_se_joules"))


class _Served(NamedTuple):
    """A request at an engine that served it with this probability. energy: None if that of the engine is not known."""

    engine: EngineShare
    probability: float
    energy: RequestEnergy | None


def _summed(
    row: int, index: int, shares: Sequence[EngineShare], parts: Sequence[RunAttribution | None]
) -> RequestEnergy:
    """Return the energy of the request in a row of all engines. parts: the attributions of `shares`, by role."""
    served = [
        _Served(share, float(share.probability[row]), part.requests[row] if part else None)
        for share, part in zip(shares, parts, strict=True)
        if share.probability[row] > 0
    ]
    energies = [at.energy for at in served if at.energy is not None]
    prefill = _known(energy.prefill_joules for energy in energies)
    decode = _known(energy.decode_joules for energy in energies)
    joules = None if prefill is None or decode is None else j_from_mj(mj_from_j(prefill) + mj_from_j(decode))
    # Each of the engines that share GPUs has the error of the request's joules at all of them.
    variances = {at.engine.gpu_group: (at.energy.se_joules or 0.0) ** 2 for at in served if at.energy is not None}
    doubts = [
        at.probability * (1 - at.probability) * (at.energy.joules or 0.0) ** 2 for at in served if at.energy is not None
    ]
    last = next((at for at in served if at.engine.role != "prefill"), None)
    return RequestEnergy(
        index=index,
        prefill_joules=prefill,
        decode_joules=decode,
        joules=joules,
        reasoning_joules=last.energy.reasoning_joules if last and last.energy else None,
        tools_joules=last.energy.tools_joules if last and last.energy else None,
        se_joules=None if joules is None else round(float(np.sqrt(sum(variances.values()) + sum(doubts))), 6),
        saved_joules=_known(energy.saved_joules for energy in energies),
        saved_se_joules=_together(energy.saved_se_joules for energy in energies),
        recomputed_joules=_known(energy.recomputed_joules for energy in energies),
        recomputed_se_joules=_together(energy.recomputed_se_joules for energy in energies),
        engine=last.engine.name if last else None,
        prefill_engine=next((at.engine.name for at in served if at.engine.role == "prefill"), None),
        engine_probability=round(min(at.probability for at in served), 4) if served else None,
    )


def _known(values: Iterable[float | None]) -> float | None:
    """Sum the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return round(sum(known), 6) if known else None


def _at_most(errors: Iterable[float | None]) -> float | None:
    """Return the largest standard error that a sum of values can have; None if the error of none is known."""
    known = [error for error in errors if error is not None]
    return sum(known) if known else None


def _together(errors: Iterable[float | None]) -> float | None:
    """Return the standard error of a sum of independent values; None if the error of none is known."""
    known = [error for error in errors if error is not None]
    return round(float(np.hypot.reduce(known)), 6) if known else None


def _errors_on(engines: Sequence[RunAttribution], joint: Mapping[str, SumErrors] | None, name: str) -> SumErrors:
    """Return the errors of a sum over the engines on some GPUs. joint: those of a joint fit; None for one engine."""
    own = [engine.sums[name] for engine in engines]
    if joint is None:
        return own[0]
    return msgspec.structs.replace(
        joint[name],
        saved_se_joules=_at_most(errors.saved_se_joules for errors in own),
        recomputed_se_joules=_at_most(errors.recomputed_se_joules for errors in own),
    )


def _summed_errors(errors: Sequence[SumErrors]) -> SumErrors:
    return SumErrors(
        attributed_se_joules=_together(error.attributed_se_joules for error in errors) or 0.0,
        prefill_se_joules=_together(error.prefill_se_joules for error in errors) or 0.0,
        decode_se_joules=_together(error.decode_se_joules for error in errors) or 0.0,
        saved_se_joules=_together(error.saved_se_joules for error in errors),
        recomputed_se_joules=_together(error.recomputed_se_joules for error in errors),
    )
