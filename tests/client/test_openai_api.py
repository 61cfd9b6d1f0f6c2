"""What each server really sends, as a table. Recorded from vLLM 0.32, llama.cpp, transformers 5.23, SGLang 0.5, TGI."""

import json

import pytest

from loadgen.client.openai_api import (
    MAX_TOKENS,
    ROLE,
    TEXTLESS,
    TOKENS,
    Dialect,
    ProtocolError,
    StreamEvent,
    Usage,
    _Details,
    error_of_body,
    is_error_body,
    is_failure,
    parse_answer,
    parse_event,
    payload,
)
from loadgen.client.sse import ErrorEvent
from loadgen.record import Endpoint, Kind

EVENTS = [
    # (what it is, data, has_content, finish_reason, tokens counted by the server, error)
    ("vLLM role chunk", '{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}', False, None, None, None),
    ("vLLM token", '{"choices":[{"delta":{"content":"Hi"},"finish_reason":null}]}', True, None, None, None),
    ("last token", '{"choices":[{"delta":{"content":"."},"finish_reason":"length"}]}', True, "length", None, None),
    ("usage", '{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5}}', False, None, 5, None),
    ("SGLang usage null", '{"choices":[{"text":" a"}],"usage":null}', True, None, None, None),
    ("llama.cpp first", '{"choices":[{"delta":{"role":"assistant","content":null}}]}', False, None, None, None),
    ("llama.cpp null event", "null", False, None, None, None),
    ("transformers", '{"choices":[{"delta":{},"finish_reason":"stop"}],"usage":{"completion_tokens":2}}',
     False, "stop", 2, None),
    ("reasoning", '{"choices":[{"delta":{"reasoning_content":"hm"}}]}', True, None, None, None),
    ("tool call", '{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}', True, None, None, None),
    ("completions", '{"choices":[{"text":"","finish_reason":"stop"}]}', False, "stop", None, None),
    ("two choices", '{"choices":[{"delta":{}},{"delta":{"content":"x"}}]}', True, None, None, None),
    ("vLLM error event", '{"error":{"message":"boom","code":500}}', False, None, None, "boom"),
    ("SGLang error", '{"object":"error","message":"bad"}', False, None, None, "bad"),
    ("TGI error", '{"error":"Request failed","error_type":"generation"}', False, None, None, "Request failed"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "content", "finish", "counted", "error"), EVENTS, ids=[e[0] for e in EVENTS])
def test_events(
    name: str, data: str, content: bool, finish: str | None, counted: int | None, error: str | None
) -> None:
    event = parse_event(data.encode())
    assert (event.has_content, event.finish_reason, event.error, event.done) == (content, finish, error, False)
    assert (event.usage.completion_tokens if event.usage else None) == counted


@pytest.mark.parametrize("data", [b"[DONE]", b" [DONE] "])
def test_done(data: bytes) -> None:
    assert parse_event(data).done


@pytest.mark.parametrize(
    "data", [b"{", b"[]", b'"x"', b'{"choices": 3}', b'{"choices":[{"delta":{"content":5}}]}', b"\xff"]
)
def test_bytes_that_are_not_the_api(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_event(data)


def test_cached_tokens() -> None:
    usage = parse_event(b'{"usage":{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":8}}}').usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (9, None, 8)


@pytest.mark.parametrize(
    ("counted", "reasoning", "chunks", "hidden"),
    [
        (214, 200, 14, 200),
        (214, 200, 10, 200),
        (200, 200, 0, 200),
        (214, 200, 214, 0),  # reasoning was sent
        (214, 200, 60, 0),  # several tokens a chunk
        (214, 0, 214, 0),
        (214, None, 14, None),
        (None, 200, 14, None),
        (100, 200, 14, None),  # more of it than of all
        (100, -1, 100, None),
    ],
)
def test_reasoning_is_hidden_when_the_chunks_are_no_more_than_the_other_tokens(
    counted: int | None, reasoning: int | None, chunks: int, hidden: int | None
) -> None:
    counts = {"completion_tokens": counted, "completion_tokens_details": {"reasoning_tokens": reasoning}}
    usage = parse_event(json.dumps({"usage": counts}).encode()).usage
    assert usage is not None
    assert usage.hidden_tokens(chunks) == hidden


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error":{"message":"no such model"}}', "no such model"),
        (b'{"detail":"Not authenticated"}', "Not authenticated"),
        (b'{"detail":[{"loc":["x"]}]}', '[{"loc":["x"]}]'),
        (b"<h1>Bad gateway</h1>", "<h1>Bad gateway</h1>"),
        (b"\xff", "\ufffd"),
        (b"", ""),
    ],
)
def test_error_bodies(body: bytes, text: str) -> None:
    assert error_of_body(body) == text


