"""The energy of a run is that from its recording on."""

from loadgen.energy.series import EnergySample
from loadgen.run.metering import since


def sample(t_ns: int, domain: str) -> EnergySample:
    return EnergySample(t_ns=t_ns, domain=domain, joules=float(t_ns))


def test_what_was_drawn_during_the_warm_up_is_left_out_but_for_the_point_that_covers_the_beginning() -> None:
    samples = [sample(t_ns, domain) for t_ns in range(10) for domain in ("gpu:0", "gpu:1")]
    kept = since(samples, 7)
    assert [(one.t_ns, one.domain) for one in kept] == [(t_ns, f"gpu:{k}") for t_ns in (6, 7, 8, 9) for k in (0, 1)]
    assert since(samples, 0) == samples
