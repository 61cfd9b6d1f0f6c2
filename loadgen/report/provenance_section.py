"""The origin of a run on its page: the files beside it, and all that run.json holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loadgen.report.first_screen import start_time
from loadgen.report.format import UNKNOWN, clean, seconds, with_unit
from loadgen.report.markup import Markup, join, tag
from loadgen.report.page import definitions, folded

if TYPE_CHECKING:
    from loadgen.results.run_folder import RunInfo, RunResult
    from loadgen.results.summary import Instrument


def files_beside(result: RunResult) -> Markup:
    """Return links to the files of the run folder, in which the page is written."""
    names = ["summary.json", "run.json", "schedule.jsonl", "records.jsonl"]
    names += ["attribution.jsonl"] if result.attribution else []
    names += ["sessions.jsonl"] if result.sessions else []
    names += ["energy.jsonl"] if result.energy else []
    names += ["engine.jsonl"] if result.engine else []
    names += ["spans.jsonl"] if result.spans else []
    links = join(join([", " if i else "", tag("a", name, href=name)]) for i, name in enumerate(names))
    return tag("p", "Files in the folder of this page: ", links, ".")


def provenance(info: RunInfo, instrument: Instrument) -> Markup:
    """Return all that run.json holds of the run, its options, the server, the machine and the meter."""
    rss = None if instrument.max_rss_bytes is None else instrument.max_rss_bytes / 1e6
    run = {
        "run id": info.run_id,
        "loadgen": info.loadgen_version,
        "started": start_time(info),
        "ended by": info.stopped_by or UNKNOWN,
        "seed": info.seed,
        "schedule sha256": info.schedule_sha256,
        "clock anchor": f"wall {info.anchor.wall_ns} ns = monotonic {info.anchor.monotonic_ns} ns",
        "client CPU time": seconds(instrument.cpu_s),
        "client memory": with_unit(rss, "MB"),
        "energy counter polled every": seconds(instrument.sampler_period_s),
    }
    domains = {
        domain.name: f"{domain.source}, every {seconds(domain.period_s)}"
        + (f", within {domain.within}" if domain.within else "")
        for domain in info.domains
    }
    boxes = [("Run", run), ("Options", info.config), ("Server", info.server), ("Host", info.host)]
    boxes += [("Versions", info.versions), ("Energy domains", domains)]
    parts = [folded(name, definitions(_flatten(facts))) for name, facts in boxes if facts]
    return tag("div", *parts, class_="grid")


def _flatten(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Return dotted keys and texts; lists joined, and "-" for what is unknown or empty."""
    rows: list[tuple[str, str]] = []
    for key, value in facts.items():
        if isinstance(value, dict):
            rows += [(f"{clean(key)}.{inner}", text) for inner, text in _flatten(value)]
        elif isinstance(value, list | tuple):
            rows.append((clean(key), ", ".join(clean(item) for item in value) or UNKNOWN))
        else:
            rows.append((clean(key), UNKNOWN if value is None or value == "" else clean(value)))
    return rows