def test_payload_says_how_long_the_answer_is_in_every_way_the_server_takes() -> None:
    body = json.loads(payload("chat", "m", "hello", 7, Dialect(), {}))
    assert body["messages"] == [{"role": "user", "content": "hello"}]
    assert (body["max_tokens"], body["min_tokens"], body["ignore_eos"]) == (7, 7, True)
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}


def test_payload_of_a_plain_server() -> None:
    body = json.loads(payload("completions", "m", "hello", 7, Dialect(False, False, False), {"temperature": 0}))
    assert body == {"model": "m", "prompt": "hello", "max_tokens": 7, "stream": True, "temperature": 0}


def test_extra_body_wins() -> None:
    assert json.loads(payload("chat", "m", "p", 7, Dialect(), {"ignore_eos": False}))["ignore_eos"] is False


FINISHED = b'{"choices":[{"delta":{"content":"x"},"finish_reason":"stop"}],"usage":{"completion_tokens":2}}'


@pytest.mark.parametrize("field", ["content", "reasoning_content", "reasoning"])
@pytest.mark.parametrize(("value", "content"), [('"a"', True), ('" "', True), ('""', False), ("null", False)])
def test_each_text_field_of_a_delta_counts_if_it_is_not_empty(field: str, value: str, content: bool) -> None:
    event = parse_event(f'{{"choices":[{{"delta":{{"{field}":{value}}}}}]}}'.encode())
    assert event == (TOKENS["answer" if field == "content" else "reasoning"] if content else TEXTLESS)


KINDS = [
    ("DeepSeek, vLLM", '{"delta":{"reasoning_content":"hm"}}', "reasoning"),
    ("vLLM 0.11, OpenRouter", '{"delta":{"reasoning":"hm","content":null}}', "reasoning"),
    ("Ollama", '{"delta":{"thinking":"hm","content":""}}', "reasoning"),
    ("the last thought and the first word in one chunk", '{"delta":{"reasoning":"hm","content":"a"}}', "answer"),
    ("Mistral, a thought", '{"delta":{"content":[{"type":"thinking","thinking":[{"type":"text","text":"hm"}]}]}}',
     "reasoning"),
    ("a part that is named a thought", '{"delta":{"content":[{"type":"reasoning","text":"hm"}]}}', "reasoning"),
    ("Mistral, a thought and a text",
     '{"delta":{"content":[{"type":"thinking","thinking":"hm"},{"type":"text","text":"a"}]}}', "answer"),
    ("an empty part", '{"delta":{"content":[{"type":"text","text":""}]}}', None),
    ("a refusal", '{"delta":{"refusal":"No"}}', "answer"),
    ("a call", '{"delta":{"content":null,"tool_calls":[{"index":0,"function":{"name":"f"}}]}}', "tools"),
    ("a thought beside a call", '{"delta":{"reasoning":"hm","tool_calls":[{"index":0}]}}', "tools"),
    ("a call of before tools", '{"delta":{"function_call":{"arguments":"{"}}}', "tools"),
    ("a text beside a call", '{"delta":{"content":"a","tool_calls":[{"index":0}]}}', "answer"),
    ("completions", '{"text":"<think>"}', "answer"),
    ("two choices", '{"delta":{"reasoning":"hm"}},{"delta":{"tool_calls":[{"index":0}]}}', "tools"),
]  # fmt: skip


