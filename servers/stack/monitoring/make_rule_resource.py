"""Write servers/kubernetes/monitoring/prometheusrule.yaml: the rules of Prometheus as a resource of its operator."""

from pathlib import Path

FOLDER = Path(__file__).parent
TARGET = FOLDER.parents[1] / "kubernetes" / "monitoring" / "prometheusrule.yaml"
HEAD = """\
# Written by servers/stack/monitoring/make_rule_resource.py from rules/*.yml.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: loadgen
spec:
  groups:
"""


def resource() -> str:
    """Return the resource, its groups as they are in the files of rules, comments included."""
    files = [FOLDER / "rules" / name for name in ("loadgen.yml", "alerts.yml")]
    groups = [line for file in files for line in file.read_text().splitlines() if line != "groups:"]
    return HEAD + "".join(f"  {line}\n" if line else "\n" for line in groups)


if __name__ == "__main__":
    TARGET.write_text(resource())
