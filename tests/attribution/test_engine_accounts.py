"""The sum of several engines' accounts, and its errors where engines share GPUs and where they do not."""

from typing import Literal

import numpy as np
import pytest
from msgspec.structs import replace as changed

from attribution.test_side_by_side import of_engine, priced, together, two_streams
from loadgen.attribution.engine_accounts import EngineShare, SharedGpus, sum_of_engines
from loadgen.attribution.shapley import JointAttribution, RunAttribution, attribute_jointly

RECORDS = two_streams(2)
SERIES, _ = priced(RECORDS)
ROWS = np.arange(len(RECORDS))


@pytest.fixture(scope="module")
def joint() -> JointAttribution:
    end_ns = int(SERIES.t_ns[-1])
    return attribute_jointly([SERIES], RECORDS, 0, end_ns, shared=together(RECORDS), sums={"all": ROWS})


def share(
    engine: RunAttribution, number: int, gpus: int, role: Literal["prefill", "decode"] | None = None
) -> EngineShare:
    served = np.array([record.sent_ns is not None for record in of_engine(RECORDS, number)], dtype=float)
    return EngineShare("ab"[number], role, engine, served, {}, gpus, has_idle=number == 0)


def on_one_gpu(joint: JointAttribution) -> RunAttribution:
    shares = [share(engine, number, 0) for number, engine in enumerate(joint.engines)]
    return sum_of_engines(shares, [SharedGpus(0, joint.idle_mj, joint.unattributed_mj, joint.sums)])


def test_the_accounts_of_engines_sum_to_the_counter_of_the_gpu_that_they_share(joint: JointAttribution) -> None:
    whole = on_one_gpu(joint)
    assert (whole.measured_mj, whole.idle_mj) == (joint.measured_mj, joint.idle_mj)
    assert whole.attributed_mj == sum(engine.attributed_mj for engine in joint.engines)


def test_errors_of_engines_add_up_by_the_joint_fit_on_one_gpu_and_as_independent_on_two(
    joint: JointAttribution,
) -> None:
    apart = sum_of_engines([share(engine, number, number) for number, engine in enumerate(joint.engines)])
    own = [engine.sums["all"] for engine in joint.engines]
    for name in ("attributed_se_joules", "prefill_se_joules", "decode_se_joules"):
        errors = [getattr(of, name) for of in own]
        assert getattr(on_one_gpu(joint).sums["all"], name) == pytest.approx(getattr(joint.sums["all"], name), abs=1e-6)
        assert getattr(apart.sums["all"], name) == pytest.approx(np.hypot(*errors), abs=1e-6)
    assert on_one_gpu(joint).sums["all"].attributed_se_joules < apart.sums["all"].attributed_se_joules


def test_what_has_no_joint_error_has_the_bound_on_one_gpu(joint: JointAttribution) -> None:
    engines = [
        changed(engine, sums={"all": changed(engine.sums["all"], saved_se_joules=saved)}, rejected_joules=1.0,
                rejected_se_joules=saved)
        for engine, saved in zip(joint.engines, (3.0, 4.0), strict=True)
    ]  # fmt: skip
    shared = on_one_gpu(changed(joint, engines=engines))
    apart = sum_of_engines([share(engine, number, number) for number, engine in enumerate(engines)])
    assert [whole.sums["all"].saved_se_joules for whole in (shared, apart)] == [7.0, 5.0]
    assert [whole.rejected_se_joules for whole in (shared, apart)] == [7.0, 5.0]


def test_a_request_at_two_engines_has_its_error_once_on_one_gpu_and_both_on_two(joint: JointAttribution) -> None:
    """The error of its joules at an engine that shares its GPU is that at both."""
    [engine, _], everywhere = joint.engines, np.ones(len(RECORDS))
    for gpus, times in ((0, 1.0), (1, np.sqrt(2))):
        shares = [
            share(engine, 0, number * gpus, role)._replace(probability=everywhere)
            for number, role in enumerate[Literal["prefill", "decode"]](("prefill", "decode"))
        ]
        whole = sum_of_engines(shares, [SharedGpus(0, 0, 0, joint.sums)] if gpus == 0 else [])
        for of_both, of_one in zip(whole.requests, engine.requests, strict=True):
            assert of_both.se_joules == pytest.approx((of_one.se_joules or 0.0) * times, abs=1e-5)
