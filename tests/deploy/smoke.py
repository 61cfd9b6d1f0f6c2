"""`make compose-smoke`: `docker compose up` in a fresh checkout, by a Docker engine of its own.

No image is pulled: stand-ins with the pinned names are made from a Debian base (debootstrap), in an engine whose
sockets, images and volumes lie in .compose-smoke/, so that the names mean nothing to any other engine on the host.
A local image cannot have a digest of a registry, so the checkout's digests are cut off; nothing else is edited in it.
Real are the engine, Compose, the build of servers/stack/Dockerfile, the containers, their order, their health checks,
their network, Debian's Prometheus with the shipped configuration, and the replay from outside. Stand-ins are the
Python base image (Debian's Python), Prometheus's image (Debian's Prometheus) and Grafana (a page that answers its
health check, and the environment that Grafana would have).

Needs root, and on Debian: apt-get install docker.io docker-compose debootstrap
"""

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".compose-smoke"
CHECKOUT = FOLDER / "checkout"
SOCKET = FOLDER / "docker.sock"
ENV = {"PATH": os.environ["PATH"], "HOME": str(FOLDER), "DOCKER_HOST": f"unix://{SOCKET}", "DOCKER_BUILDKIT": "0",
       "COMPOSE_DOCKER_CLI_BUILD": "0"}  # fmt: skip
PACKAGES = "ca-certificates,prometheus,python3,python3-pip,wget"
AGREE = 0.03

PYTHON = """\
FROM standin-base
COPY ca.pem /etc/ssl/certs/ca-certificates.crt
COPY pip.conf /etc/pip.conf
RUN rm -f /usr/lib/python3*/EXTERNALLY-MANAGED && ln -s python3 /usr/bin/python
CMD ["python3"]
"""
PROMETHEUS = """\
FROM standin-base
RUN mkdir -p /prometheus && chown 65534:65534 /prometheus
USER 65534
WORKDIR /prometheus
ENTRYPOINT ["prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
"""
GRAFANA = """\
FROM standin-base
COPY run.sh /run.sh
RUN chmod 755 /run.sh
USER 472
CMD ["/run.sh"]
"""
GRAFANA_RUN = """\
#!/usr/bin/python3
from http.server import BaseHTTPRequestHandler, HTTPServer


class Health(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/api/health" else 404)
        self.end_headers()


HTTPServer(("", 3000), Health).serve_forever()
"""


class FailedError(Exception):
    """What did not hold, in one line."""


def say(text: str) -> None:
    print(f"compose-smoke {time.monotonic() - START_S:6.1f} s  {text}", flush=True)


START_S = time.monotonic()


def run(*command: str, env: dict[str, str] | None = None, **more: Any) -> str:
    """stdout of a command that must succeed."""
    cwd = CHECKOUT if CHECKOUT.exists() else ROOT
    done = subprocess.run(command, cwd=cwd, env=ENV | (env or {}), capture_output=True, text=True, check=False, **more)
    if done.returncode:
        raise FailedError(f"{' '.join(command[:6])}: exit {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def until(what: str, check: Callable[[], bool], seconds: float) -> None:
    end_s = time.monotonic() + seconds
    while not check():
        if time.monotonic() > end_s:
            raise FailedError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.5)


def check_out() -> None:
    """Copy what git holds, or would, into CHECKOUT: no file that only this machine has."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    shutil.rmtree(CHECKOUT, ignore_errors=True)
    for name in listed.stdout.split("\0"):
        if (source := ROOT / name).is_file():
            (CHECKOUT / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, CHECKOUT / name)
    for name in ("docker-compose.yml", "servers/stack/Dockerfile"):
        text = (CHECKOUT / name).read_text()
        (CHECKOUT / name).write_text(re.sub(r"@sha256:[0-9a-f]{64}", "", text))


# -- an engine of our own -------------------------------------------------------------------------------------------


@contextmanager
def engine() -> Iterator[None]:
    """dockerd on its own socket, ended with everything in it."""
    data = [f"--data-root={FOLDER / 'data'}", f"--exec-root={FOLDER / 'exec'}", f"--pidfile={FOLDER / 'dockerd.pid'}"]
    with (FOLDER / "dockerd.log").open("w") as log:
        process = subprocess.Popen(["dockerd", f"--host=unix://{SOCKET}", *data], stdout=log, stderr=log)
    try:
        until("dockerd answers (see .compose-smoke/dockerd.log)", lambda: _answers(process), 60)
        yield
    finally:
        if process.poll() is None:
            for container in run("docker", "ps", "-aq").split():
                run("docker", "rm", "-f", container)
        process.terminate()
        process.wait(60)


def _answers(process: "subprocess.Popen[bytes]") -> bool:
    if process.poll() is not None:
        raise FailedError(f"dockerd ended: {(FOLDER / 'dockerd.log').read_text()[-1000:]}")
    return subprocess.run(["docker", "version"], env=ENV, capture_output=True, check=False).returncode == 0


# -- stand-ins ------------------------------------------------------------------------------------------------------


def make_base() -> None:
    """The image `standin-base`, by debootstrap: minutes, the first time."""
    if run("docker", "images", "-q", "standin-base"):
        return
    base = FOLDER / "base"
    if not (base / "usr/bin/prometheus").exists():
        shutil.rmtree(base, ignore_errors=True)
        run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", _suite(), str(base))
    with subprocess.Popen(["tar", "-C", str(base), "-c", "."], stdout=subprocess.PIPE) as tar:
        run("docker", "import", "-", "standin-base", stdin=tar.stdout)
    shutil.rmtree(base)


def _suite() -> str:
    release = Path("/etc/os-release").read_text()
    found = re.search(r"^VERSION_CODENAME=(\w+)", release, re.MULTILINE)
    return found[1] if found else "stable"


def make_image(name: str, dockerfile: str, files: dict[str, str]) -> None:
    context = FOLDER / "context"
    shutil.rmtree(context, ignore_errors=True)
    context.mkdir()
    for file, text in (files | {"Dockerfile": dockerfile}).items():
        (context / file).write_text(text)
    run("docker", "build", "-q", "-t", name, str(context))


def pip_conf() -> str:
    """The host's own settings, but for those that name its files."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    given = dict(line.split("=", 1) for line in listed.stdout.splitlines() if "=" in line)
    remote = {key.split(".")[-1].lower(): value.strip("'") for key, value in given.items() if "https://" in value}
    settings = remote | {"cert": "/etc/ssl/certs/ca-certificates.crt"}
    return "\n".join(["[global]", *(f"{key} = {value}" for key, value in settings.items())]) + "\n"


