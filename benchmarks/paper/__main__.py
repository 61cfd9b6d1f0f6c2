"""Draw everything under docs/results that was measured, from the data in docs/results/h200-2026.

    python -m benchmarks.paper [--pages FOLDER]

writes the tables between the markers of docs/results/*.md, the figures, offline/results.csv and the energy profile of
transformers. --pages also writes the report pages of the offline sessions and of the online study.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from benchmarks.paper import (
    added_load,
    agent_sessions,
    agreement,
    case_study,
    checks,
    decoding,
    disaggregated,
    engine_options,
    frameworks,
    gpus,
    moe,
    offline_table,
    online,
    own_words,
    searches,
    serving,
    several_engines,
    speculative_decoding,
    tensor_parallel,
    transfer,
    weights,
)
from benchmarks.paper.ingest import FOLDER
from benchmarks.paper.offline_results import rows
from loadgen.energy_model.energy_profile import energy_profile_json
from loadgen.report.study_page import render_study_page
from loadgen.results.study_table import StudyInfo

ROOT = Path(__file__).parents[2]
DOCUMENTS = ROOT / "docs/results"
PROFILE = ROOT / "profiles/energy/h200-transformers-5.17-eager-llama-3.1-8b.json"

TABLES: dict[str, Callable[[], str]] = {
    "agreement": agreement.agreement,
    "headline": frameworks.headline,
    "frameworks": frameworks.frameworks,
    "power": frameworks.power,
    "reductions": frameworks.reductions,
    "shapes": frameworks.shapes,
    "fp8": frameworks.fp8,
    "ml-energy": frameworks.ml_energy,
    "tensor-parallel": tensor_parallel.tensor_parallel,
    "four-gpus": tensor_parallel.four_gpus,
    "four-gpus-simulated": tensor_parallel.four_simulated,
    "speculative-decoding": speculative_decoding.speculation,
    "speculative-steps": speculative_decoding.speculation_steps,
    "acceptance": speculative_decoding.acceptance,
    "moe": moe.moe,
    "moe-added": moe.moe_added,
    "added-load": added_load.added,
    "added-load-summary": added_load.added_summary,
    "distinct-tokens": moe.distinct_tokens,
    "decoding": decoding.decoding,
    "tasks": decoding.tasks,
    "tasks-best": decoding.tasks_best,
    "online": online.online_table,
    "online-paper": online.online_paper,
    **agent_sessions.TABLES,
    **gpus.TABLES,
    **transfer.TABLES,
    **own_words.TABLES,
    **searches.TABLES,
    **serving.TABLES,
    **several_engines.TABLES,
    **disaggregated.TABLES,
    **engine_options.TABLES,
    **weights.TABLES,
    "case-study": case_study.traces,
    "table-4": case_study.table_4,
    "profile-fit": case_study.profile_fit,
    "sanity": checks.sanity,
    "repeats": checks.repeats,
    "commands": checks.commands,
}
FIGURES: dict[str, Callable[[], str]] = {
    "frameworks": frameworks.frameworks_figure,
    "reductions": frameworks.reductions_figure,
    "tensor-parallel": tensor_parallel.tensor_parallel_figure,
    "speculative-decoding": speculative_decoding.figure,
    "moe": moe.figure,
    "case-study": case_study.figure,
    **gpus.FIGURES,
    **serving.FIGURES,
}


def filled(document: str) -> str:
    """Return the document with every table between its markers. KeyError for a marker without a table."""
    head, *parts = document.split("<!-- begin ")
    pieces = [head]
    for part in parts:
        name, _, tail = part.partition(" -->")
        end = f"<!-- end {name} -->"
        pieces.append(f"{name} -->\n\n{TABLES[name]()}\n\n{end}{tail.partition(end)[2]}")
    return "<!-- begin ".join(pieces)


def offline_page() -> str:
    description = (
        "Llama-3.1-8B shape on H200s. Offline, in-process, random weights, fixed lengths; GPU energy by its own "
        "counter. Each run is whole batches. Not valid: a run whose counter may be off by more than 10 % at the worst."
    )
    return render_study_page(StudyInfo("Frameworks by batch", description, "hf-eager"), rows())


def outputs() -> dict[Path, str]:
    """Return {file: content} of everything that is committed; a function of the committed data alone."""
    files = {FOLDER / f"figures/{name}.svg": draw() for name, draw in FIGURES.items()}
    files[FOLDER / "offline/results.csv"] = offline_table.csv_of(rows())
    files[PROFILE] = energy_profile_json(case_study.transformers_profile()).decode()
    files |= {path: filled(path.read_text()) for path in sorted(DOCUMENTS.glob("*.md"))}
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=Path, metavar="FOLDER")
    folder = parser.parse_args().pages
    files = outputs()
    if folder:
        files |= {folder / "offline.html": offline_page(), folder / "serving.html": serving.page()}
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


if __name__ == "__main__":
    main()
