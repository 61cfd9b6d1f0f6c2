"""The committed JSON Schemas of loadgen's files, and validators of them."""

import json
from pathlib import Path

from jsonschema import Draft202012Validator

ROOT = Path(__file__).parents[2]
SCHEMAS = {path.name.split(".")[0]: json.loads(path.read_text()) for path in (ROOT / "loadgen/schemas").iterdir()}
LINES = {
    "records": "record",
    "schedule": "schedule",
    "energy": "energy",
    "engine": "engine",
    "attribution": "attribution",
}
"""Schema of the lines of each file."""


def strict(name: str) -> Draft202012Validator:
    """Return a validator that refuses fields that the schema does not describe."""
    schema = json.loads(json.dumps(SCHEMAS[name]))
    for struct in schema["$defs"].values():
        if "properties" in struct:
            struct["additionalProperties"] = False
    return Draft202012Validator(schema)
