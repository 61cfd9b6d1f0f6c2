"""The exported result of `vllm bench serve`, read by vLLM itself: its timeline, its Pareto plot, its metric records."""

import json
import subprocess
from pathlib import Path

import msgspec
import pytest

from loadgen.export.vllm_bench import vllm_result
from loadgen.results.summarize import analyse_run
from support import sample_runs
from support.engines import ENGINES, missing

pytestmark = pytest.mark.skipif(missing("vllm") is not None, reason=str(missing("vllm")))
READERS = """
import ast, inspect, json, sys
from argparse import Namespace
from pathlib import Path
from vllm.benchmarks import serve
from vllm.benchmarks.plot import construct_timeline_data
from vllm.benchmarks.sweep import plot_pareto

folder = Path(sys.argv[1])
detailed, plain = (json.loads((folder / name).read_text()) for name in ("detailed.json", "plain.json"))
rows = zip(*(detailed[name] for name in ("start_times", "ttfts", "itls", "input_lens", "output_lens")), strict=True)
names = ("start_time", "ttft", "itl", "prompt_len", "output_tokens")
requests = [dict(zip(names, row, strict=True)) for row in rows]
for request in requests:
    request["latency"] = request["ttft"] + sum(request["itl"])
segments = construct_timeline_data(requests, [0.025, 0.05], ["fast", "middle", "slow"])
serve.save_to_pytorch_benchmark_format(Namespace(model="m", output_json=""), plain, str(folder / "made.json"))
[node] = ast.parse(inspect.getsource(serve.benchmark)).body
dicts = [[key.value for key in d.keys] for d in ast.walk(node) if isinstance(d, ast.Dict) and all(
    isinstance(key, ast.Constant) for key in d.keys)]
[written] = [keys for keys in dicts if "output_throughput" in keys]
print(json.dumps({
    "requests": len({segment["request_id"] for segment in segments}),
    "output_throughput": plot_pareto._get_numeric(plain, ["output_throughput"]),
    "users": plot_pareto._get_numeric(plain, ["max_concurrent_requests"], allow_zero=False),
    "records": {r["metric"]["name"]: r["metric"]["benchmark_values"]
                for r in json.loads((folder / "made.pytorch.json").read_text())},
    "written": written,
}))
"""
LEFT_OUT = {"rtfx", "queue_times", "generated_texts"}
"""Keys of audio, and of what a run does not record."""


def test_vllm_reads_what_it_would_have_written(tmp_path: Path) -> None:
    made = analyse_run(sample_runs.run(num_requests=60, failing=0.1))
    assert made.summary is not None
    detailed = vllm_result(made, detailed=True)
    (tmp_path / "detailed.json").write_bytes(msgspec.json.encode(detailed))
    (tmp_path / "plain.json").write_bytes(msgspec.json.encode(vllm_result(made, detailed=False)))
    python, environment = (
        ENGINES / "vllm/bin/python",
        {"SAVE_TO_PYTORCH_BENCHMARK_FORMAT": "1", "PATH": "/usr/bin:/bin"},
    )
    ended = subprocess.run(
        [python, "-c", READERS, tmp_path], env=environment, capture_output=True, text=True, check=False, timeout=110
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["requests"] == made.summary.requests.scheduled
    assert found["output_throughput"] == pytest.approx(made.summary.tokens.output_per_s)
    assert found["users"] == detailed["max_concurrent_requests"]
    assert found["records"]["p99_ttft_ms"] == [pytest.approx(made.summary.ttft_s.p99 * 1000)]
    assert set(found["written"]) - {*detailed} == LEFT_OUT
