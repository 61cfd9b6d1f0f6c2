"""An engine's page: which lines count, and what they mean, engine by engine."""

import time

import pytest

from loadgen.telemetry.engine_page import EnginePage, parse_page, unread_reason


@pytest.mark.parametrize(
    ("page", "values"),
    [
        (b'vllm:generation_tokens_total{engine="0"} 5.0', {"generation_tokens": 5.0}),
        (b"# HELP vllm:generation_tokens_total Of 1\nvllm:generation_tokens_total_created 1.7e9\n", {}),
        (b'vllm:num_requests_running{engine="0"} 2\nvllm:num_requests_running{engine="1"} 3\n', {"running": 5.0}),
        (b"tgi_batch_current_size 7\ntgi_queue_size 1e1\n", {"running": 7.0, "waiting": 10.0}),
        (b"vllm:generation_tokens 5\n", {"generation_tokens": 5.0}),
        (b"vllm_generation_tokens_total 5\n", {"generation_tokens": 5.0}),
        (b"vllm:generation_tokens_total 5 1700000000000\r\n", {"generation_tokens": 5.0}),
        (b'vllm:generation_tokens_total{model_name="a}\\" 7"} 5\n', {"generation_tokens": 5.0}),
        (b'vllm:generation_tokens_total_bucket{le="1"} 5\nvllm:prompt_tokens_by_source_total 1\n', {}),
        (b"vllm:generation_tokens_total NaN\nvllm:prompt_tokens_total +Inf\n", {}),
        (b"vllm:generation_tokens_total 1e999\nvllm:prompt_tokens_total 1e\nvllm:num_requests_running -\n", {}),
        (b'vllm:kv_cache_usage_perc{engine="0"} 0.25\nvllm:kv_cache_usage_perc{engine="1"} 0.5\n',
         {"kv_cache_usage": 0.5}),
    ],
)  # fmt: skip
def test_lines_that_are_known_count_and_equal_names_are_added(page: bytes, values: dict[str, float]) -> None:
    assert parse_page(page) == EnginePage("vLLM" if b"vllm" in page else "TGI", values)


