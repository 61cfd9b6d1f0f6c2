"""What the static-batch server says of its iterations is the truth that attribution can be held to."""

import asyncio
import json
import urllib.request
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from loadgen.client.client import Client
from loadgen.client.openai_api import Dialect, payload
from loadgen.record import PATHS, RequestRecord
from loadgen.servers.launcher import served
from support.engines import ENGINES, missing

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(missing("transformers") is not None, reason=str(missing("transformers"))),
]
LENGTHS = (3, 9, 5, 12, 7, 4)


def run(url: str, model: str) -> list[RequestRecord]:
    """Six requests at once, of different lengths."""

    async def send() -> list[RequestRecord]:
        async with Client(url, timeout_s=120) as client:
            bodies = [payload("chat", model, "word " * (5 + 3 * i), n, Dialect(), {}) for i, n in enumerate(LENGTHS)]
            return await asyncio.gather(
                *(
                    client.post(PATHS["chat"], body, index=i, workload="t", scheduled_ns=0, request_id=f"batch-{i}")
                    for i, body in enumerate(bodies)
                )
            )

    return asyncio.run(send())


@pytest.mark.parametrize("decoding", ["greedy", "sampled", "beam", "assisted"])
def test_the_iterations_account_for_every_token(decoding: str, tiny_model: Path) -> None:
    options = ["batch=4", "deadline_ms=200", f"decoding={decoding}"]
    flags = [word for option in options for word in ("--engine-option", option)]
    python = str(ENGINES / "transformers" / "bin" / "python")
    with served("transformers", "--python", python, "--model", str(tiny_model), *flags) as url:
        records = run(url, str(tiny_model))
        page = urllib.request.urlopen(url.removesuffix("/v1") + "/batches").read().decode()
    iterations = [json.loads(line) for line in page.splitlines()]
    assert [record.error for record in records] == [None] * 6
    assert tuple(record.output_tokens for record in records) == LENGTHS

    made: dict[str, int] = defaultdict(int)
    batches: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for one in iterations:
        batches[one["batch"]].append(one)
        for request, tokens in zip(one["requests"], one["output_tokens"], strict=True):
            made[request] += tokens
    assert dict(made) == {f"batch-{i}": n for i, n in enumerate(LENGTHS)}
    for of_one in batches.values():
        assert {one["rows"] for one in of_one} == {len(of_one[0]["requests"])}, "a static batch stays as it is"
        assert of_one[0]["rows"] <= (1 if decoding == "assisted" else 4)
        assert of_one[0]["padded_input"] == max(of_one[0]["context_tokens"])
        assert all(a["end_ns"] == b["start_ns"] for a, b in pairwise(of_one)), "iterations tile the batch"
        if decoding in ("greedy", "sampled"):
            longest = max(LENGTHS[int(request.removeprefix("batch-"))] for request in of_one[0]["requests"])
            assert len(of_one) == longest, "as long as its longest member"
            assert of_one[0]["phase"] == "prefill"
    for record in records:
        if decoding in ("greedy", "sampled"):  # the client saw no token before the engine had it
            mine = [one for one in iterations if f"batch-{record.index}" in one["requests"]]
            assert record.first_token_ns is not None and record.first_token_ns >= mine[0]["end_ns"]
