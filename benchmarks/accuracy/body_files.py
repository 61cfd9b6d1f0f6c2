"""Files of every format with words, each with the bodies that have to reach the server for them, byte for byte.

The bodies are put together here from the bytes of the files, by nothing of loadgen's. As given means:

* A whole body arrives as it is, blanks included, if its model, stream and stream_options are already those that the run
  sends. Otherwise these are put in, and every other field keeps its place and each byte of its value.
* Messages, a prompt, and the API's fields beside them keep each byte of their values, behind the fields of the run.
* Texts that a format keeps inside another (the cells of a table, JSON in a text of OTLP) arrive as the same characters.
"""

import csv
import io
import json
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

MODEL = "truth"
FIXED = {"model": b'"truth"', "stream": b"true", "stream_options": b'{"include_usage":true}'}
"""The fields that a run puts into a whole body."""

Fields = dict[str, bytes]
Row = tuple[bytes, list[bytes]]
"""The text of one row in a file, and the bodies of its requests."""

_PIECES = (
    b" word", "café".encode(), rb"caf\u00e9", "\N{GRINNING FACE}".encode(), rb"\ud83d\ude00", rb"\/", rb"\u0000",
    rb"\t", rb"\n", rb"\"", rb"\\", rb"\"stream\": false", rb"\", \"max_tokens\": 1, \"", b"}]{[,:", rb"\u007f",
    "\u2028".encode(),
)  # fmt: skip
_HALVES = (rb"\ud83d", rb"\uDE00 x")
_CHARACTERS = (*"\"'\\\n\t,{]\x01 é\u2028\N{GRINNING FACE}", "\r\n", " word")


class Wild(Random):
    """Draws JSON that an encoder would write in another way."""

    halves = True
    """True where half a surrogate pair may be."""

    def blank(self) -> bytes:
        return self.choice((b"", b"", b"", b" ", b"  ", b"\t"))

    def text(self, longest: int = 30) -> bytes:
        pieces = _PIECES + _HALVES if self.halves else _PIECES
        return b'"' + b"x" + b"".join(self.choices(pieces, k=self.randrange(longest))) + b'"'

    def characters(self, longest: int = 30) -> str:
        return "x" + "".join(self.choices(_CHARACTERS, k=self.randrange(longest))) + "x"

    def object(self, fields: Mapping[str, bytes]) -> bytes:
        parts = (b'%b"%b"%b:%b%b%b' % (self.blank(), name.encode(), self.blank(), self.blank(), value, self.blank())
                 for name, value in fields.items())  # fmt: skip
        return b"{" + b",".join(parts) + b"}"

    def list(self, values: Sequence[bytes]) -> bytes:
        return b"[" + b",".join(self.blank() + value + self.blank() for value in values) + b"]"

    def some(self, fields: Fields, share: float = 0.5) -> Fields:
        """Return some of the fields, in another order."""
        names = [name for name in fields if self.random() < share]
        self.shuffle(names)
        return {name: fields[name] for name in names}

    def number(self) -> bytes:
        return self.choice((b"0.70", b"1.0", b"1", b"5e-1", b"1E0", b"0.30000000000000004"))

    def messages(self) -> bytes:
        question = self.object({"role": b'"user"', "content": self.content()})
        call = {
            "id": b'"c1"',
            "type": b'"function"',
            "function": self.object({"name": b'"f"', "arguments": self.text()}),
        }
        called = {"role": b'"assistant"', "content": b"null", "tool_calls": self.list([self.object(call)])}
        result = {"role": b'"tool"', "tool_call_id": b'"c1"', "content": self.text()}
        system = [self.object({"content": self.text(), "role": b'"system"'})] if self.random() < 0.5 else []
        with_tool = [self.object(called), self.object(result)] if self.random() < 0.3 else []
        return self.list([*system, question, *with_tool])

    def content(self) -> bytes:
        """Return a text, or a list with an image."""
        if self.random() < 0.8:
            return self.text()
        url = b'"data:image/png;base64,' + b64encode(self.randbytes(self.randrange(400))) + b'"'
        parts = [
            self.object({"type": b'"text"', "text": self.text()}),
            self.object({"type": b'"image_url"', "image_url": self.object({"url": url})}),
        ]
        return self.list(parts)

    def sampling(self) -> Fields:
        """Return fields of the API that may stand beside messages or a prompt."""
        schema = self.object({"type": b'"object"', "properties": self.object({"city": b'{"type" : "string"}'})})
        tool = self.object({"type": b'"function"', "function": self.object({"name": b'"f"', "parameters": schema})})
        wanted = self.object({"type": b'"json_schema"', "json_schema": self.object({"name": b'"a"', "schema": schema})})
        return self.some({
            "temperature": self.number(), "tools": self.list([tool]), "response_format": wanted, "seed": b"7",
            "stop": self.list([self.text(5)]), "logit_bias": b'{ "5" : -1.0e2 }', "user": self.text(4),
        })  # fmt: skip

    def body(self) -> Row:
        """Return a whole body, which may have the fields of a run already, and the one that is sent for it."""
        words = {"messages": self.messages()} if self.random() < 0.7 else {"prompt": self.text()}
        own = {"n": b"1", "big": b"1e400", "metadata": b'{ "a" : [ ] }', "max_tokens": b"3", "user": self.text(5)}
        fits = self.random() < 0.3
        routed = FIXED if fits else self.some(FIXED | {"model": b'"gpt-4o"', "stream": b"false"})
        names = list(fields := words | routed | self.some(own))
        self.shuffle(names)
        fields = {name: fields[name] for name in names}
        given = self.object(fields)
        return given, [given if fits else compact(fields | FIXED)]


