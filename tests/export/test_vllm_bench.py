"""The result file of `vllm bench serve`: its keys, and the agreement of its lists with its statistics."""

import numpy as np
import pytest

from loadgen.export.vllm_bench import vllm_result
from loadgen.results.run_folder import RunResult
from loadgen.results.summarize import analyse_run
from support import sample_runs

KEYS = {
    *("date", "endpoint_type", "backend", "label", "model_id", "tokenizer_id", "num_prompts", "request_rate"),
    *("burstiness", "max_concurrency", "duration", "completed", "failed", "total_input_tokens", "total_output_tokens"),
    *("request_throughput", "request_goodput", "output_throughput", "total_token_throughput"),
    *("max_output_tokens_per_s", "max_concurrent_requests"),
    *(f"{word}_{name}_ms" for word in ("mean", "median", "std", "p99") for name in ("ttft", "tpot", "itl", "e2el")),
}
"""Keys that vLLM 0.32 writes for `vllm bench serve --percentile-metrics ttft,tpot,itl,e2el`."""
LISTS = {"input_lens", "output_lens", "ttfts", "itls", "latencies", "start_times", "errors"}
"""Lists of --save-detailed; without generated_texts, which a run does not keep."""


@pytest.fixture(scope="module")
def made() -> RunResult:
    return analyse_run(sample_runs.run(num_requests=80, failing=0.2))


def test_it_has_the_keys_of_vllm_and_lists_only_on_request(made: RunResult) -> None:
    plain, detailed = vllm_result(made, detailed=False), vllm_result(made, detailed=True)
    assert set(plain) >= KEYS and not set(plain) & LISTS
    assert set(detailed) == {*plain, *LISTS}
    assert {len(detailed[name]) for name in LISTS} == {len(made.schedule)}


def test_the_lists_give_the_statistics(made: RunResult) -> None:
    found = vllm_result(made, detailed=True)
    done = [row for row, error in enumerate(found["errors"]) if not error]
    ttfts, latencies = np.array(found["ttfts"])[done], np.array(found["latencies"])[done]
    assert len(done) == found["completed"] < found["num_prompts"]
    assert found["p99_ttft_ms"] == pytest.approx(np.percentile(ttfts, 99) * 1000)
    assert found["std_e2el_ms"] == pytest.approx(np.std(latencies) * 1000)
    gaps = np.concatenate([found["itls"][row] for row in done])
    assert found["mean_itl_ms"] == pytest.approx(gaps.mean() * 1000, rel=1e-5)
    assert sum(found["output_lens"]) == found["total_output_tokens"]


def test_a_failed_request_has_zeros_and_its_error(made: RunResult) -> None:
    found = vllm_result(made, detailed=True)
    failed = [row for row, error in enumerate(found["errors"]) if error]
    assert failed and all(
        (found["ttfts"][row], found["itls"][row], found["latencies"][row]) == (0, [], 0) for row in failed
    )


def test_what_is_not_known_is_null() -> None:
    found = vllm_result(analyse_run(sample_runs.without_completions()), detailed=True)
    assert found["mean_ttft_ms"] is found["p99_e2el_ms"] is found["max_concurrent_requests"] is None
    assert vllm_result(analyse_run(sample_runs.without_energy()), detailed=False)["measured_joules"] is None
