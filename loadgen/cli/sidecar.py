"""loadgen sidecar: meter, OTLP receiver and Prometheus exporter beside an engine."""

import os
import shutil
from pathlib import Path

import click

from loadgen.cli.log import logged
from loadgen.cli.options import ENERGY_NAMES, FiniteRange, SectionedCommand
from loadgen.errors import LoadgenError
from loadgen.extras import importing
from loadgen.files import data_dir

_NOT_MONITORING = shutil.ignore_patterns("*.py", "__pycache__", "rules_test.yml", "kustomization.yaml", "provisioning")
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command(
    cls=SectionedCommand,
    sections={
        "engine_url": "Engine",
        "energy": "Energy",
        "host": "Listening",
        "blind_s": "Late spans",
        "ledger": "Requests",
        "labels": "Labels",
        "otlp_metrics_endpoint": "OpenTelemetry",
        "reference": "Output",
    },
)
@click.option(
    "--engine-url", metavar="URL", help="Root URL of the engine, such as http://localhost:8000: its /metrics are read."
)
@click.option(
    "--engine", "engines", multiple=True, metavar="NAME=URL[,gpus=0:1][,role=prefill|decode][,energy=URL]",
    help="One of several engines: its root URL, the GPUs that are its own, the only phase that it runs if another "
    "engine runs the other, and its energy source if that is on another host. Repeatable.",
)  # fmt: skip
@click.option("--model", help="Model label of spans that name none.  [default: the engine's only model]")
@click.option(
    "--energy",
    shell_complete=ENERGY_NAMES,
    metavar="SOURCE",
    default="auto",
    show_default=True,
    help="Energy source: auto, nvml, amd, rapl, hwmon, cpu, or the URL of another source; or several, such as "
    "nvml,rapl.",
)
@click.option("--energy-every", "energy_every_s", default=0.0, show_default=True, type=FiniteRange(0, 5), metavar="S",
              help="Time between two reads of an NVML counter; 0 reads every update. A read takes about 5 ms of CPU "
              "time on an H200, which updates ten times a second.")  # fmt: skip
@click.option("--gpu", "gpus", multiple=True, metavar="ID", help="Index or UUID of a GPU. Repeatable.  [default: all]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    default=9478,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port to listen on; 0: any free port.",
)
@click.option(
    "--grpc-port", type=click.IntRange(0, 65535), help="Port for OTLP over gRPC, usually 4317.  [default: none]"
)
@click.option("--tls-cert", type=_FILE, help="Serve TLS with this certificate chain, in PEM.")
@click.option("--tls-key", type=_FILE, help="Private key of the certificate, in PEM.")
@click.option("--allowed-lateness", "--hold", "blind_s", default=30.0, show_default=True,
              type=FiniteRange(1, 3600), metavar="S",
              help="Time to wait for late spans if the engine does not report its queue.")  # fmt: skip
@click.option("--max-lateness", "--max-hold", "max_s", default=600.0, show_default=True,
              type=FiniteRange(1, 3600), metavar="S",
              help="Maximum time to wait for late spans.")  # fmt: skip
@click.option(
    "--ledger", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="Keep a ledger of the settled requests in this folder, for `loadgen bill`.  [default: none]",
)  # fmt: skip
@click.option("--keep-requests", "kept_requests", default=50_000, show_default=True, type=click.IntRange(0, 10_000_000),
              metavar="N", help="Maximum number of settled requests that GET /requests/ID knows.")  # fmt: skip
@click.option("--keep-for", "kept_s", default=3600.0, show_default=True, type=FiniteRange(0, 31_536_000),
              metavar="S", help="Time for which it knows them.")  # fmt: skip
@click.option("--account", "accounts", multiple=True, metavar="MODEL[=WORKLOAD,...]",
              help="Model and its workloads that have series of their own from the beginning. Besides these, the first "
              "50 pairs that spans name have series, and any further one is `other`. Repeatable.")  # fmt: skip
@click.option("--label", "labels", multiple=True, metavar="NAME=ATTRIBUTE[:VALUE,...]",
              help="Label of joules, tokens and requests, such as tenant=http.request.header.x-tenant: an attribute of "
              "the span, an entry of its baggage, or an attribute of its resource. With values, as in "
              "tenant=http.request.header.x-tenant:a,b, any other one is `other`. Repeatable.")  # fmt: skip
@click.option("--label-values", default=50, show_default=True, type=click.IntRange(1, 1000), metavar="N",
              help="Number of values that are shown of a label without stated ones; any other is `other`.")  # fmt: skip
@click.option("--otlp-metrics-endpoint", envvar="OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", metavar="URL",
              help="Send the metrics to this OTLP/HTTP collector, such as http://localhost:4318/v1/metrics.  "
              "[default: $OTEL_EXPORTER_OTLP_METRICS_ENDPOINT]")  # fmt: skip
