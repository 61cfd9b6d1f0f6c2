"""Measure what prompts are worth to n-gram speculation: real text against loadgen's own words of the same lengths.

    python -m benchmarks.paper.measure_own_words traces FOLDER --text FILE [--requests 240]
    python -m benchmarks.paper.measure_own_words run FOLDER SERVER [--base-url URL] [--rps 8]
    python -m benchmarks.paper.measure_own_words report FOLDER > docs/results/own-words.json

`traces` cuts passages from a text and writes them as prompts of two kinds, quote.jsonl (to be copied out) and
summary.jsonl (to be summarized). `run` replays both, then requests of the same lengths with made-up words, then the
summaries until the model ends them; SERVER names the server's options in the results, such as `plain` or `ngram`. Each
run is a run folder, with the server's counters of drafts before and after it. `report` needs no server.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from loadgen.results.run_folder import read_lines
from loadgen.results.summarize import load_run
from loadgen.workload.trace import TraceRequest, write_trace

TASKS = {
    "quote": "Copy out the following passage, word for word:\n\n{}",
    "summary": "Summarize the following passage in a few sentences:\n\n{}",
}
OUTPUT_TOKENS = 128
PASSAGE_WORDS = (60, 400)
COUNTERS = {
    "drafts": "vllm:spec_decode_num_drafts_total",
    "draft_tokens": "vllm:spec_decode_num_draft_tokens_total",
    "accepted_tokens": "vllm:spec_decode_num_accepted_tokens_total",
}
RUNS = ("quote", "summary", "made-up", "natural")


def write_traces(folder: Path, text: Path, requests: int) -> None:
    """Write the two traces of words; the same text gives the same passages."""
    words = re.sub(r"\s+", " ", text.read_text()).split(" ")
    draw = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    for task, prompt in TASKS.items():
        lines = []
        for _ in range(requests):
            length = draw.randint(*PASSAGE_WORDS)
            start = draw.randrange(len(words) - length)
            content = prompt.format(" ".join(words[start : start + length]))
            lines.append(
                json.dumps({"messages": [{"role": "user", "content": content}], "output_length": OUTPUT_TOKENS})
            )
        (folder / f"{task}.jsonl").write_text("\n".join(lines) + "\n")


def run(folder: Path, server: str, base_url: str, rps: float) -> None:
    """Replay every trace. The lengths of made-up.jsonl are those that the server counted in the run of summaries."""
    root = base_url.removesuffix("/v1")
    for name in RUNS:
        trace = folder / f"{'summary' if name == 'natural' else name}.jsonl"
        if name == "made-up" and not trace.exists():
            records = load_run(folder / f"{server}-summary").records
            write_trace(trace, [
                TraceRequest(arrival_s=i / rps, input_tokens=record.input_tokens or 1, output_tokens=OUTPUT_TOKENS)
                for i, record in enumerate(records)
            ])  # fmt: skip
        out = folder / f"{server}-{name}"
        before = counters(root)
        ends = ["--stop", "natural", "--max-tokens", 512] if name == "natural" else []
        command = ["replay", trace, "--rps", rps, "--arrival", "poisson", "--base-url", base_url, "--idle", 5,
                   "--out", out, "--ui", "none", "--extra-body", '{"temperature": 0}', *ends]  # fmt: skip
        subprocess.run([sys.executable, "-m", "loadgen", *map(str, command)], check=False)
        after = counters(root)
        drafts = {key: after[key] - before[key] for key in COUNTERS if key in before and key in after}
        (out / "speculation.json").write_text(json.dumps(drafts))


def counters(root: str) -> dict[str, float]:
    """Return the server's counters of drafts; empty where it makes none."""
    page = urllib.request.urlopen(f"{root}/metrics", timeout=10).read().decode()
    values = {key: re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", page, re.MULTILINE) for key, name in COUNTERS.items()}
    return {key: sum(map(float, texts)) for key, texts in values.items() if texts}


def report(folder: Path) -> list[dict[str, Any]]:
    """Return the numbers of every run in the folder."""
    rows = []
    for path in sorted(folder.glob("*/speculation.json")):
        result, drafts = load_run(path.parent), json.loads(path.read_text())
        summary, attribution = result.summary, result.attribution
        assert summary is not None
        energy = summary.energy
        accounts = (
            [attribution.idle_mj, attribution.attributed_mj, attribution.unattributed_mj] if attribution else None
        )
        server, _, name = path.parent.name.partition("-")
        rows.append({
            "server": server, "prompts": name,
            "requests": summary.requests.completed, "failed": summary.requests.failed,
            "input_tokens": summary.tokens.input, "output_tokens": summary.tokens.output,
            "acceptance": drafts["accepted_tokens"] / drafts["draft_tokens"] if drafts.get("draft_tokens") else None,
            "accepted_per_output_token": drafts["accepted_tokens"] / summary.tokens.output
            if drafts.get("draft_tokens") and summary.tokens.output else None,
            **drafts,
            "joules_per_output_token": energy.joules_per_output_token, "measured_joules": energy.measured_joules,
            "attributed_joules": energy.attributed_joules, "attributed_se_joules": energy.attributed_se_joules,
            "idle_joules": energy.idle_joules, "mean_watts": energy.mean_watts, "energy_valid": energy.valid,
            "left_over_mj": attribution.measured_mj - sum(accounts) if attribution and accounts else None,
            "tpot_p50_s": summary.tpot_s.p50, "ttft_p50_s": summary.ttft_s.p50, "e2e_p50_s": summary.e2e_s.p50,
            "ended_by": ended_by(path.parent),
        })  # fmt: skip
    return rows


def ended_by(folder: Path) -> dict[str, int]:
    """Return the number of answers by their finish reason."""
    reasons = [str(line.get("finish_reason")) for line in read_lines(folder / "records.jsonl", dict)]
    return {reason: reasons.count(reason) for reason in sorted(set(reasons))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["traces", "run", "report"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("server", nargs="?", default="plain")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--requests", type=int, default=240)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--rps", type=float, default=8.0)
    options = parser.parse_args()
    match options.what:
        case "traces":
            write_traces(options.folder, options.text, options.requests)
        case "run":
            run(options.folder, options.server, options.base_url, options.rps)
        case _:
            print(json.dumps(report(options.folder), indent=1))


if __name__ == "__main__":
    main()
