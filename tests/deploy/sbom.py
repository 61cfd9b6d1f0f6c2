"""`make sbom`: adds loadgen's version and what its wheel bundles to the SBOM of an environment, and validates that.

usage: sbom.py FILE
"""

import base64
import json
import sys
from pathlib import Path
from typing import Any

import loadgen

LOCK = Path(__file__).parents[2] / "loadgen/report/charts/script/package-lock.json"
"""What charts.min.js is bundled from."""


def main(path: Path) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    sbom = json.loads(path.read_text())
    sbom["metadata"]["component"]["version"] = loadgen.__version__
    sbom["components"] += bundled(json.loads(LOCK.read_text()))
    text = json.dumps(sbom, indent=2) + "\n"
    if fault := JsonStrictValidator(SchemaVersion.from_version(sbom["specVersion"])).validate_str(text):
        sys.exit(f"{path} does not follow the schema of CycloneDX: ...{str(fault)[-300:]}")
    path.write_text(text)
    print(f"{path}: {len(sbom['components'])} components")


def bundled(lock: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a component for each package of a package-lock.json that is in the bundle: all but the tools."""
    packages = {key.rpartition("node_modules/")[2]: entry for key, entry in lock["packages"].items() if key}
    return [
        {
            "type": "library",
            "bom-ref": f"pkg:npm/{name}@{entry['version']}",
            "name": name,
            "version": entry["version"],
            "description": "bundled in loadgen/report/charts/charts.min.js",
            "licenses": [{"license": {"id": entry["license"]}}],
            "purl": f"pkg:npm/{name}@{entry['version']}",
        }
        | ({"hashes": [_hash(entry["integrity"])]} if "integrity" in entry else {})
        for name, entry in packages.items()
        if not entry.get("dev")
    ]


def _hash(integrity: str) -> dict[str, str]:
    algorithm, _, digest = integrity.partition("-")
    return {"alg": algorithm.upper().replace("SHA", "SHA-"), "content": base64.b64decode(digest).hex()}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