def compact(fields: Mapping[str, bytes]) -> bytes:
    return b"{" + b",".join(b'"%b":%b' % (name.encode(), value) for name, value in fields.items()) + b"}"


def sent(words: Mapping[str, bytes], limit: int | None = None, length: int | None = None, model: str = MODEL) -> bytes:
    """Return the body for words: for `length` tokens, or for an answer that ends by itself, after `limit` at most."""
    fields = {"model": json.dumps(model).encode(), "stream": b"true", "stream_options": b'{"include_usage":true}'}
    tokens = limit if length is None else length
    if tokens is not None:
        fields["max_tokens"] = b"%d" % tokens
    if length is not None:
        fields |= {"ignore_eos": b"true", "min_tokens": b"%d" % length}
    return compact(fields | words)


def dumped(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def said(role: str, text: bytes) -> bytes:
    return compact({"role": b'"%b"' % role.encode(), "content": text})


# -- rows of each format ----------------------------------------------------------------------------------------------


def _worded(wild: Wild, words: Fields) -> Row:
    limit = wild.randrange(1, 9) if wild.random() < 0.5 else None
    model = f"lora-{wild.randrange(3)}" if wild.random() < 0.3 else None
    beside = wild.sampling()
    fields = words | beside | {"answer": wild.text(), "workload": b'"chat"', "headers": b'{"X-Tenant": "a"}'}
    if limit is not None:
        fields["max_tokens"] = b"%d" % limit
    if model is not None:
        fields["model"] = b'"%b"' % model.encode()
    return wild.object(fields), [sent(words | beside, limit, model=model or MODEL)]


def messages_row(wild: Wild, index: int) -> Row:
    return _worded(wild, {"messages": wild.messages()})


def prompt_row(wild: Wild, index: int) -> Row:
    return _worded(wild, {"prompt": wild.text() if index % 4 else b"[ 1, 22,333 ]"})


def body_row(wild: Wild, index: int) -> Row:
    given, bodies = wild.body()
    return wild.object({"body": given, "workload": b'"own"'}), bodies


def batch_row(wild: Wild, index: int) -> Row:
    given, bodies = wild.body()
    url = b'"/v1/chat/completions"' if b'"messages"' in given else b'"/v1/completions"'
    return wild.object({"custom_id": b'"request-%d"' % index, "method": b'"POST"', "url": url, "body": given}), bodies


def sharegpt_row(wild: Wild, index: int) -> Row:
    """Return a conversation of one to three questions; each is a request with all that was said before it."""
    turns, spoken, bodies = [], [], []
    for _ in range(index % 3 + 1):
        asked, answer = wild.text(), wild.text()
        turns += [wild.object({"from": b'"human"', "value": asked}), wild.object({"from": b'"gpt"', "value": answer})]
        spoken.append(said("user", asked))
        bodies.append(sent({"messages": b"[%b]" % b",".join(spoken)}))
        spoken.append(said("assistant", answer))
    return wild.object({"id": b'"s_%d"' % index, "conversations": wild.list(turns)}), bodies


def chat_row(wild: Wild, index: int) -> Row:
    spoken = [("system", wild.text()), ("user", wild.content()), ("assistant", wild.text())]
    turns = [wild.object({"role": b'"%b"' % role.encode(), "content": text}) for role, text in spoken]
    row = {"messages": wild.list(turns), "source": b'"x"', "score": b"1.5"}
    return wild.object(row), [sent({"messages": b"[%b]" % b",".join(said(*turn) for turn in spoken[:2])})]


def single_turn_row(wild: Wild, index: int) -> Row:
    text, url = wild.text(), b'"data:image/png;base64,' + b64encode(wild.randbytes(90)) + b'"'
    if index % 2:
        return wild.object({"text": text, "output_length": b"5"}), [
            sent({"messages": b"[%b]" % said("user", text)}, length=5)
        ]
    parts = b'[{"type":"text","text":%b},{"type":"image_url","image_url":{"url":%b}}]' % (text, url)
    return wild.object({"text": text, "image": url}), [sent({"messages": b"[%b]" % said("user", parts)})]


def multi_turn_row(wild: Wild, index: int) -> Row:
    system, text = wild.text(), wild.text()
    turns = [wild.object({"role": b'"system"', "text": system}), wild.object({"text": text})]
    spoken = b"[%b,%b]" % (said("system", system), said("user", text))
    return wild.object({"session_id": b'"%d"' % index, "turns": wild.list(turns)}), [sent({"messages": spoken})]


def raw_payload_row(wild: Wild, index: int) -> Row:
    return wild.body()


def inputs_row(wild: Wild, index: int) -> Row:
    given, bodies = wild.body()
    return wild.object({"session_id": b'"%d"' % index, "payloads": wild.list([given])}), bodies


def mooncake_row(wild: Wild, index: int) -> Row:
    line = {"timestamp": b"%d" % index}
    if index % 3 == 0:
        given, bodies = wild.body()
        return wild.object(line | {"payload": given}), bodies
    if index % 3 == 1:
        words = {"messages": wild.messages()}
        return wild.object(line | words | {"output_length": b"4"}), [sent(words, length=4)]
    text = wild.text()
    return wild.object(line | {"text_input": text}), [sent({"messages": b"[%b]" % said("user", text)})]


def litellm_row(wild: Wild, index: int) -> Row:
    messages, temperature = wild.messages(), wild.number()
    response = wild.object({"choices": wild.list([b'{"message": {"role": "assistant", "content": "a"}}'])})
    call = {
        "call_type": b'"acompletion"', "status": b'"success"', "startTime": b"%d.5" % (1_700_000_000 + index),
        "model": b'"gpt-4o"', "messages": messages, "response": response, "prompt_tokens": b"12",
        "completion_tokens": b"5",
        "model_parameters": wild.object({"temperature": temperature, "max_tokens": b"64", "stream": b"true"}),
    }  # fmt: skip
    return wild.object(call), [sent({"messages": messages, "temperature": temperature}, length=5, model="gpt-4o")]


def otel_row(wild: Wild, index: int) -> Row:
    text = wild.characters()
    parts = [{"role": "user", "parts": [{"type": "text", "content": text}]}]
    stated = {"gen_ai.operation.name": "chat", "gen_ai.input.messages": json.dumps(parts)}
    listed = [{"key": key, "value": {"stringValue": value}} for key, value in stated.items()]
    span = {"name": "chat", "startTimeUnixNano": str(10**18 + index), "attributes": listed}
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}).encode(), [
        sent({"messages": dumped([{"role": "user", "content": text}])})
    ]


