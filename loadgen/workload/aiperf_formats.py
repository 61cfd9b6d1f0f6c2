"""Input files of NVIDIA's AIPerf, as rows of the one trace format: its types single_turn, multi_turn, raw_payload,
inputs_json and mooncake_trace.

The shapes are those of `aiperf/dataset/loader/models.py`, and the messages those that `aiperf/endpoints/
base_endpoint.py` renders for chat (github.com/ai-dynamo/aiperf).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from loadgen.errors import LoadgenError
from loadgen.workload.foreign_rows import NULL, LeftOut, Rows, TimedRow, head, in_time_order, is_null, stated, whole_ns
from loadgen.workload.json_texts import decoded
from loadgen.workload.words import Fields

if TYPE_CHECKING:
    from loadgen.workload.trace import Lines

Raw = msgspec.Raw

_DELAYS = "delays of turns, which are sent when the answer before them ended"


class _Media(msgspec.Struct, forbid_unknown_fields=True):
    """Contents of a kind under a name; the name has no effect on the request."""

    contents: list[Raw]
    name: str = ""


class _Turn(msgspec.Struct, forbid_unknown_fields=True):
    """A turn, or a line of single_turn. Of each kind of content, one field may be given."""

    type: Literal["single_turn", "random_pool"] | None = None
    text: Raw = NULL
    texts: list[Raw] | None = None
    image: Raw = NULL
    images: list[Raw] | None = None
    audio: Raw = NULL
    audios: list[Raw] | None = None
    video: Raw = NULL
    videos: list[Raw] | None = None
    timestamp: float | None = None
    delay: float | None = None
    role: str | None = None
    session_id: str | None = None
    output_length: int | None = None
    extra: Fields | None = None

    def is_system(self) -> bool:
        """Return whether it is the system message of the conversation, which is no request."""
        return (
            self.role == "system" and is_null(self.image) and is_null(self.audio) and not (self.images or self.audios)
        )


class _Session(msgspec.Struct, forbid_unknown_fields=True):
    turns: list[_Turn]
    type: Literal["multi_turn"] | None = None
    session_id: str | None = None


class _MooncakeLine(msgspec.Struct, forbid_unknown_fields=True):
    """A line that has words; those of lengths are `trace.Line`."""

    type: Literal["mooncake_trace"] | None = None
    text_input: Raw = NULL
    messages: Raw = NULL
    payload: Raw = NULL
    tools: Raw = NULL
    message_mode: Literal["history", "delta"] = "history"
    output_length: int | None = None
    timestamp: float | None = None
    delay: float | None = None
    session_id: str | None = None
    extra: Fields | None = None


class _InputsSession(msgspec.Struct):
    session_id: str
    payloads: list[Raw]


class _InputsFile(msgspec.Struct):
    data: list[_InputsSession]


def single_turn_rows(path: Path, lines: Lines, left_out: LeftOut) -> Rows:
    """Yield every line as a message of a chat; lines of a session are turns without a common history."""

    def rows() -> Iterator[TimedRow]:
        for number, turn in decoded(path, lines, msgspec.json.Decoder(_Turn)):
            with_words = {"messages": [_message(path, number, turn)]}
            yield _timed(number, turn, with_words | stated(session_id=turn.session_id), left_out)

    return in_time_order(path, rows(), from_first=False)


def multi_turn_rows(path: Path, lines: Lines, left_out: LeftOut) -> Rows:
    """Yield every turn; one after the first holds only its own message, and continues the session with live answers."""

    def rows() -> Iterator[TimedRow]:
        begun: set[str] = set()
        for number, session in decoded(path, lines, msgspec.json.Decoder(_Session)):
            name = session.session_id or str(number)
            system: list[Any] = []
            for turn in session.turns:
                message = _message(path, number, turn)
                if turn.is_system() and name not in begun:
                    system.append(message)
                    continue
                fields: dict[str, Any] = {"messages": [*system, message], "session_id": name}
                if name in begun:
                    fields["continues"] = True
                begun.add(name)
                system = []
                yield _timed(number, turn, fields, left_out)
            if system:
                raise LoadgenError(f"{path}:{number}: turns: expected a turn of the user after the system's")

    return in_time_order(path, rows(), from_first=False)


def raw_payload_rows(path: Path, lines: Lines, left_out: LeftOut) -> Rows:
    """Yield every line as a request body."""
    for number, body in decoded(path, lines, msgspec.json.Decoder(Raw)):
        yield number, {"body": body}


def inputs_rows(path: Path, lines: Lines, left_out: LeftOut) -> Rows:
    """Yield the payloads of a file inputs.json, session by session."""
    for number, file in decoded(path, lines, msgspec.json.Decoder(_InputsFile)):
        for session in file.data:
            for body in session.payloads:
                yield number, {"body": body, "session_id": session.session_id}


def mooncake_rows(path: Path, lines: Lines, left_out: LeftOut) -> Rows:
    """Yield the lines of a Mooncake trace that has text_input, messages or payload."""

    def rows() -> Iterator[TimedRow]:
        begun: set[str] = set()
        for number, line in decoded(path, lines, msgspec.json.Decoder(_MooncakeLine)):
            fields = stated(session_id=line.session_id, tools=line.tools, messages=line.messages, body=line.payload)
            if not is_null(line.text_input):
                if head(line.text_input) != b'"':
                    raise LoadgenError(f"{path}:{number}: text_input: expected a text")
                fields["messages"] = [{"role": "user", "content": line.text_input}]
            if sum(not is_null(words) for words in (line.text_input, line.messages, line.payload)) != 1:
                raise LoadgenError(f"{path}:{number}: expected one of text_input, messages, payload")
            if line.message_mode == "delta" and line.session_id is not None:
                if line.session_id in begun:
                    fields["continues"] = True
                begun.add(line.session_id)
            yield _timed(number, line, fields, left_out)

    return in_time_order(path, rows(), from_first=False)


def _timed(number: int, turn: _Turn | _MooncakeLine, fields: Mapping[str, Any], left_out: LeftOut) -> TimedRow:
    if turn.delay:
        left_out[_DELAYS] += 1
    time_ns = None if turn.timestamp is None else whole_ns(turn.timestamp, 10**6)
    return TimedRow(number, time_ns, {**fields, **stated(output_length=turn.output_length), **(turn.extra or {})})


def _message(path: Path, number: int, turn: _Turn) -> dict[str, Any]:
    """Return the message of a turn: its text, or the list of its parts. LoadgenError: it is empty or cannot be sent."""
    try:
        texts = _contents("text", turn.text, turn.texts)
        parts: list[dict[str, Any]] = [{"type": "text", "text": text} for text in texts]
        parts += [_url_part("image", raw) for raw in _contents("image", turn.image, turn.images)]
        parts += [_audio_part(raw) for raw in _contents("audio", turn.audio, turn.audios)]
        parts += [_url_part("video", raw) for raw in _contents("video", turn.video, turn.videos)]
    except (ValueError, msgspec.MsgspecError) as err:
        raise LoadgenError(f"{path}:{number}: {err}") from err
    if not parts:
        raise LoadgenError(f"{path}:{number}: expected a text, an image, an audio or a video")
    content = texts[0] if len(parts) == len(texts) == 1 else parts
    return {"role": turn.role or "user", "content": content}


def _contents(kind: str, single: Raw, several: list[Raw] | None) -> list[Raw]:
    """Return the JSON texts of a kind of content. ValueError: they are not texts, or given twice."""
    if not is_null(single) and several is not None:
        raise ValueError(f"{kind} and {kind}s cannot both be given")
    contents = [] if is_null(single) else [single]
    for raw in several or []:
        contents += [raw] if head(raw) == b'"' else msgspec.json.decode(raw, type=_Media).contents
    if any(head(raw) != b'"' for raw in contents):
        raise ValueError(f"{kind}: expected a text")
    return contents


def _url_part(kind: str, raw: Raw) -> dict[str, Any]:
    """Return the part of an image or a video. ValueError: it is not a URL; no file is read that a trace names."""
    if not head(raw, 6)[1:].startswith((b"data:", b"http:", b"https")):
        raise ValueError(f"{kind}: expected a data URL or a URL; a file has to be written into the trace as a data URL")
    return {"type": f"{kind}_url", f"{kind}_url": {"url": raw}}


def _audio_part(raw: Raw) -> dict[str, Any]:
    """Return the part of an audio, given as `wav,BASE64` or as a data URL. ValueError: it is neither."""
    head, mark, data = msgspec.json.decode(raw, type=str).partition(",")
    format_ = head.removeprefix("data:audio/").split(";")[0]
    if not mark or not format_.isalnum():
        raise ValueError("audio: expected FORMAT,BASE64 or a data URL")
    return {"type": "input_audio", "input_audio": {"data": data, "format": format_}}


AIPERF_READERS: dict[str, Callable[[Path, Lines, LeftOut], Rows]] = {
    "aiperf-single-turn": single_turn_rows,
    "aiperf-multi-turn": multi_turn_rows,
    "aiperf-raw-payload": raw_payload_rows,
    "aiperf-inputs": inputs_rows,
    "aiperf-mooncake": mooncake_rows,
}