@click.option("--otlp-interval", "otlp_interval_s", default=10.0, show_default=True, type=FiniteRange(0.1, 3600),
              metavar="S", help="Time between two pushes of the metrics.")  # fmt: skip
@click.option("--otlp-traces-endpoint", metavar="URL",
              help="Send a span with the joules of each request, a child of the engine's, to this OTLP/HTTP collector, "
              "such as http://localhost:4318/v1/traces.  [default: none]")  # fmt: skip
@click.option("--reference", is_flag=True, help="Print the reference of all metrics, and exit.")
@click.option(
    "--monitoring",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write rules, alerts and a scrape configuration for Prometheus and dashboards for Grafana, and exit.",
)
@logged
def sidecar(
    engine_url: str | None,
    engines: tuple[str, ...],
    energy: str,
    energy_every_s: float,
    gpus: tuple[str, ...],
    model: str | None,
    host: str,
    port: int,
    grpc_port: int | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    blind_s: float,
    max_s: float,
    ledger: Path | None,
    kept_requests: int,
    kept_s: float,
    accounts: tuple[str, ...],
    labels: tuple[str, ...],
    label_values: int,
    otlp_metrics_endpoint: str | None,
    otlp_interval_s: float,
    otlp_traces_endpoint: str | None,
    reference: bool,
    monitoring: Path | None,
) -> None:
    """Watch an engine: joules per request and per token, to Prometheus.

    \b
    loadgen sidecar --engine-url http://localhost:8000
    vllm serve ... --otlp-traces-endpoint http://localhost:9478/v1/traces
    loadgen replay chat --otlp http://localhost:9478

    $LOADGEN_SIDECAR_TOKEN, when set, is required of every client as a bearer token. $OPENAI_API_KEY is the engine's.
    $OTEL_EXPORTER_OTLP_HEADERS are sent to collectors.
    """
    if monitoring:
        write_monitoring(monitoring)
        return
    with importing("the sidecar", "sidecar"):
        from loadgen.sidecar.exporter import reference as text
        from loadgen.sidecar.options import SidecarOptions
        from loadgen.sidecar.server import run_sidecar
    from loadgen.energy.choose import stated_token
    from loadgen.energy.named_engine import parse_engines
    from loadgen.sidecar.accounts import parse_accounts
    from loadgen.sidecar.watermark import AllowedLateness
    from loadgen.telemetry.otlp_export import TOKEN_VARIABLE
    from loadgen.telemetry.span_labels import parse_labels

    if reference:
        click.echo(text(), nl=False)
        return
    if (tls_cert is None) != (tls_key is None):
        raise LoadgenError("--tls-cert and --tls-key go together")
    if engines and (engine_url or gpus):
        other = "--engine-url" if engine_url else "--gpu"
        raise LoadgenError(f"--engine and {other} exclude each other: each --engine has its URL and its gpus")
    attributes, stated_values = parse_labels(labels)
    root = engine_url.rstrip("/").removesuffix("/v1") if engine_url else None
    run_sidecar(
        SidecarOptions(
            host=host,
            port=port,
            grpc_port=grpc_port,
            engine_url=root,
            engines=parse_engines(engines),
            engine_key=os.environ.get("OPENAI_API_KEY") or None,
            energy=energy,
            gpus=gpus,
            energy_every_s=energy_every_s,
            model=model,
            token=os.environ.get(TOKEN_VARIABLE) or None,
            energy_token=stated_token(),
            tls_cert=tls_cert,
            tls_key=tls_key,
            lateness=AllowedLateness(blind_s=blind_s, max_s=max(max_s, blind_s)),
            ledger=ledger,
            kept_requests=kept_requests,
            kept_s=kept_s,
            accounts=parse_accounts(accounts),
            labels=attributes,
            stated_values=stated_values,
            label_values=label_values,
            otlp_metrics_endpoint=otlp_metrics_endpoint or None,
            otlp_traces_endpoint=otlp_traces_endpoint,
            otlp_interval_s=otlp_interval_s,
        )
    )


def write_monitoring(folder: Path) -> None:
    """Write what a Prometheus and a Grafana need into a new folder, and print the paths. Raises LoadgenError."""
    if folder.exists():
        raise LoadgenError(f"{folder} exists: name a new folder")
    try:
        shutil.copytree(data_dir("servers") / "stack" / "monitoring", folder, ignore=_NOT_MONITORING)
    except OSError as err:
        raise LoadgenError(f"cannot write {folder}: {err.strerror or err}") from err
    for path in sorted(folder.rglob("*.*")):
        click.echo(path)