def stand_in(images: dict[str, str]) -> None:
    """All images that `up` would pull. Keys: python, prometheus, grafana, vllm."""
    make_base()
    bundle = Path(os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile or "")
    if not bundle.is_file():
        raise FailedError("this host has no CA bundle: apt-get install ca-certificates")
    make_image(images["python"], PYTHON, {"ca.pem": bundle.read_text(), "pip.conf": pip_conf()})
    make_image(images["prometheus"], PROMETHEUS, {})
    make_image(images["grafana"], GRAFANA, {"run.sh": GRAFANA_RUN})
    run("docker", "tag", "standin-base", images["vllm"])  # never started: there only so that nothing is pulled


def pinned() -> dict[str, str]:
    """Image names as the project pins them."""
    text = (CHECKOUT / "docker-compose.yml").read_text()
    names = dict(re.findall(r"\$\{(\w+)_IMAGE:-([^}]+)\}", text))
    base = re.search(r"^FROM (\S+)", (CHECKOUT / "servers/stack/Dockerfile").read_text(), re.MULTILINE)
    assert base
    return {"python": base[1], **{name.lower(): image for name, image in names.items()}}


# -- the stack ------------------------------------------------------------------------------------------------------


def compose() -> list[str]:
    """`docker compose` where the plugin is there, else docker-compose."""
    plugin = subprocess.run(["docker", "compose", "version"], env=ENV, capture_output=True, check=False)
    return ["docker", "compose"] if plugin.returncode == 0 else ["docker-compose"]


def free_port() -> int:
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            if (port := int(probe.getsockname()[1])) >= 20_000:
                return port


def containers() -> dict[str, dict[str, Any]]:
    """By service."""
    ids = run("docker", "ps", "-aq").split()
    every = json.loads(run("docker", "inspect", *ids)) if ids else []
    return {one["Config"]["Labels"]["com.docker.compose.service"]: one for one in every}


def healthy() -> bool:
    states = {name: one["State"]["Health"]["Status"] for name, one in containers().items()}
    if sick := [name for name, state in states.items() if state == "unhealthy"]:
        raise FailedError(f"{sick[0]} is unhealthy: {run('docker', 'logs', containers()[sick[0]]['Id'])[-2000:]}")
    return set(states.values()) == {"healthy"}


def came_in_order() -> list[str]:
    """Services by when they started; each after those it waits for."""
    up = containers()
    started = {name: one["State"]["StartedAt"] for name, one in up.items()}
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for name in up:
        for earlier in services[name].get("depends_on", {}):
            if started[earlier] >= started[name]:
                raise FailedError(f"{name} started before {earlier}")
    return sorted(started, key=lambda name: started[name])


def refuses_without_gpu(env: dict[str, str]) -> None:
    """`docker compose up` with nothing edited, as far as it goes here."""
    if Path("/proc/driver/nvidia/version").exists():
        say("this host has a GPU: that one is refused without is not tried")
        return
    up = [*compose(), "up"]
    done = subprocess.run(up, cwd=CHECKOUT, env=ENV | env, capture_output=True, text=True, check=False)
    logs = run("docker", "logs", containers()["gpu-or-profile-sim"]["Id"])
    run(*compose(), "down", "-v", env=env)
    if done.returncode == 0 or "--profile sim up" not in logs or "profile-sim" not in done.stdout + done.stderr:
        raise FailedError("without a GPU, `up` must fail and name the sim profile")
    say(f"refused: {logs.strip()}")


