"""The steps of a simulated engine."""

from loadgen.simulator.engine import Engine, Sequence, Step


def run(engine: Engine, sequences: list[Sequence]) -> list[Step]:
    """Return all steps until the sequences, each of which arrives at its own instant, are done."""
    for seq in sorted(sequences, key=lambda seq: seq.arrival_ns):
        engine.add(seq)
    steps = []
    while (start_ns := engine.next_start_ns()) is not None:
        step = engine.step(start_ns)
        assert step is not None
        steps.append(step)
    return steps
