"""One's own prompts on real engines: they are as long as they were counted to be, and end where the model ends them."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import uvloop

from loadgen.report.write import finish
from loadgen.results.run_folder import RunResult
from loadgen.run.config import RunConfig
from loadgen.run.progress import NullView
from loadgen.run.replay import replay
from loadgen.workload.schedule import Schedule, build_schedule
from loadgen.workload.sources import read_source
from loadgen.workload.words import WordsFile
from support.engines import Engine

pytestmark = pytest.mark.timeout(900)

CONVERSATIONS = 200
OPENINGS = [
    "Hi!",
    "Explain",
    "  Translate:",
    "What is",
    "def f(x):\n    return",
    "Zähle auf:",
    "比較してください",
    "🙂 ok,",
]
THINGS = [
    "bread",
    "the moon",
    "a < b && c",
    "<|im_end|>",
    "naïve café",
    "0.5e-3",
    "\t\tindent",
    "\N{SNOWMAN}",
    "x" * 10,
]
ANSWERS = ["Sure.", "It depends\n\n- on this\n- on that", "", "I can't say. 🤷", "```python\nprint('hi')\n```"]


def conversations(seed: int) -> list[dict[str, Any]]:
    """Return conversations as ShareGPT has them: most with a system prompt, of one turn or two, short and odd."""
    rng = random.Random(seed)

    def said() -> str:
        return f"{rng.choice(OPENINGS)} {rng.choice(THINGS)}"

    made = []
    for number in range(CONVERSATIONS):
        turns = [{"from": "system", "value": "Be brief."}] if rng.random() < 0.9 else []
        if rng.random() < 0.1:
            turns += [{"from": "human", "value": said()}, {"from": "gpt", "value": rng.choice(ANSWERS)}]
        turns += [{"from": "human", "value": said()}, {"from": "gpt", "value": rng.choice(ANSWERS)}]
        made.append({"id": f"c{number}", "conversations": turns})
    return made


def run_of(engine: Engine, folder: Path, name: str, text: str, **options: Any) -> RunResult:
    """Return the run of a file's first 200 requests, all at once."""
    source, bodies = folder / name, folder / "bodies.jsonl"
    source.write_text(text)
    with bodies.open("wb") as file:
        trace = read_source(source, WordsFile(file), CONVERSATIONS)
    schedule = build_schedule(trace, seed=0, rps=500, arrival="constant")
    config = RunConfig(
        out=folder / "run", base_url=engine.url, energy="none", timeout_s=800, idle_s=0.0, words=bodies, **options
    )

    async def run() -> Schedule:
        return await replay(schedule, config, NullView())

    return finish(config.out, uvloop.run(run()))


def test_prompts_are_as_long_as_they_were_counted_before_the_run(engine: Engine, tmp_path: Path) -> None:
    result = run_of(engine, tmp_path, "sharegpt.json", json.dumps(conversations(18)), max_tokens=1)
    assert [record.error for record in result.records] == [None] * CONVERSATIONS, result.records[0].detail
    counted = [request.input_tokens for request in result.schedule]
    if not engine.recipe.speaks.tokenize:
        assert counted == [None] * CONVERSATIONS
        return
    assert counted == [record.input_tokens for record in result.records]
    assert result.info.server["word_lengths_from"] == "/tokenize"
    assert result.summary is not None and result.summary.lengths is not None
    assert result.summary.lengths.input_max_off == 0
    recorded = [request.output_tokens for request in result.schedule if request.output_tokens is not None]
    assert len(recorded) > CONVERSATIONS / 2, "recorded answers are counted too"


QUESTIONS = ["Say hello.", "Name one colour.", "What is 1 + 1? Answer with a number.", "Say yes or no: is water wet?"]


def test_answers_end_where_the_model_ends_them(engine: Engine, tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": question}], "temperature": 0, "seed": i}
        for i, question in enumerate(QUESTIONS)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    result = run_of(engine, tmp_path, "questions.jsonl", text, max_tokens=48)
    assert result.summary is not None and result.summary.endings is not None
    for record in result.records:
        assert record.error is None, record.detail
        assert record.output_tokens is not None and 1 <= record.output_tokens <= 48
        assert (record.finish_reason == "length") == (record.output_tokens == 48)
    if engine.recipe.name == "llamacpp":  # the others' models are made up
        assert any(record.finish_reason == "stop" for record in result.records)
    (lengths,) = [check for check in result.summary.verdict.checks if check.name == "lengths"]
    assert lengths.status in ("ok", None), lengths.reason


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def test_tools_are_part_of_the_prompt_that_is_counted(engine: Engine, tmp_path: Path) -> None:
    if engine.recipe.name not in ("llamacpp", "vllm"):
        pytest.skip("it takes no tools")
    asked = {"messages": [{"role": "user", "content": "What is the weather in Paris?"}], "tools": [WEATHER]}
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Paris"}'}}
    told = [
        *asked["messages"],
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    rows = [asked | {"tool_choice": "none"}, asked | {"messages": told, "tool_choice": "none"}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    result = run_of(engine, tmp_path, "tools.jsonl", text, max_tokens=4)
    for record, request in zip(result.records, result.schedule, strict=True):
        assert record.error is None, record.detail
        assert record.input_tokens == request.input_tokens


def test_a_response_is_counted_and_measured(engine: Engine, tmp_path: Path) -> None:
    if engine.recipe.name not in ("sim", "llamacpp", "vllm"):
        pytest.skip("it has no /v1/responses that counts")
    rows = [
        {"messages": [{"role": "user", "content": "Say hello."}]},
        {"body": {"input": "Say hello.", "max_output_tokens": 20, "temperature": 0}, "url": "/v1/responses"},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    result = run_of(engine, tmp_path, "responses.jsonl", text, max_tokens=20, endpoint="responses")
    for record, request in zip(result.records, result.schedule, strict=True):
        assert record.error is None, record.detail
        assert record.output_tokens is not None and 1 <= record.output_tokens <= 20
        assert record.chunk_ns and record.token_source == "usage"
        assert record.input_tokens == request.input_tokens
