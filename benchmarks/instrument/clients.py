"""Commands that make each client put the same load on a server, and readers of the times that it reports."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

INPUT_TOKENS = 16
MODEL = "truth"
PEERS = Path(__file__).parents[2] / ".peers"
TOKENIZER = str(PEERS / "tokenizer")
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1"}


@dataclass(frozen=True)
class Load:
    """`requests` requests of `tokens` output tokens: Poisson at `rate` per second, or `streams` at a time."""

    requests: int
    tokens: int
    rate: float | None = None
    streams: int | None = None
    lasts_s: float = 0.0
    """Duration of one request as the server paces it."""

    @property
    def seconds(self) -> int:
        return round(self.requests / self.rate) if self.rate else 0


@dataclass(frozen=True)
class Timing:
    """Times in ns that a client reports about one request; `gaps_ns` is None without a time of every chunk."""

    ttft_ns: float
    gaps_ns: NDArray[np.float64] | None = None
    tpot_ns: float | None = None


Answers = dict[bytes | int, Timing]
"""Reported times by the id that the client sent, or by the server's number of the request."""


@dataclass(frozen=True)
class Client:
    command: Callable[[str, Load, Path], Sequence[str]]
    """Build the command line from (server's root URL, load, a folder to write into)."""
    answers: Callable[[Path], Answers]
    share: float = 1.0
    """Share of a burst's requests: a slower client gets fewer, so that its run also lasts seconds."""
    prefix: bytes = b""
    """Prefix of the ids of the measured requests, for a client that also sends unmeasured ones."""
    env: dict[str, str] = field(default_factory=dict)
    folder: str | None = None
    """Environment under .peers; None is this project."""

    def missing(self) -> str | None:
        """Return the reason that the client cannot run, or None."""
        if self.folder is None or (PEERS / self.folder / ".installed").exists():
            return None
        log = PEERS / f"{self.folder}.log"
        lines = log.read_text(errors="replace").split("\n") if log.exists() else []
        log_end = [line for line in lines if line.strip()][-1:]
        return log_end[0].strip() if log_end else "not installed: benchmarks/instrument/install_peers.sh"


def _timing(ttft_s: float, gaps_s: Iterable[float]) -> Timing:
    gaps = np.asarray(list(gaps_s), dtype=float) * 1e9
    return Timing(ttft_s * 1e9, gaps, float(gaps.mean()) if len(gaps) else None)


def _number(response_id: str) -> int:
    """Return the server's number of a request, with which the response's id ends."""
    return int(response_id.rsplit("-", 1)[-1], 16)


def _loadgen(url: str, load: Load, folder: Path) -> list[str]:
    trace = folder / "trace.jsonl"
    line = {"input_length": INPUT_TOKENS, "output_length": load.tokens}
    lines = (json.dumps({"timestamp": float(i), **line}) for i in range(min(load.requests, 1000)))
    trace.write_text("\n".join(lines) + "\n")
    return [
        sys.executable, "-m", "loadgen", "replay", str(trace), "--rps", str(load.rate or 1e6),
        "--arrival", "poisson" if load.rate else "constant", "--num-requests", str(load.requests),
        *(["--max-concurrency", str(load.streams)] if load.streams else []),
        "--base-url", f"{url}/v1", "--energy", "none", "--ui", "none", "--json", "--out", str(folder / "run"),
    ]  # fmt: skip


def _loadgen_answers(folder: Path) -> Answers:
    from loadgen.results import run_folder

    run = run_folder.read_run(folder / "run")
    return {
        f"{run.info.run_id}-{record.index}".encode(): _timing(
            (record.first_token_ns - record.sent_ns) / 1e9, np.diff(np.array(record.chunk_ns)) / 1e9
        )
        for record in run.records
        if record.ok and record.first_token_ns is not None and record.sent_ns is not None
    }