def csv_row(wild: Wild, index: int) -> Row:
    text = wild.characters()
    csv.writer(line := io.StringIO()).writerow([text, index % 5 + 1])
    return line.getvalue().removesuffix("\r\n").encode(), [sent({"prompt": dumped(text)}, length=index % 5 + 1)]


# -- files ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    row: Callable[[Wild, int], Row]
    suffix: str = ".jsonl"
    before: bytes = b""
    between: bytes = b"\n"
    after: bytes = b"\n"


FORMATS = {
    "messages": Format(messages_row),
    "prompt": Format(prompt_row),
    "body": Format(body_row),
    "openai-batch": Format(batch_row),
    "sharegpt": Format(sharegpt_row, ".json", b"[\n  ", b",\n  ", b"\n]\n"),
    "conversations": Format(chat_row),
    "aiperf-single-turn": Format(single_turn_row),
    "aiperf-multi-turn": Format(multi_turn_row),
    "aiperf-raw-payload": Format(raw_payload_row),
    "aiperf-inputs": Format(inputs_row, ".json", b'{"data": [', b", ", b"]}\n"),
    "aiperf-mooncake": Format(mooncake_row),
    "litellm": Format(litellm_row),
    "otel": Format(otel_row),
    "csv": Format(csv_row, ".csv", b"prompt,output_length\r\n", b"\r\n", b"\r\n"),
    "parquet": Format(csv_row, ".parquet", b"prompt,output_length\r\n", b"\r\n", b"\r\n"),
}


def write(folder: Path, name: str, requests: int, seed: int = 0) -> tuple[Path, list[bytes]]:
    """Write a file of the format with at least so many requests. Return it, and their bodies in its order."""
    format_, wild = FORMATS[name], Wild(f"{name} {seed}")
    path = folder / f"{name}{format_.suffix}"
    bodies: list[bytes] = []
    with path.open("wb") as file:
        for index, row in enumerate(_rows(format_, wild)):
            file.write((format_.between if index else format_.before) + row[0])
            bodies += row[1]
            if len(bodies) >= requests:
                break
        file.write(format_.after)
    if format_.suffix == ".parquet":
        _to_parquet(path)
    return path, bodies


def _rows(format_: Format, wild: Wild) -> Iterator[Row]:
    index = 0
    while True:
        yield format_.row(wild, index)
        index += 1


def _to_parquet(path: Path) -> None:
    """Turn a CSV into a Parquet file, in place."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    table = {"prompt": columns["prompt"], "output_length": [int(cell) for cell in columns["output_length"]]}
    parquet.write_table(arrow.table(table), path)
