"""Laws of the SBOM's part on what the wheel bundles."""

import json
from typing import Any

from deploy.sbom import LOCK, bundled


def test_what_the_chart_script_bundles_is_listed_and_its_tools_are_not() -> None:
    components: list[dict[str, Any]] = bundled(json.loads(LOCK.read_text()))
    assert {component["name"] for component in components} == {"echarts", "zrender", "tslib"}
    for component in components:
        assert component["purl"] == f"pkg:npm/{component['name']}@{component['version']}"
        assert len(component["hashes"][0]["content"]) == 128
        assert component["hashes"][0]["alg"] == "SHA-512"