@pytest.mark.parametrize(("choices", "kind"), [row[1:] for row in KINDS], ids=[row[0] for row in KINDS])
def test_a_chunk_is_of_the_first_kind_that_it_carries_answer_then_tools_then_reasoning(
    choices: str, kind: Kind | None
) -> None:
    event = parse_event(f'{{"choices":[{choices}]}}'.encode())
    assert event.kind == kind
    assert parse_event(f'{{"choices":[{choices}],"usage":{{}}}}'.encode()).kind == kind


USAGES = [
    ("OpenAI", '{"prompt_tokens":9,"completion_tokens":8,"prompt_tokens_details":{"audio_tokens":4,"cached_tokens":0},'
     '"completion_tokens_details":{"reasoning_tokens":5,"audio_tokens":2}}', (5, 2, 4, None)),
    ("xAI's images", '{"prompt_tokens":9,"completion_tokens":8,"prompt_tokens_details":{"image_tokens":7},'
     '"completion_tokens_details":{"reasoning_tokens":0}}', (0, None, None, 7)),
    ("SGLang", '{"completion_tokens":8,"reasoning_tokens":3}', (3, None, None, None)),
    ("SGLang without a parser", '{"completion_tokens":8,"reasoning_tokens":0}', (None, None, None, None)),
    ("more than the answer has", '{"completion_tokens":8,"reasoning_tokens":9}', (None, None, None, None)),
    ("none", '{"completion_tokens":8}', (None, None, None, None)),
]  # fmt: skip


@pytest.mark.parametrize(("usage", "counts"), [row[1:] for row in USAGES], ids=[row[0] for row in USAGES])
def test_usage_counts_reasoning_audio_and_images_where_the_server_does(
    usage: str, counts: tuple[int | None, ...]
) -> None:
    read = parse_event(f'{{"choices":[],"usage":{usage}}}'.encode()).usage
    assert read is not None
    prompt, output = read.prompt_tokens_details, read.completion_tokens_details
    media = (output and output.audio_tokens, prompt and prompt.audio_tokens, prompt and prompt.image_tokens)
    assert (read.thought_tokens, *media) == counts


@pytest.mark.parametrize(
    ("choice", "content"),
    [
        ('{"text":"a"}', True),
        ('{"text":""}', False),
        ('{"text":"","delta":{"content":"a"}}', True),
        ('{"delta":null}', False),
        ('{"delta":{"tool_calls":[]}}', False),
        ("{}", False),
    ],
)
def test_a_choice_has_content_by_its_text_its_delta_or_a_tool_call(choice: str, content: bool) -> None:
    assert parse_event(f'{{"choices":[{choice}]}}'.encode()).has_content is content


def test_only_text_alone_is_the_token_event_itself() -> None:
    """Streams compare by identity, because most events are this one."""
    assert parse_event(b'{"choices":[{"text":"a"}]}') is TOKENS["answer"]
    assert parse_event(FINISHED) == StreamEvent("answer", "stop", Usage(completion_tokens=2))
    assert parse_event(b'{"choices":[{"text":"a"}],"usage":{}}') is not TOKENS["answer"]
    assert parse_event(b'{"choices":[{"text":"a","finish_reason":""}]}') is TOKENS["answer"]


def test_of_several_choices_any_content_and_the_first_finish_reason_count() -> None:
    event = parse_event(
        b'{"choices":[{"text":""},{"text":"","finish_reason":"length"},{"text":"x","finish_reason":"stop"}],'
        b'"usage":{"prompt_tokens":1}}'
    )
    assert event == StreamEvent("answer", "length", Usage(prompt_tokens=1))
    assert parse_event(b'{"choices":[{"text":""},{"text":""}]}') == StreamEvent()


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ('{"error":{"message":"boom"},"choices":[{"text":"a"}]}', "boom"),
        ('{"error":{"detail":"slow"}}', "slow"),
        ('{"error":{"message":"","detail":"second"}}', "second"),
        ('{"error":{"message":{"error":"inner"}}}', "inner"),
        ('{"error":{"code":5}}', '{"code":5}'),
        ('{"error":7}', "7"),
        ('{"object":"error"}', "null"),
        ('{"object":"error","message":"outer","error":{"message":"inner"}}', "inner"),
    ],
)
def test_an_error_event_has_an_error_and_nothing_else(data: str, error: str) -> None:
    assert parse_event(data.encode()) == StreamEvent(error=error)