VLLM = b"""# TYPE vllm:iteration_tokens_total histogram
vllm:iteration_tokens_total_bucket{le="1.0",model_name="m"} 3.0
vllm:iteration_tokens_total_count{model_name="m"} 40.0
vllm:iteration_tokens_total_sum{model_name="m"} 999.0
vllm:prompt_tokens_total{model_name="m"} 1e+06
vllm:prompt_tokens_cached_total{model_name="m"} 5.0
vllm:prefix_cache_queries_total{model_name="m"} 9.0
vllm:prefix_cache_hits_total{model_name="m"} 6.0
vllm:generation_tokens_total{model_name="m"} 7.5
vllm:num_requests_running{model_name="m"} 2.0
vllm:num_requests_waiting{model_name="m"} 1.0
vllm:num_requests_waiting_by_reason{model_name="m",reason="capacity"} 1.0
vllm:num_preemptions_total{model_name="m"} 4.0
vllm:kv_cache_usage_perc{model_name="m"} 0.5
"""
OLDER_VLLM = b"""vllm:prompt_tokens_total 100
vllm:gpu_prefix_cache_queries_total 100
vllm:gpu_prefix_cache_hits_total 60
vllm:gpu_cache_usage_perc 0.25
"""
SGLANG = b"""sglang:prompt_tokens_total{is_streaming="true",model_name="m"} 100.0
sglang:prompt_tokens_total{is_streaming="false",model_name="m"} 20.0
sglang:generation_tokens_total{is_streaming="true",model_name="m"} 7.0
sglang:cached_tokens_total{cache_source="device",model_name="m"} 30.0
sglang:cached_tokens_total{cache_source="host",model_name="m"} 5.0
sglang:num_running_reqs{engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 2.0
sglang:num_running_reqs{engine_type="unified",model_name="m",pp_rank="0",tp_rank="1"} 2.0
sglang:num_queue_reqs{dp_rank="0",tp_rank="0"} 1.0
sglang:num_queue_reqs{dp_rank="1",tp_rank="1"} 3.0
sglang:num_retracted_reqs{tp_rank="0"} 9.0
sglang:num_retracted_requests_total{tp_rank="0"} 4.0
sglang:token_usage{tp_rank="0"} 0.25
sglang:cache_hit_rate{tp_rank="0"} 0.5
"""
TRTLLM = b"""trtllm_prompt_tokens_total{engine_type="trtllm",model_name="m"} 100
trtllm_prompt_cached_tokens_total{model_name="m"} 60
trtllm_prompt_cached_tokens_per_request_bucket{le="0",model_name="m"} 1
trtllm_prompt_cached_tokens_per_request_sum{model_name="m"} 60
trtllm_generation_tokens_total{model_name="m"} 7
trtllm_num_requests_running{model_name="m"} 2
trtllm_num_requests_waiting{model_name="m"} 1
trtllm_kv_cache_utilization{model_name="m"} 0.5
trtllm_kv_cache_hit_rate{model_name="m"} 0.9
"""
LMDEPLOY = b"""lmdeploy:num_requests_running{engine="0",model_name="m"} 2.0
lmdeploy:num_requests_waiting{engine="0",model_name="m"} 1.0
lmdeploy:gpu_cache_usage_perc{engine="0",model_name="m"} 0.5
lmdeploy:prompt_tokens_total{engine="0",model_name="m"} 100.0
lmdeploy:generation_tokens_total{engine="0",model_name="m"} 7.0
lmdeploy:iteration_tokens_total_count{engine="0",model_name="m"} 40.0
"""
TGI = b"""tgi_request_input_length_sum 10
tgi_request_input_length_count 3
tgi_request_generated_tokens_sum 20
tgi_batch_current_size 2
tgi_queue_size 1
"""
TRANSFORMERS = b"""transformers:iterations_total 6
transformers:prompt_tokens_total 10
transformers:generation_tokens_total 20
transformers:num_requests_running 2
transformers:num_requests_waiting 1
"""
OLDER_LLAMACPP = b"""llamacpp:prompt_tokens_total 10
llamacpp:prompt_tokens_seconds 77
llamacpp:tokens_predicted_total 20
llamacpp:n_decode_total 6
llamacpp:requests_processing 2
llamacpp:requests_deferred 1
"""
DYNAMO = b"""dynamo_frontend_active_requests{model="m"} 5
dynamo_frontend_inflight_requests{model="m"} 5
dynamo_frontend_queued_requests{model="m"} 2
dynamo_frontend_output_tokens_total{model="m"} 7
dynamo_frontend_input_sequence_tokens_sum{model="m"} 100
dynamo_frontend_cached_tokens_sum{model="m"} 60
"""
NIM = b"""num_requests_running{model_name="m"} 2.0
num_requests_waiting{model_name="m"} 1.0
gpu_cache_usage_perc{model_name="m"} 0.5
prompt_tokens_total{model_name="m"} 100.0
generation_tokens_total{model_name="m"} 7.0
process_open_fds 47.0
"""


