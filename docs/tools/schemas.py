"""Write the JSON Schemas of loadgen's files into loadgen/schemas: `make schemas`.

    python docs/tools/schemas.py            into loadgen/schemas
    python docs/tools/schemas.py FOLDER     into another folder, to compare

msgspec makes a schema of each struct. The descriptions of its fields are the strings below them in the source, which
Python throws away, so they are read from there; the unit of a field follows from its name.
"""

import ast
import inspect
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from loadgen.attribution.shapley import RequestEnergy
from loadgen.client.answer import Answer
from loadgen.energy.series import EnergySample
from loadgen.record import RequestRecord
from loadgen.results.ledger_lines import LedgerPeriod, LedgerStart, SettledRequest
from loadgen.results.run_folder import SCHEMA_VERSION, RunInfo
from loadgen.results.run_tables import ENGINE_COLUMNS
from loadgen.results.search_result import SearchResult
from loadgen.results.session_accounts import SessionAccount
from loadgen.results.study_table import Row
from loadgen.results.summary import Summary
from loadgen.study.folder import StudyState
from loadgen.study.rows import RunOutcome
from loadgen.telemetry.engine_span import EngineSpan
from loadgen.workload.schedule import ScheduledRequest

FILES: dict[str, tuple[type[msgspec.Struct], str]] = {
    "summary": (Summary, "summary.json"),
    "run": (RunInfo, "run.json"),
    "schedule": (ScheduledRequest, "a line of schedule.jsonl"),
    "record": (RequestRecord, "a line of records.jsonl"),
    "energy": (EnergySample, "a line of energy.jsonl"),
    "span": (EngineSpan, "a line of spans.jsonl"),
    "attribution": (RequestEnergy, "a line of attribution.jsonl"),
    "session": (SessionAccount, "a line of sessions.jsonl"),
    "answer": (Answer, "a line of answers.jsonl"),
    "study": (StudyState, "study.json"),
    "cell": (RunOutcome, "cell.json, of each run of a study"),
    "results": (Row, "a row of results.csv, of a study"),
    "search": (SearchResult, "search.json, of a search"),
    "ledger_start": (LedgerStart, "the first line of a ledger's file"),
    "ledger_request": (SettledRequest, "a line of a ledger: a request"),
    "ledger_period": (LedgerPeriod, "a line of a ledger: a period, after its requests"),
}
"""Struct of each schema, and the file or line that it describes."""

UNITS = {
    "per_s": "1/s", "per_request": "J", "per_session": "J", "per_task": "J", "per_turn": "J", "per_output_token": "J",
    "per_token": "J", "per_joule": "1/J", "rps": "1/s", "rss_bytes": "bytes", "joules": "J", "watts": "W", "w": "W",
    "c": "°C", "mj": "mJ", "mhz": "MHz", "ns": "ns", "ms": "ms", "s": "s",
}  # fmt: skip
"""Unit by the end of a field's name; the first that fits."""


def unit_of(name: str) -> str | None:
    """Return the unit that the name of a field states."""
    stem = name.removesuffix("_with_failures").removesuffix("_max")
    return next((unit for end, unit in UNITS.items() if stem == end or stem.endswith(f"_{end}")), None)


def descriptions(kind: type) -> dict[str, str]:
    """Return the string below each field of a class and of those it inherits from."""
    found: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        if owner.__module__.split(".")[0] != "loadgen":
            continue
        [node] = ast.parse(inspect.cleandoc("\n" + inspect.getsource(owner))).body
        assert isinstance(node, ast.ClassDef)
        for field, below in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
                found[field.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return found


def structs_in(kind: Any, found: dict[str, type]) -> dict[str, type]:
    """Return the structs and dataclasses that a type consists of, by name."""
    for inner in getattr(kind, "__args__", ()):
        structs_in(inner, found)
    is_struct = isinstance(kind, type) and (issubclass(kind, msgspec.Struct) or is_dataclass(kind))
    if is_struct and kind.__name__ not in found:
        found[kind.__name__] = kind
        for inner in get_type_hints(kind).values():
            structs_in(inner, found)
    return found


def field_names(kind: type) -> dict[str, str]:
    """Return the name of each field in JSON by its name in Python, where the two differ."""
    if not issubclass(kind, msgspec.Struct):
        return {}
    return {field.name: field.encode_name for field in msgspec.structs.fields(kind)}


def schema_of(name: str) -> dict[str, Any]:
    """Return the JSON Schema of a file, with the description and the unit of each field.

    It is the same with msgspec 0.22 and 0.23. The latter dedents docstrings and has the default of a dataclass's
    list, as is done here for both. It also has the names that a mapping may have, which are left out.
    """
    kind, described = FILES[name]
    made = msgspec.json.schema(kind)
    for struct in structs_in(kind, {}).values():
        definition = made["$defs"][struct.__name__]
        definition["description"] = inspect.cleandoc(definition["description"])
        names, properties = field_names(struct), definition.get("properties", {})
        lists = (
            {field.name for field in fields(struct) if field.default_factory is list} if is_dataclass(struct) else ()
        )
        texts = {names.get(name, name): text for name, text in descriptions(struct).items()}
        for key, field in properties.items():
            if "enum" in field.get("propertyNames", {}):
                del field["propertyNames"]
            if key in lists:
                field["default"] = []
            if key in texts:
                field["description"] = texts[key]
            elif key == struct.__struct_config__.tag_field:
                field["description"] = "Kind of the line."
            if unit := unit_of(key):
                field["x-unit"] = unit
    return heading(described) | made


def engine_schema() -> dict[str, Any]:
    """Return the schema of a line of engine.jsonl, which has the counters that the engine's page does."""
    instant = {"type": "integer", "description": "Instant on the monotonic clock.", "x-unit": "ns"}
    counters = {
        column.name: {"type": "number", "description": column.meaning}
        | ({"x-unit": column.unit} if column.unit else {})
        for column in ENGINE_COLUMNS
        if column.name not in ("t_s", "unix_s")
    }
    struct = {
        "title": "EngineSample",
        "description": "One reading of the engine's own counters.",
        "type": "object",
        "properties": {"t_ns": instant} | counters,
        "required": ["t_ns"],
    }
    return heading("a line of engine.jsonl", "What the engine does not show is absent.") | {
        "$ref": "#/$defs/EngineSample", "$defs": {"EngineSample": struct},
    }  # fmt: skip


def heading(described: str, unknown: str = "What is not known is null, never 0.") -> dict[str, Any]:
    about = f"Format {SCHEMA_VERSION} of {described}. {unknown}"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": described, "description": about}


def encoded(schema: dict[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(schema)) + b"\n"


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2] / "loadgen" / "schemas"
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (folder / f"{name}.schema.json").write_bytes(encoded(schema_of(name)))
    (folder / "engine.schema.json").write_bytes(encoded(engine_schema()))