def _vllm_options(url: str, load: Load, folder: Path) -> list[str]:
    return [
        "bench", "serve", "--backend", "openai-chat", "--base-url", url, "--endpoint", "/v1/chat/completions",
        "--model", MODEL, "--tokenizer", TOKENIZER, "--dataset-name", "random", "--ignore-eos", "--disable-tqdm",
        "--random-input-len", str(INPUT_TOKENS), "--random-output-len", str(load.tokens),
        "--num-prompts", str(load.requests), "--request-rate", str(load.rate or "inf"), "--request-id-prefix", "q-",
        *(["--max-concurrency", str(load.streams)] if load.streams else []),
        "--save-result", "--save-detailed", "--result-dir", str(folder), "--result-filename", "vllm.json",
    ]  # fmt: skip


def _vllm(url: str, load: Load, folder: Path) -> list[str]:
    return [str(PEERS / "vllm/bin/vllm"), *_vllm_options(url, load, folder)]


def _vllm_rs(url: str, load: Load, folder: Path) -> list[str]:
    return [str(PEERS / "vllm-rs/vllm-rs"), *_vllm_options(url, load, folder)]


def _vllm_answers(folder: Path) -> Answers:
    result = json.loads((folder / "vllm.json").read_bytes())
    rows = zip(result["ttfts"], result["itls"], result["errors"], strict=True)
    # vLLM's first gap is between the role chunk and the first token; the later gaps are between tokens.
    return {f"q-{i}".encode(): _timing(ttft, gaps[1:]) for i, (ttft, gaps, error) in enumerate(rows) if not error}


def _aiperf(url: str, load: Load, folder: Path) -> list[str]:
    pace = (
        ["--request-rate", str(load.rate), "--request-rate-mode", "poisson"]
        if load.rate
        else ["--concurrency", str(load.streams)]
    )
    return [
        str(PEERS / "aiperf/bin/aiperf"), "profile", "-m", MODEL, "--url", url, "--endpoint-type", "chat",
        "--streaming", "--tokenizer", TOKENIZER, "--use-server-token-count", *pace,
        "--request-count", str(load.requests), "--isl", str(INPUT_TOKENS), "--isl-stddev", "0",
        "--osl", str(load.tokens), "--extra-inputs", "ignore_eos:true", "--num-dataset-entries", "100",
        "--workers-max", "1", "--record-processors", "1", "--no-gpu-telemetry", "--no-server-metrics",
        "--ui", "none", "--artifact-dir", str(folder),
    ]  # fmt: skip


def _aiperf_answers(folder: Path) -> Answers:
    answers: Answers = {}
    for line in (folder / "profile_export.jsonl").open("rb"):
        record = json.loads(line)
        metrics = record["metrics"]
        if record.get("error") or "time_to_first_token" not in metrics:
            continue
        gaps = np.asarray(metrics.get("inter_chunk_latency", {"value": []})["value"], dtype=float) / 1e3
        answers[record["metadata"]["x_request_id"].encode()] = _timing(
            metrics["time_to_first_token"]["value"] / 1e3, gaps
        )
    return answers


def _guidellm(url: str, load: Load, folder: Path) -> list[str]:
    profile = f"kind=poisson,rate={load.rate}" if load.rate else f"kind=concurrent,streams={load.streams}"
    return [
        str(PEERS / "guidellm/bin/guidellm"), "run", "--backend", f"kind=openai_http,target={url},model={MODEL}",
        "--tokenizer", f"kind=huggingface_auto,model={TOKENIZER}",
        "--data", f"kind=synthetic_text,prompt_tokens={INPUT_TOKENS},output_tokens={load.tokens}",
        "--profile", profile, "--constraint", f"kind=max_requests,count={load.requests}",
        "--output", f"kind=json,path={folder / 'guidellm.json'}", "--disable-console",
    ]  # fmt: skip


def _guidellm_answers(folder: Path) -> Answers:
    answers: Answers = {}
    for record in json.loads((folder / "guidellm.json").read_bytes())["benchmarks"][0]["requests"]["successful"]:
        timings = record["info"]["timings"]
        first_s, last_s, tokens = (
            timings["first_token_iteration"],
            timings["last_token_iteration"],
            timings["token_iterations"],
        )
        tpot_ns = (last_s - first_s) / (tokens - 1) * 1e9 if tokens > 1 else None
        answers[_number(record["response_id"])] = Timing((first_s - timings["request_start"]) * 1e9, None, tpot_ns)
    return answers


