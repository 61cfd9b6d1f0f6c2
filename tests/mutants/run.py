"""Change the core's code one operator at a time, and see whether the changed module's own test file notices.

    python tests/mutants/run.py [MODULE...] [--sample N]

cosmic-ray makes the changes, each in a copy of the checkout; a change that the tests do not notice is a survivor.
`survivors.toml` beside this file argues for each known survivor why it changes nothing that a caller can see.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkerOutcome, WorkResult

ROOT = Path(__file__).resolve().parents[2]

MODULES = {
    "attribution/shapley": "attribution/test_shapley",
    "attribution/span_steps": "attribution/test_span_steps",
    "attribution/chunk_steps": "attribution/test_chunk_steps",
    "attribution/chunked_prefill": "attribution/test_chunked_prefill",
    "sidecar/ledger": "sidecar/test_ledger",
    "sidecar/foreign_tokens": "sidecar/test_foreign_tokens",
    "sidecar/engine_progress": "sidecar/test_engine_progress",
    "sidecar/foreign_energy": "sidecar/test_foreign_energy",
    "sidecar/span_join": "sidecar/test_span_join",
    "sidecar/span_router": "sidecar/test_span_router",
    "sidecar/request_pairs": "sidecar/test_request_pairs",
    "energy/series": "energy/test_series",
    "energy/sampler": "energy/test_sampler",
    "client/http1": "client/test_http1",
    "client/openai_api": "client/test_openai_api",
    "workload/arrivals": "workload/test_arrivals",
    "workload/trace": "workload/test_trace",
    "workload/schedule": "workload/test_schedule",
    "results/run_folder": "results/test_run_folder",
    "run/sender": "run/test_sender",
}
"""A module of the core and its own test file."""

OPERATORS = re.compile(
    r"core/(ReplaceComparisonOperator_(Eq_NotEq|NotEq_Eq|Lt_LtE|Lt_Gt|LtE_Lt|LtE_GtE|Gt_GtE|Gt_Lt|GtE_Gt|GtE_LtE|Is_IsNot"
    r"|IsNot_Is)|ReplaceBinaryOperator_(Add_Sub|Sub_Add|Mul_Div|Div_Mul|FloorDiv_Mul|Mod_FloorDiv|BitAnd_BitOr)"
    r"|ReplaceUnaryOperator_(Delete_Not|Delete_USub)|ReplaceAndWithOr|ReplaceOrWithAnd|ReplaceBreakWithContinue"
    r"|ReplaceContinueWithBreak)$"
)
"""Changes of a comparison, an arithmetic operator, an and/or, a not, or a loop's way out.

Others, such as `is` for `==` or `<<` for `+`, are many, and most are noticed by the first call or by none.
"""

GOAL = 0.85


def run_module(module: str, sample: int | None) -> tuple[int, list[tuple[str, str]]]:
    """Return the number of changes that were tried, and those not noticed: operator and diff."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy, database = Path(folder) / "checkout", Path(folder) / "session.sqlite"
        tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True)
        for name in (*tracked.stdout.split("\0")[:-1], *map(str, ROOT.glob("loadgen/client/*.so"))):
            target = copy / Path(name).resolve().relative_to(ROOT) if Path(name).is_absolute() else copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
        test = f"{sys.executable} -m pytest -x -q -p no:cacheprovider --hypothesis-seed=0 tests/{MODULES[module]}.py"
        config = copy / "cosmic-ray.toml"
        config.write_text(
            f'[cosmic-ray]\nmodule-path = "loadgen/{module}.py"\ntimeout = 60.0\nexcluded-modules = []\n'
            f'test-command = "{test}"\n[cosmic-ray.distributor]\nname = "local"\n'
        )
        environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
        subprocess.run(test.split(), cwd=copy, env=environment, check=True, capture_output=True)

        def cosmic_ray(command: str) -> None:
            arguments = [sys.executable, "-m", "cosmic_ray.cli", command, str(config), str(database)]
            subprocess.run(arguments, cwd=copy, env=environment, check=True, capture_output=True)

        cosmic_ray("init")
        with use_db(str(database), WorkDB.Mode.open) as session:
            items = list(session.pending_work_items)
            source = (copy / "loadgen" / f"{module}.py").read_text().splitlines()
            tried = [item for item in items if is_tried(item.mutations[0], source)]
            if sample is not None and sample < len(tried):
                tried = random.Random(0).sample(tried, sample)
            chosen = {item.job_id for item in tried}
            for item in items:
                if item.job_id not in chosen:
                    session.set_result(item.job_id, WorkResult(worker_outcome=WorkerOutcome.SKIPPED))
        cosmic_ray("exec")
        with use_db(str(database), WorkDB.Mode.open) as session:
            operators = {item.job_id: item.mutations[0].operator_name for item in items}
            survivors = [
                (operators[job_id].removeprefix("core/"), result.diff or "")
                for job_id, result in session.results
                if job_id in chosen and result.test_outcome == TestOutcome.SURVIVED
            ]
    return len(tried), survivors


def is_tried(mutation: MutationSpec, source: list[str]) -> bool:
    """Return whether a change is one of OPERATORS, and not of the `*` that begins keyword-only parameters."""
    row, column = mutation.start_pos
    is_marker = re.match(r"\*\s*(,|$)", source[row - 1][column:])
    return bool(OPERATORS.match(mutation.operator_name)) and not is_marker


def changed_line(diff: str) -> tuple[str, str]:
    """Return the line that a diff takes out and the one that it puts in, without their indentation."""
    lines = [line for line in diff.splitlines() if line[:1] in "+-" and not line.startswith(("+++", "---"))]
    return tuple(next(line[1:].strip() for line in lines if line[0] == sign) for sign in "-+")  # type: ignore[return-value]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", choices=[*MODULES, []], metavar="MODULE", help=", ".join(MODULES))
    parser.add_argument("--sample", type=int, help="try so many changes of each module, drawn with a fixed seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="modules at a time")
    options = parser.parse_args()
    modules = options.modules or list(MODULES)
    argued = tomllib.loads((Path(__file__).parent / "survivors.toml").read_text())
    print("| module | changes | noticed | | survivors argued |\n|---|---|---|---|---|", flush=True)
    unargued, short = [], []
    with ThreadPoolExecutor(options.jobs) as pool:
        for module, (tried, survivors) in zip(
            modules, pool.map(lambda m: run_module(m, options.sample), modules), strict=True
        ):
            known = {(entry["was"], entry["is"]) for entry in argued.get(module, [])}
            new = [(operator, diff) for operator, diff in survivors if changed_line(diff) not in known]
            noticed = tried - len(survivors)
            print(
                f"| {module} | {tried} | {noticed} | {noticed / tried:.0%} "
                f"| {len(survivors) - len(new)} of {len(survivors)} |",
                flush=True,
            )
            unargued += [(module, operator, *changed_line(diff)) for operator, diff in new]
            if noticed < GOAL * tried:
                short.append(module)
    for module, operator, was, now in unargued:
        print(f"\n{module}: {operator}\n  - {was}\n  + {now}")
    return 1 if unargued or short else 0


if __name__ == "__main__":
    sys.exit(main())