def has_few_rights() -> None:
    """The containers of loadgen's own image: neither root nor able to write to their root, and no capability."""
    for name in ("sim", "sidecar-sim", "locust-sim"):
        container = containers()[name]
        user, host = container["Config"]["User"], container["HostConfig"]
        if user in ("", "0") or not host["ReadonlyRootfs"] or host["CapDrop"] != ["ALL"]:
            raise FailedError(f"{name} has more rights than it needs: user {user!r}, {host['CapDrop']}")
    sizes = run("docker", "images", "--format", "{{.Repository}} {{.Size}}").split("\n")
    say(f"no rights; images: {', '.join(line for line in sizes if line.startswith(('loadgen', 'python')))}")


def has_no_login() -> None:
    """What Grafana's process is given when no password is set."""
    given = run("docker", "exec", containers()["grafana"]["Id"], "cat", "/proc/1/environ").split("\0")
    needed = {"GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION=true", "GF_AUTH_DISABLE_LOGIN_FORM=true",
              "GF_AUTH_BASIC_ENABLED=false", "GF_AUTH_ANONYMOUS_ENABLED=true"}  # fmt: skip
    if missing := needed - set(given):
        raise FailedError(f"Grafana is started without {', '.join(sorted(missing))}")


def ask(prometheus: str, query: str) -> float | None:
    url = f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        rows = json.load(answer)["data"]["result"]
    return float(rows[0]["value"][1]) if rows else None


def replay(env: dict[str, str]) -> dict[str, Any]:
    """summary.json of a replay from outside, its joules from the sidecar's feed. Spans are the engine's."""
    out = FOLDER / "run"
    engine, sidecar = (f"http://127.0.0.1:{env[f'{name}_PORT']}" for name in ("ENGINE", "SIDECAR"))
    run(
        sys.executable, "-m", "loadgen", "replay", "traces/chat.jsonl", "--rps", "4", "--duration", "20",
        "--base-url", engine + "/v1", "--energy", sidecar, "--out", str(out), "--overwrite", "--ui", "none",
        env={"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return dict(json.loads((out / "summary.json").read_text()))


def replays_without_rights() -> None:
    """A replay in a container, as the Job of servers/kubernetes runs it: it can write to /runs and /tmp only."""
    run(
        "docker", "run", "--rm", "--network", "loadgen_default", "--read-only", "--cap-drop", "ALL", "--tmpfs", "/tmp",
        "--tmpfs", "/runs:uid=10001", "loadgen:local", "replay", "chat", "--rps", "4", "--duration", "5", "--base-url",
        "http://engine:8000/v1", "--energy", "http://sidecar:9478", "--out", "/runs/new", "--ui", "plain",
    )  # fmt: skip
    say("a replay in a container without rights: done")


def agree(prometheus: str, summary: dict[str, Any]) -> None:
    completed = summary["requests"]["completed"]
    query = 'sum(loadgen_requests_total{outcome="completed"})'
    until(f"Prometheus knows of {completed} requests", lambda: (ask(prometheus, query) or 0) >= completed, 60)
    live = ask(prometheus, "sum(loadgen_attributed_energy_joules_total) / sum(loadgen_output_tokens_total)")
    reported = summary["energy"]["joules_per_output_token"]
    say(f"{completed} requests: {live:.4f} J/output token in Prometheus, {reported:.4f} in summary.json")
    if not live or not live > 0 or abs(live / reported - 1) > AGREE:
        raise FailedError(f"they differ by more than {AGREE:.0%}")
    parts = [f"sum(loadgen_{name}_energy_joules_total)" for name in ("attributed", "idle", "unattributed")]
    whole = ask(prometheus, f"{' + '.join(parts)} - sum(loadgen_gpu_energy_joules_total)")
    if whole is None or abs(whole) > 1e-3:
        raise FailedError(f"attributed + idle + unattributed misses the GPU's energy by {whole} J")


def smoke() -> None:
    if os.geteuid() or not all(map(shutil.which, ("dockerd", "docker", "debootstrap"))):
        raise FailedError("needs root and, on Debian: apt-get install docker.io docker-compose debootstrap")
    FOLDER.mkdir(exist_ok=True)
    ports = ("ENGINE", "SIDECAR", "PROMETHEUS", "GRAFANA", "LOCUST")
    env = {f"{name}_PORT": str(free_port()) for name in ports}
    check_out()
    with engine():
        say("dockerd answers; stand-ins")
        stand_in(pinned())
        say("build")
        run(*compose(), "--profile", "sim", "build", env=env)
        say("docker compose up, without a GPU")
        refuses_without_gpu(env)
        say("docker compose --profile sim up")
        try:
            run(*compose(), "--profile", "sim", "up", "-d", env=env)
            until("all are healthy", healthy, 120)
            say(f"healthy: {', '.join(came_in_order())}")
            has_few_rights()
            has_no_login()
            agree(f"http://127.0.0.1:{env['PROMETHEUS_PORT']}", replay(env))
            replays_without_rights()
        finally:
            run(*compose(), "--profile", "sim", "down", "-v", env=env)
        if left := containers():
            raise FailedError(f"left behind: {', '.join(left)}")
    say("down, and nothing is left")


if __name__ == "__main__":
    try:
        smoke()
    except FailedError as err:
        say(f"FAILED: {err}")
        sys.exit(1)