@pytest.mark.parametrize(
    ("page", "engine", "values"),
    [
        (VLLM, "vLLM",
         {"iterations": 40.0, "prompt_tokens": 1e6, "cached_tokens": 5.0, "generation_tokens": 7.5, "running": 2.0,
          "waiting": 1.0, "preemptions": 4.0, "kv_cache_usage": 0.5}),
        (OLDER_VLLM, "vLLM", {"prompt_tokens": 100.0, "cached_tokens": 60.0, "kv_cache_usage": 0.25}),
        (SGLANG, "SGLang",
         {"prompt_tokens": 120.0, "cached_tokens": 35.0, "generation_tokens": 7.0, "running": 2.0, "waiting": 4.0,
          "preemptions": 4.0, "kv_cache_usage": 0.25}),
        (TRTLLM, "TensorRT-LLM",
         {"prompt_tokens": 100.0, "cached_tokens": 60.0, "generation_tokens": 7.0, "running": 2.0, "waiting": 1.0,
          "kv_cache_usage": 0.5}),
        (LMDEPLOY, "LMDeploy",
         {"prompt_tokens": 100.0, "generation_tokens": 7.0, "running": 2.0, "waiting": 1.0, "kv_cache_usage": 0.5}),
        (TGI, "TGI", {"prompt_tokens": 10.0, "generation_tokens": 20.0, "running": 2.0, "waiting": 1.0}),
        (TRANSFORMERS, "Transformers",
         {"iterations": 6.0, "prompt_tokens": 10.0, "generation_tokens": 20.0, "running": 2.0, "waiting": 1.0}),
        (OLDER_LLAMACPP, "llama.cpp",
         {"computed_tokens": 10.0, "generation_tokens": 20.0, "iterations": 6.0, "running": 2.0, "waiting": 1.0}),
        (OLDER_LLAMACPP + b"llamacpp:prompt_tokens_cached_total 30\n", "llama.cpp",
         {"computed_tokens": 10.0, "cached_tokens": 30.0, "prompt_tokens": 40.0, "generation_tokens": 20.0,
          "iterations": 6.0, "running": 2.0, "waiting": 1.0}),
        (DYNAMO, "Dynamo",
         {"prompt_tokens": 100.0, "cached_tokens": 60.0, "generation_tokens": 7.0, "running": 3.0, "waiting": 2.0}),
        (NIM, "NIM",
         {"prompt_tokens": 100.0, "generation_tokens": 7.0, "running": 2.0, "waiting": 1.0, "kv_cache_usage": 0.5}),
    ],
    ids=["vllm", "older vllm", "sglang", "trtllm", "lmdeploy", "tgi", "transformers", "older llamacpp", "llamacpp",
         "dynamo", "nim"],
)  # fmt: skip
def test_each_engines_names_become_the_same(page: bytes, engine: str, values: dict[str, float]) -> None:
    assert parse_page(page) == EnginePage(engine, values)


def test_sglang_shows_no_cached_tokens_before_the_first_and_that_is_zero() -> None:
    page = b'sglang:prompt_tokens_total{model_name="m"} 100.0\n'
    assert parse_page(page) == EnginePage("SGLang", {"prompt_tokens": 100.0, "cached_tokens": 0.0})
    assert parse_page(b"sglang:num_queue_reqs 1\n") == EnginePage("SGLang", {"waiting": 1.0}), "nothing counted yet"


def test_an_engine_counts_once_although_the_system_around_it_has_names_of_its_own() -> None:
    page = parse_page(DYNAMO + VLLM + NIM)
    assert page is not None and (page.engine, page.values["generation_tokens"]) == ("vLLM", 7.5)


@pytest.mark.parametrize(
    ("page", "engine"),
    [
        (b"# HELP trtllm_request_success_total Count\n# TYPE trtllm_request_success_total counter\n", "TensorRT-LLM"),
        (b'dynamo_frontend_model_context_length{model="m"} 4096\n', "Dynamo"),
    ],
)
def test_a_page_is_known_by_its_prefix_before_anything_is_counted(page: bytes, engine: str) -> None:
    assert parse_page(page) == EnginePage(engine, {})


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        (b"", None),
        (b"\n", None),
        (b"# TYPE http_requests counter\n", None),
        (b'[{"iter": 1}]', "JSON, not Prometheus text"),
        (b'\n{"detail": "x"}', "JSON, not Prometheus text"),
        (b"<html>", "HTML, not Prometheus text"),
        (b"\x00\xff", "not Prometheus text"),
        (b"up 1\nprocess_open_fds 47\n", "no name of an engine that is known"),
        (b"prompt_tokens_total 5\n", "no name of an engine that is known"),
    ],
)
def test_a_page_of_no_engine_has_a_reason_unless_it_may_become_one(page: bytes, reason: str | None) -> None:
    assert parse_page(page) is None
    assert unread_reason(page) == reason


@pytest.mark.parametrize("part", [b"{" * 100, b'{a="', b'\\"' * 50, b"1" * 100, b" " * 100, b'x="",' * 20])
def test_hostile_lines_cost_no_more_than_their_length(part: bytes) -> None:
    def seconds(count: int) -> float:
        page = b"vllm:prompt_tokens_total{" + part * count + b"\n"
        start = time.process_time()
        parse_page(page)
        return time.process_time() - start

    assert seconds(8_000) < 40 * max(seconds(1_000), 1e-3), "eight times the bytes: 64 times the work if quadratic"
