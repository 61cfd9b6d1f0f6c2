"""Recorded sessions of coding agents as requests of a trace: lengths, block hashes and think times, without any text.

The format is that of github.com/callanjfox/kv-cache-tester (traces/, docs/trace_replay_tester.md), which AIPerf calls
Weka traces: one JSON object a session, whose `requests` are those of its main thread and, nested, of its sub-agents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import msgspec

from loadgen.errors import LoadgenError
from loadgen.workload.json_texts import first_bytes, json_texts, misfit
from loadgen.workload.prompts import BLOCK_TOKENS
from loadgen.workload.trace import MAX_THINK_S, MAX_TOKENS, Trace, TraceRequest, blocks_fault, fills, opened, shortened

if TYPE_CHECKING:
    from collections import Counter

WORKLOAD = "code"
"""Workload of the requests, which is that of the shipped trace of a coding assistant."""

MAX_DEPTH = 16
"""Deepest nesting of sub-agents that is read."""

CLOCK_S = 1.0
"""Resolution of the recorded instants, which are whole seconds: an answer that ends by so much after the instant of a
request may have ended before it."""

_Seconds = Annotated[float, msgspec.Meta(ge=0, le=MAX_THINK_S)]
_Instant = Annotated[float, msgspec.Meta(ge=0, le=1e10)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class _Call(msgspec.Struct, tag_field="type"):
    """A request. Which types of content it and its answer have says nothing beyond their tokens."""

    t: _Instant
    input_tokens: _Count = msgspec.field(name="in")
    output_tokens: _Count = msgspec.field(name="out")
    hash_ids: tuple[int, ...] = ()
    """Names of its whole blocks, and perhaps of the last one, which is not full."""
    model: _Name | None = None
    api_time: _Seconds | None = None
    """Time to the end of the answer; None: not recorded."""
    think_time: _Seconds | None = None
    """Time between the end of the answer before and this request; None: not recorded."""


class _StreamedCall(_Call, tag="s"):
    pass


class _WholeCall(_Call, tag="n"):
    pass


class _SubAgent(msgspec.Struct, tag_field="type", tag="subagent"):
    """A sub-agent, which runs beside the thread that it is listed in."""

    t: _Instant
    agent_id: _Name
    requests: list[_StreamedCall | _WholeCall | _SubAgent]
    """Their times count from `t`, or, where a publisher has rewritten them, from the start of the session."""
    duration_ms: Annotated[float, msgspec.Meta(ge=0, le=1e12)] | None = None
    tool_tokens: _Count = 0
    system_tokens: _Count = 0


class _Session(msgspec.Struct):
    id: _Name
    block_size: Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)]
    requests: list[_StreamedCall | _WholeCall | _SubAgent]
    hash_id_scope: Literal["local", "global"] = "local"
    """Equal ids are equal text within the session only, or in all sessions."""
    tool_tokens: _Count = 0
    """Tokens of the definitions of tools, with which a prompt begins."""
    system_tokens: _Count = 0
    """Tokens of the system prompt, which follows them."""


_decode = msgspec.json.Decoder(_Session).decode


def holds_sessions(path: Path) -> bool:
    """Return whether `path` is a folder, or a file whose beginning is that of a recorded session."""
    if path.is_dir():
        return True
    if not path.is_file():  # a pipe can be read once
        return False
    with opened(path) as file:
        begin = first_bytes(file)
    names_blocks = b'"block_size"' in begin or b'"hash_ids"' in begin  # whichever field comes first
    return begin[:1] in (b"{", b"[") and b'"requests"' in begin and names_blocks


def session_files(paths: Sequence[Path]) -> list[Path]:
    """Return the files of `paths`, a folder's sorted by name. LoadgenError: a folder has no session in it."""
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        inside = sorted(file for file in path.iterdir() if ".json" in "".join(file.suffixes) and file.is_file())
        if not inside:
            raise LoadgenError(f"{path} is a folder without .json files; expected recorded sessions")
        files += inside
    return files


def read_sessions(
    paths: Sequence[Path], left_out: Counter[str], *, workload: str | None = None, keeps_models: bool = False
) -> Trace:
    """Read recorded sessions, each a file or a line of one, and folders of them, as requests in order of time.

    Requests name the model that recorded them with `keeps_models`, and are then a workload of that name each. Those of
    0 tokens are left out and counted in `left_out`. LoadgenError names the file, its session and the field at fault.
    """
    labels = _Labels()
    requests: list[TraceRequest] = []
    places: dict[str, str] = {}
    for path in session_files(paths):
        with opened(path) as file:
            for place, session in _sessions(path, file):
                first = places.setdefault(session.id, place)
                if first != place:
                    raise LoadgenError(f"{place}: session {shortened(repr(session.id))} is in {first} as well")
                requests += _Reader(place, session, labels, left_out, workload, keeps_models).requests()
    if not requests:
        raise LoadgenError(f"{paths[0]} has no requests in it")
    requests.sort(key=lambda request: request.arrival_s)
    name = paths[0].resolve().name.split(".")[0]
    return Trace(name, tuple(requests), "")


