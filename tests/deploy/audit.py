"""`make audit`: the packages of the environment, all extras of the tests among them, against PyPI's list of advisories.

pip-audit needs PyPI's JSON service. Where that is out of reach, or is a mirror without advisories, nothing was audited:
that is reported as a skip, never as a pass.
"""

import json
import subprocess
import sys
from typing import Any

COMMAND = ["pip_audit", "--local", "--skip-editable", "--format", "json", "--progress-spinner", "off"]
UNREACHABLE = ("ConnectionError", "ConnectTimeout", "ProxyError", "ReadTimeout", "SSLError")


def main() -> int:
    done = subprocess.run([sys.executable, "-m", *COMMAND], capture_output=True, text=True, check=False)
    if not done.stdout:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        if not any(f"{error}:" in last for error in UNREACHABLE):
            print(f"audit: failed: {last}")
            return 1
        print("audit: SKIPPED: PyPI's advisories are out of reach, so nothing was audited")
        return 0
    failed, text = outcome(json.loads(done.stdout)["dependencies"])
    print(f"audit: {text}")
    return int(failed)


def outcome(packages: list[dict[str, Any]]) -> tuple[bool, str]:
    """Return whether a package has an advisory, and the text for a person."""
    audited = [package for package in packages if "vulns" in package]
    advisories = [
        f"{package['name']} {package['version']}: {advisory['id']}, "
        f"fixed in {', '.join(advisory['fix_versions']) or 'no version'}"
        for package in audited
        for advisory in package["vulns"]
    ]
    if advisories:
        return True, "\n".join([f"{len(advisories)} advisories", *advisories])
    if not audited:
        return False, f"SKIPPED: PyPI has advisories of none of these {len(packages)} packages, so nothing was audited"
    unknown = ", ".join(package["name"] for package in packages if "vulns" not in package)
    return False, f"no advisory for {len(audited)} packages" + (f"; not audited: {unknown}" if unknown else "")


if __name__ == "__main__":
    sys.exit(main())