@pytest.mark.parametrize(
    "data", ['{"object":"chat.completion.chunk","message":"x","choices":[]}', '{"error":null}', "{}"]
)
def test_what_is_no_error_and_has_no_choice_is_nothing(data: str) -> None:
    assert parse_event(data.encode()) == StreamEvent()


def test_a_long_error_and_a_long_page_are_cut() -> None:
    assert error_of_body(b'{"error":"' + b"x" * 600 + b'"}') == "x" * 500
    assert error_of_body(b"y" * 300 + b"  ") == "y" * 200
    assert error_of_body(b"  busy\r\n") == "busy"


@pytest.mark.parametrize(
    ("dialect", "present"),
    [
        (Dialect(), {"ignore_eos", "min_tokens", "stream_options"}),
        (Dialect(ignore_eos=False), {"min_tokens", "stream_options"}),
        (Dialect(min_tokens=False), {"ignore_eos", "stream_options"}),
        (Dialect(include_usage=False), {"ignore_eos", "min_tokens"}),
    ],
)
def test_each_extension_is_one_field_of_the_body(dialect: Dialect, present: set[str]) -> None:
    body = json.loads(payload("completions", "m", "p", 3, dialect, {}))
    assert set(body) - {"model", "prompt", "max_tokens", "stream"} == present


def test_the_prompt_cannot_be_replaced() -> None:
    extra = {"messages": "mine", "prompt": "mine", "max_tokens": 1}
    assert json.loads(payload("chat", "m", "p", 7, Dialect(), extra))["messages"][0]["content"] == "p"
    body = json.loads(payload("completions", "m", "p", 7, Dialect(), extra))
    assert (body["prompt"], body["max_tokens"]) == ("p", 1)


@pytest.mark.parametrize(
    ("delta", "content"),
    [
        ('{"content":[{"type":"text","text":"a"}]}', True),
        ('{"content":[{"type":"text","text":""}]}', False),
        ('{"content":[{"type":"thinking","thinking":[{"type":"text","text":"a"}]}]}', True),
        ('{"content":{"text":"a"}}', True),
        ('{"thinking":"a"}', True),
        ('{"refusal":"a"}', True),
        ('{"function_call":{"name":"f"}}', True),
        ('{"function_call":{"arguments":"{"}}', True),
        ('{"function_call":{}}', False),
        ('{"tool_calls":[{}]}', True),
        ('{"tool_calls":[],"thinking":"","refusal":null}', False),
    ],
)
def test_parts_reasoning_refusals_and_calls_are_content_if_there_is_something_in_them(
    delta: str, content: bool
) -> None:
    assert parse_event(f'{{"choices":[{{"delta":{delta}}}]}}'.encode()).has_content is content


def test_a_choice_that_only_names_its_role_opens_the_answer() -> None:
    assert parse_event(b'{"choices":[{"delta":{"role":"assistant","content":""}}]}') is ROLE
    assert parse_event(b'{"choices":[{"delta":{"role":"assistant","content":"a"}}]}') is TOKENS["answer"]
    assert parse_event(b'{"choices":[{"delta":{"role":"a"},"finish_reason":"stop"}]}') == StreamEvent(
        finish_reason="stop", textless=True, opens=True
    )
    event = parse_event(b'{"choices":[{"delta":{"role":"a","content":"a"},"finish_reason":"stop"}]}')
    assert event == StreamEvent("answer", "stop")


