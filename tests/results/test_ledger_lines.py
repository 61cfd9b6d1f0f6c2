"""Lines of a ledger: parts of a period by engine sum to it, also when periods are folded."""

from hypothesis import given
from hypothesis import strategies as st

from loadgen.results.ledger_lines import (
    EnginePeriod,
    LedgerBatch,
    LedgerPeriod,
    engines_agree,
    folded,
    imbalance_mj,
)

COUNT = st.integers(0, 10**12)
PARTS = st.builds(EnginePeriod, engine=st.just("a"), idle_mj=COUNT, unattributed_mj=COUNT, open_mj=COUNT)


def batch(number: int, parts: tuple[EnginePeriod, ...]) -> LedgerBatch:
    """A period without requests, in which each engine's open energy was assigned anew."""
    whole = {name: sum(getattr(part, name) for part in parts) for name in ("idle_mj", "unattributed_mj", "open_mj")}
    counters = tuple(
        EnginePeriod(
            engine=part.engine, idle_mj=part.idle_mj, unattributed_mj=part.unattributed_mj, open_mj=part.open_mj,
            counter_mj=part.idle_mj + part.unattributed_mj,
        )
        for part in parts
    )  # fmt: skip
    counter_mj = sum(part.counter_mj for part in counters)
    period = LedgerPeriod(
        from_unix_ns=number, to_unix_ns=number + 1, counter_mj=counter_mj, requests=0, engines=counters, **whole
    )
    return LedgerBatch(period, ())


@given(st.lists(st.tuples(PARTS, PARTS), min_size=2, max_size=5))
def test_folded_periods_are_still_the_sum_of_their_engines(periods: list[tuple[EnginePeriod, EnginePeriod]]) -> None:
    batches = [batch(number, parts) for number, parts in enumerate(periods)]
    whole = batches[0]
    for later in batches[1:]:
        whole = folded(whole, later)
    assert engines_agree(whole.period)
    assert imbalance_mj(whole, whole.period.open_mj) == 0
    assert whole.period.engines[1].idle_mj == sum(parts[1].idle_mj for parts in periods)


def test_the_growth_of_an_engine_has_the_energy_that_is_open_at_its_end() -> None:
    before = EnginePeriod(engine="a", counter_mj=10, idle_mj=4, unattributed_mj=1, open_mj=5)
    after = EnginePeriod(engine="a", counter_mj=30, idle_mj=10, unattributed_mj=2, open_mj=3)
    assert after.since(before) == EnginePeriod(engine="a", counter_mj=20, idle_mj=6, unattributed_mj=1, open_mj=3)