def _inference_perf(url: str, load: Load, folder: Path) -> list[str]:
    fixed = {"type": "fixed", "std_dev": 0, "total_count": min(load.requests, 1000)}
    inputs, outputs = (fixed | {"min": n, "max": n, "mean": n} for n in (INPUT_TOKENS, load.tokens))
    stages = (
        {"type": "poisson", "stages": [{"rate": load.rate, "duration": load.seconds}]}
        if load.rate
        else {"type": "concurrent", "stages": [{"num_requests": load.requests, "concurrency_level": load.streams}]}
    )
    config = {
        "api": {"type": "completion", "streaming": True},
        "data": {"type": "random", "input_distribution": inputs, "output_distribution": outputs},
        "load": stages | {"interval": 0, "num_workers": 1, "worker_max_concurrency": 4000},
        "server": {"type": "vllm", "model_name": MODEL, "base_url": url, "ignore_eos": True},
        "tokenizer": {"pretrained_model_name_or_path": TOKENIZER},
        "report": {"request_lifecycle": {"summary": False, "per_stage": False, "per_request": True}},
        "storage": {"local_storage": {"path": str(folder / "report")}},
    }
    (folder / "inference-perf.yaml").write_text(json.dumps(config))
    command = PEERS / "inference-perf/bin/inference-perf"
    return [str(command), "--config_file", str(folder / "inference-perf.yaml")]


def _inference_perf_answers(folder: Path) -> Answers:
    answers: Answers = {}
    for record in json.loads((folder / "report/per_request_lifecycle_metrics.json").read_bytes()):
        answer = record["info"]["response_metrics"]
        if record["error"] or not answer:
            continue
        token_s = np.asarray(answer["output_token_times"])
        number = _number(json.loads(answer["response_chunks"][0])["id"])
        answers[number] = _timing(token_s[0] - record["start_time"], np.diff(token_s))
    return answers


def _locust(url: str, load: Load, folder: Path) -> list[str]:
    # Locust users wait for their answer, then a second on average: this many users together reach the rate.
    users = load.streams or round((load.rate or 1) * (1 + load.lasts_s))
    options = json.dumps({"requests": load.requests, "tokens": load.tokens, "poisson": load.rate is not None})
    return [
        str(PEERS / "locust/bin/locust"), "-f", str(Path(__file__).with_name("peer_locustfile.py")), "--headless",
        "--host", url, "-u", str(users), "-r", str(users), "--only-summary", "--load", options,
        "--answers", str(folder / "answers.jsonl"),
    ]  # fmt: skip


def _locust_answers(folder: Path) -> Answers:
    rows = (json.loads(line) for line in (folder / "answers.jsonl").open("rb"))
    return {row["id"].encode(): _timing(row["at"][0] - row["sent"], np.diff(row["at"])) for row in rows if row["at"]}


CLIENTS: dict[str, Client] = {
    "loadgen": Client(_loadgen, _loadgen_answers),
    "vllm-rs": Client(_vllm_rs, _vllm_answers, prefix=b"q-", folder="vllm-rs", env=OFFLINE),
    "vllm": Client(_vllm, _vllm_answers, share=0.1, prefix=b"q-", folder="vllm", env=OFFLINE),
    "aiperf": Client(_aiperf, _aiperf_answers, share=0.03, folder="aiperf"),
    "guidellm": Client(
        _guidellm,
        _guidellm_answers,
        share=0.03,
        folder="guidellm",
        env=OFFLINE | {"GUIDELLM__MAX_WORKER_PROCESSES": "1"},
    ),
    "inference-perf": Client(
        _inference_perf, _inference_perf_answers, share=0.05, folder="inference-perf", env=OFFLINE
    ),
    "locust": Client(_locust, _locust_answers, share=0.1, folder="locust"),
}
"""AIPerf, GuideLLM and inference-perf are configured to use one worker, because they have one core."""