@pytest.mark.parametrize(
    ("reason", "failed"),
    [(None, False), ("stop", False), ("length", False), ("abort", True), ("parse_error", True), ("Timed out", True)],
)
def test_a_finish_reason_may_say_that_the_answer_was_given_up(reason: str | None, failed: bool) -> None:
    assert is_failure(reason) is failed


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ('{"error":""}', ""),
        ('{"detail":"gone"}', "gone"),
        ('{"message":"slow","code":429}', "slow"),
        ('{"message":"hello"}', None),
        ('{"choices":[{"error":{"code":500,"message":"boom"}}]}', "500 boom"),
        ('{"choices":[{"error":{"message":"boom"}}]}', "boom"),
        ('{"choices":[{"error":{"code":429,"message":"429 slow"}}]}', "429 slow"),
        ('{"choices":[{},{"error":"second"}]}', "second"),
        ('{"choices":[{"text":"a"}]}', None),
    ],
)
def test_an_error_without_a_status_is_shown_with_its_code(data: str, error: str | None) -> None:
    assert parse_event(data.encode()).error == error
    assert is_error_body(data.encode()) is (error is not None)


def test_what_is_not_of_the_api_is_no_error_body() -> None:
    assert not is_error_body(b"<h1>Hello</h1>")


@pytest.mark.parametrize(
    ("data", "error"),
    [(b'{"message":"boom"}', "boom"), (b"boom", "boom"), (b"", "an error event without a text")],
)
def test_an_event_that_is_named_error_is_one(data: bytes, error: str) -> None:
    assert parse_event(ErrorEvent(data)) == StreamEvent(error=error)


def test_half_a_character_is_replaced_and_whole_ones_stay() -> None:
    event = parse_event(rb'{"error":"a \ud83d b \ud83d\ude00 \n\u00e9 ' + b'\xe2\x82"}')
    assert event.error == "a \ufffd b \U0001f600 \n\u00e9 \ufffd"


@pytest.mark.parametrize(
    ("count", "known"), [(None, None), (-1, None), (0, None), (1, 1), (MAX_TOKENS, MAX_TOKENS), (MAX_TOKENS + 1, None)]
)
def test_a_count_is_known_if_it_is_above_0_and_not_absurd(count: int | None, known: int | None) -> None:
    usage = Usage(prompt_tokens=count, completion_tokens=count)
    assert (usage.input_tokens, usage.output_tokens) == (known, known)


@pytest.mark.parametrize(
    ("counts", "cached"),
    [
        ('{"prompt_tokens":9}', None),
        ('{"prompt_tokens":9,"prompt_tokens_details":{}}', None),
        ('{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":0}}', 0),
        ('{"prompt_tokens":0,"prompt_tokens_details":{"cached_tokens":8}}', None),
    ],
)
def test_tokens_of_the_cache_are_part_of_a_known_prompt(counts: str, cached: int | None) -> None:
    usage = parse_event(f'{{"usage":{counts}}}'.encode()).usage
    assert usage is not None and usage.cached_tokens == cached


COUNTED = (
    '{"input_tokens":9,"input_tokens_details":{"cached_tokens":4},"output_tokens":5,'
    '"output_tokens_details":{"reasoning_tokens":2},"total_tokens":14}'
)
USAGE_OF_RESPONSE = Usage(9, 5, _Details(cached_tokens=4), _Details(reasoning_tokens=2))