def _sessions(path: Path, file: IO[bytes]) -> Iterator[tuple[str, _Session]]:
    """Yield (place, session) of a file of one session, of a line each, or of a list."""
    for number, text in json_texts(path, file):
        place = f"{path}:{number}"
        try:
            yield place, _decode(text)
        except msgspec.ValidationError as err:
            raise LoadgenError(f"{place}: {misfit(err)}") from err
        except (msgspec.DecodeError, RecursionError) as err:
            if "truncated" in str(err):
                raise LoadgenError(f"{place}: the session ends within its object; the file was cut off") from err
            raise LoadgenError(f"{place}: not a recorded session: {shortened(text)}") from err


class _Labels:
    """Ids of blocks that are equal in all sessions where their text is: numbered as they come."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}

    def of(self, key: Any) -> int:
        return self._numbers.setdefault(key, len(self._numbers))


@dataclass
class _Node:
    """A request of the graph, and what is known of its recorded course."""

    call: _Call
    task: str | None
    start_s: float
    end_s: float | None
    parents: tuple[int, ...]
    think_s: float | None


class _Open(NamedTuple):
    """A request that no later one of its thread waits for yet, and the instant from which one may."""

    node: int
    end_s: float | None


class _Thread(NamedTuple):
    """The main thread of a session, or a sub-agent."""

    entries: Sequence[_Call | _SubAgent]
    zero_s: float
    """Instant from which its times count."""
    place: str
    prefix_tokens: tuple[int, int]
    """Tokens of its tools, and of its system prompt."""
    task: str | None = None
    spawned_by: tuple[int, ...] = ()
    depth: int = 0


class _Reader:
    """Makes the requests of one session."""

    def __init__(
        self,
        place: str,
        session: _Session,
        labels: _Labels,
        left_out: Counter[str],
        workload: str | None,
        keeps_models: bool,
    ) -> None:
        self._place, self._session, self._labels, self._left_out = place, session, labels, left_out
        self._workload, self._keeps_models = workload, keeps_models
        self._nodes: list[_Node] = []
        self._ids: dict[int, int] = {}
        """Labels of the session's own ids."""
        self._shared: set[Any] = set()
        """Blocks of tools and system prompts that it has."""

    def requests(self) -> list[TraceRequest]:
        """Return the requests, each after those that it waits for."""
        session = self._session
        for name in (session.id, *_names(session.requests)):
            if not name.isprintable():
                raise LoadgenError(f"{self._place}: name {shortened(repr(name))}: expected printable characters")
        self._add(_Thread(session.requests, 0.0, "requests", (session.tool_tokens, session.system_tokens)))
        made: list[TraceRequest] = []
        for index, node in enumerate(self._nodes):
            # Never before a parent: the instants of sub-agents are finer than those of the main thread.
            arrival_s = max([node.start_s, *(made[parent].arrival_s for parent in node.parents)])
            model = node.call.model if self._keeps_models else None
            made.append(
                TraceRequest(
                    arrival_s=arrival_s,
                    input_tokens=node.call.input_tokens,
                    output_tokens=node.call.output_tokens,
                    workload=self._workload or model or WORKLOAD,
                    session_id=session.id,
                    prefix_ids=tuple(map(self._label, node.call.hash_ids)),
                    block_tokens=session.block_size if node.call.hash_ids else BLOCK_TOKENS,
                    model=model,
                    request_id=str(index),
                    after=tuple(map(str, node.parents)),
                    think_s=node.think_s,
                    task=node.task,
                    streamed=isinstance(node.call, _StreamedCall),
                )
            )
        return made

    def _add(self, thread: _Thread) -> list[_Open]:
        """Add the requests of a thread and those of its sub-agents.

        A request waits for all before it that nothing waits for yet and whose answers had ended by its instant; beside
        a request that was still running it waits for what that one waits for. A sub-agent waits for the request before
        it. Returns the requests that nothing in the thread waits for.
        """
        if thread.depth > MAX_DEPTH:
            raise LoadgenError(f"{self._place}: {thread.place}: sub-agents are nested deeper than {MAX_DEPTH}")
        in_order = sorted(enumerate(thread.entries), key=lambda item: item[1].t)
        calls = [entry for _, entry in in_order if isinstance(entry, _Call)]
        self._share_prefix(calls, *thread.prefix_tokens)
        ends_s = iter([_end_s(call, following) for call, following in zip_longest(calls, calls[1:])])
        open_: list[_Open] = []
        last: int | None = None
        is_recorded_next = False  # its think time then counts from the end of the last
        for i, entry in in_order:
            place = f"{thread.place}[{i}]"
            if isinstance(entry, _SubAgent):
                by = thread.spawned_by if last is None else (last,)
                open_ += self._add_sub_agent(entry, thread, by, place)
                continue
            end_s = next(ends_s)
            if not self._is_kept(entry, place):
                is_recorded_next = False
                continue
            start_s = thread.zero_s + entry.t
            ended = [item for item in open_ if item.end_s is None or item.end_s <= start_s + CLOCK_S]
            beside = thread.spawned_by if last is None else self._nodes[last].parents
            parents = tuple(sorted(item.node for item in ended)) or beside
            think_s = self._think_s(entry, start_s, parents, last if is_recorded_next else None)
            last, is_recorded_next = len(self._nodes), True
            node = _Node(
                entry, thread.task, start_s, None if end_s is None else thread.zero_s + end_s, parents, think_s
            )
            self._nodes.append(node)
            open_ = [*(item for item in open_ if item not in ended), _Open(last, node.end_s)]
        return open_

    def _add_sub_agent(self, agent: _SubAgent, thread: _Thread, by: tuple[int, ...], place: str) -> list[_Open]:
        """Add the requests of a sub-agent of `thread`. Returns its last ones, which the thread may wait for from the
        instant at which it had the result."""
        name = agent.agent_id if thread.task is None else f"{thread.task}/{agent.agent_id}"
        is_absolute = bool(agent.requests) and min(entry.t for entry in agent.requests) >= agent.t > 0
        zero_s = thread.zero_s if is_absolute else thread.zero_s + agent.t
        tokens = agent.tool_tokens, agent.system_tokens
        last = self._add(_Thread(agent.requests, zero_s, f"{place}.requests", tokens, name, by, thread.depth + 1))
        if agent.duration_ms is None:
            return last
        return [_Open(item.node, thread.zero_s + agent.t + agent.duration_ms / 1000) for item in last]

    def _is_kept(self, call: _Call, place: str) -> bool:
        """Return whether a request can be sent; count it if not. LoadgenError: its ids do not fit its length."""
        block_tokens = self._session.block_size
        if call.hash_ids and not fills(call.input_tokens, len(call.hash_ids), block_tokens):
            fault = blocks_fault(call.input_tokens, call.hash_ids, block_tokens).replace("input_length", "in")
            raise LoadgenError(f"{self._place}: {place}: {fault}")
        if call.input_tokens and call.output_tokens:
            return True
        self._left_out["0 input tokens" if call.input_tokens == 0 else "0 output tokens"] += 1
        return False

    def _think_s(self, call: _Call, start_s: float, parents: tuple[int, ...], before: int | None) -> float | None:
        """Return the time between the last of the parents' answers and a request. `before` is the request from whose
        end its recorded think time counts."""
        ends_s = [(self._nodes[parent].end_s, parent) for parent in parents]
        if not parents:
            return None
        if any(end_s is None for end_s, _ in ends_s):
            return call.think_time if parents == (before,) else None
        last_s, latest = max((end_s or 0.0, parent) for end_s, parent in ends_s)
        if latest == before and call.think_time is not None:
            return call.think_time
        return round(max(0.0, start_s - last_s), 6)

    def _share_prefix(self, calls: Sequence[_Call], tool_tokens: int, system_tokens: int) -> None:
        """Label the blocks of the tools and of the system prompt, with which a thread begins, as those of all threads
        of the same model that have as many tokens of tools, and of both."""
        if self._session.hash_id_scope == "global":
            return
        block_tokens = self._session.block_size
        tool_blocks = tool_tokens // block_tokens
        blocks = (tool_tokens + system_tokens) // block_tokens
        long_enough = [call for call in calls if len(call.hash_ids) >= tool_blocks]
        call = next((call for call in long_enough if len(call.hash_ids) >= blocks), next(iter(long_enough), None))
        if call is None:
            return
        for i, block in enumerate(call.hash_ids[:blocks]):
            tokens = (tool_tokens,) if i < tool_blocks else (tool_tokens, system_tokens)
            key = (call.model, block_tokens, tokens, i)
            if block not in self._ids and key not in self._shared:  # else the session says that they differ
                self._shared.add(key)
                self._ids[block] = self._labels.of(key)

    def _label(self, block: int) -> int:
        if (label := self._ids.get(block)) is None:
            scope = None if self._session.hash_id_scope == "global" else self._session.id
            label = self._ids[block] = self._labels.of((scope, block))
        return label


def _end_s(call: _Call, following: _Call | None) -> float | None:
    """Return the end of an answer on its thread's clock: as recorded, or by the think time of the request that follows
    in the thread. None: not known."""
    if call.api_time is not None:
        return call.t + call.api_time
    if following is None or following.think_time is None:
        return None
    return max(call.t, following.t - following.think_time)


def _names(entries: Sequence[_Call | _SubAgent]) -> Iterator[str]:
    """Yield the names of models and sub-agents, down to the deepest nesting that is read."""
    level: list[_Call | _SubAgent] = list(entries)
    for _ in range(MAX_DEPTH + 1):
        yield from (entry.agent_id if isinstance(entry, _SubAgent) else entry.model or "-" for entry in level)
        level = [inner for entry in level if isinstance(entry, _SubAgent) for inner in entry.requests]
