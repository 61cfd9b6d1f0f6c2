"""Measure how often a gate in CI cries wolf, and how often it finds 3 % more power.

    python -m benchmarks.accuracy.gate [--comparisons 200]

A side is one simulated run, or the mean of three, in virtual time: an engine of 16 sequences at half of its capacity,
300 requests of the shipped code trace with Poisson arrivals. Both sides have the same schedules, which each sends with
up to 10 ms of lateness of its own; or schedules of their own. In the A/A comparisons nothing differs; in the others,
B's energy counter runs 1.03 times as fast. An alarm is a 95 % interval that lies above 0, as with `--fail-if
'...>+0%' --confident`: a right interval gives a false one in 2.5 % of the A/A comparisons, and excludes 0 in 5 %.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from statistics import median

from benchmarks.accuracy.differences import Case, simulated_run
from loadgen.results.difference import Difference, differences_of_sides

NUMBERS = (
    "ttft_s.p50",
    "tpot_s.p50",
    "e2e_s.p90",
    "tokens.output_per_s",
    "energy.joules_per_output_token",
    "energy.mean_watts",
)
JOULES = "energy.joules_per_output_token"
POWER = 1.03
SETUPS = [(1, True), (1, False), (3, True), (3, False)]
"""Runs of a side, and whether both sides have the same schedules."""


def comparison(runs: int, paired: bool, number: int) -> tuple[dict[str, Difference], Difference]:
    """Return the differences of an A/A comparison, and that of the joules where B draws more power."""
    case = Case("poisson", 0.5, 300, paired)
    first = 2 * runs * number
    seeds = range(first, first + runs)
    others = seeds if paired else range(first + runs, first + 2 * runs)
    a = [simulated_run(case, seed, 2 * seed) for seed in seeds]
    b = [simulated_run(case, seed, 2 * seed + 1) for seed in others]
    more = [simulated_run(case, seed, 2 * seed + 1, POWER) for seed in others]
    same = differences_of_sides(a, b).rows
    return {path: same[path] for path in NUMBERS}, differences_of_sides(a, more).rows[JOULES]


def percents(part: int, whole: int) -> str:
    return f"{part / whole:.1%} of {whole:,}" if whole else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=200)
    count = parser.parse_args().comparisons
    head = ("a side", "schedules", "false alarms", "excludes 0", "no interval", "+3 % power found", "detectable")
    print(f"| {' | '.join(head)} |")
    print("|---|---|---:|---:|---:|---:|---:|")
    with ProcessPoolExecutor() as workers:
        for runs, paired in SETUPS:
            made = list(workers.map(comparison, [runs] * count, [paired] * count, range(count), chunksize=4))
            rows = [row for same, _ in made for row in same.values()]
            ends = [row.interval for row in rows if row.interval is not None]
            above = sum(low > 0 for low, _ in ends)
            either = sum(low > 0 or high < 0 for low, high in ends)
            changes = [more for _, more in made]
            found = sum(change.interval is not None and change.interval[0] > 0 for change in changes)
            sizes = [change.detectable / change.a for change in changes if change.detectable is not None and change.a]
            cells = [
                f"{runs} run{'s' if runs > 1 else ''}", "the same" if paired else "its own", percents(above, len(ends)),
                percents(either, len(ends)), f"{1 - len(ends) / len(rows):.0%}", percents(found, count),
                f"{median(sizes):.1%}" if sizes else "-",
            ]  # fmt: skip
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