@pytest.mark.parametrize(
    ("data", "event"),
    [
        ('{"type":"response.created","response":{"usage":null,"output":[]},"sequence_number":0}', StreamEvent()),
        ('{"type":"response.output_item.added","item":{"type":"message","content":[]}}', StreamEvent()),
        ('{"type":"response.output_item.added","item":{"type":"message","name":"now"}}', StreamEvent()),
        ('{"type":"response.output_item.added","item":{"type":"function_call"}}', StreamEvent()),
        ('{"type":"response.output_item.added","item":["function_call"]}', StreamEvent()),
        ('{"type":"response.content_part.added","part":{"type":"output_text","text":""}}', StreamEvent()),
        ('{"type":"response.output_text.delta","delta":" word","logprobs":[]}', TOKENS["answer"]),
        ('{"type":"response.output_text.delta","delta":""}', TEXTLESS),
        ('{"type":"response.reasoning_text.delta","delta":"so"}', TOKENS["reasoning"]),
        ('{"type":"response.reasoning_summary_text.delta","delta":"so"}', TOKENS["reasoning"]),
        ('{"type":"response.refusal.delta","delta":"no"}', TOKENS["answer"]),
        ('{"type":"response.function_call_arguments.delta","delta":"{"}', TOKENS["tools"]),
        (
            '{"type":"response.output_item.added","item":{"type":"function_call","name":"now","arguments":""}}',
            TOKENS["tools"],
        ),
        ('{"type":"response.output_text.done","text":"a word"}', StreamEvent()),
        ('{"type":"response.output_item.done","item":{"type":"function_call","name":"now"}}', StreamEvent()),
        (
            '{"type":"response.completed","response":{"usage":' + COUNTED + "}}",
            StreamEvent(finish_reason="stop", usage=USAGE_OF_RESPONSE, done=True),
        ),
        (
            '{"type":"response.incomplete","response":{"incomplete_details":{"reason":"max_output_tokens"},"usage":'
            + COUNTED
            + "}}",
            StreamEvent(finish_reason="length", usage=USAGE_OF_RESPONSE, done=True),
        ),
        (
            '{"type":"response.incomplete","response":{"incomplete_details":{"reason":"content_filter"}}}',
            StreamEvent(finish_reason="content_filter", done=True),
        ),
        ('{"type":"response.completed","response":null}', StreamEvent(finish_reason="stop", done=True)),
        (
            '{"type":"response.failed","response":{"error":{"code":"server_error","message":"oom"}}}',
            StreamEvent(error="server_error oom", done=True),
        ),
        ('{"type":"response.cancelled","response":{}}', StreamEvent(error="response cancelled", done=True)),
        ('{"type":"error","code":null,"message":"too long","param":null}', StreamEvent(error="too long")),
    ],
)
def test_an_event_of_responses_says_what_one_of_chat_would(data: str, event: StreamEvent) -> None:
    assert parse_event(data.encode()) == event


def test_a_response_that_is_not_of_its_shape_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        parse_event(b'{"type":"response.completed","response":{"usage":"much"}}')


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ('{"object":"list","data":[{"embedding":[0.5]}],"usage":{"prompt_tokens":5,"total_tokens":5}}', 5),
        ('{"data":[{"embedding":"AAAA"}],"usage":{"total_tokens":6}}', 6),
        ('{"data":[{}],"usage":{"prompt_tokens":0,"total_tokens":0}}', None),
        ('{"data":[{}],"usage":{"prompt_tokens":"9","total_tokens":4}}', 4),
        ('{"data":[{}]}', None),
        ('{"id":"r","results":[{"index":0,"relevance_score":0.5}],"usage":{"total_tokens":7}}', 7),
        ('{"results":[{"index":0}],"meta":{"tokens":{"input_tokens":8.0}}}', 8),
        ('[{"index":0,"score":0.5}]', None),
    ],
)
def test_an_answer_that_is_one_object_counts_its_prompt(body: str, tokens: int | None) -> None:
    assert parse_answer(body.encode()).input_tokens == tokens


@pytest.mark.parametrize(
    "body", ["", "{", "{}", "[]", "7", '{"data":[]}', '{"data":"x"}', '{"choices":[]}', "[" * 9999]
)
def test_an_answer_without_results_is_none(body: str) -> None:
    with pytest.raises(ProtocolError):
        parse_answer(body.encode())


@pytest.mark.parametrize(
    ("endpoint", "fields"),
    [
        ("responses", {"model", "input", "max_output_tokens", "stream", "ignore_eos", "min_tokens"}),
        ("embeddings", {"model", "input"}),
        ("rerank", {"model", "query", "documents"}),
    ],
)
def test_each_endpoint_has_its_own_fields(endpoint: Endpoint, fields: set[str]) -> None:
    body = json.loads(payload(endpoint, "m", "p", 3, Dialect(max_completion_tokens=True), {"user": "u"}))
    assert set(body) == fields | {"user"}
    assert "p" in (body.get("input"), *body.get("documents", ()))
