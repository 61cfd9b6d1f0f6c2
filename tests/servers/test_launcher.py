"""A server belongs to who started it: healthy before it is used, and gone afterwards with all its children."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from click.testing import CliRunner

from loadgen.cli.serve import serve
from loadgen.errors import LoadgenError
from loadgen.servers import recipe as recipes
from loadgen.servers.launcher import answering, free_port, healthy, run_recipe, served, start_lines

FAMILY = """
import http.server, os, subprocess, sys, time
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", deaf])
print("child", child.pid, "see http://not-yet/v1", flush=True)
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Health).serve_forever()
"""
"""A server with a child that does not care for SIGTERM, as an engine's stuck worker."""

RECIPE = """
summary = "for a test"
engine = "test"
command = ["{{python}}", "{file}", "{{port}}"]
model = "m"
metrics = "/metrics"
health = "/health"
[speaks]
ignore_eos = true
min_tokens = true
usage = true
token_id_prompts = true
tokenize = true
"""


@pytest.fixture
def servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of recipes of its own: `family` starts, `broken` says why it does not."""
    for name, program in (("family", FAMILY), ("broken", "print('no such model: m'); raise SystemExit(3)")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "server.py").write_text(program)
        (folder / "recipe.toml").write_text(RECIPE.format(file=folder / "server.py"))
    monkeypatch.setattr(recipes, "data_dir", lambda _: tmp_path)
    return tmp_path


def alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def gone(pid: int) -> bool:
    return any(not alive(pid) or time.sleep(0.05) for _ in range(200))  # type: ignore[func-returns-value]


def test_a_server_is_up_in_the_block_and_gone_after_it(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with served("sim", "--engine-option", "max_num_seqs=7", log=log) as url:
        assert urllib.request.urlopen(url + "/models").status == 200
    with pytest.raises(OSError):
        urllib.request.urlopen(url + "/models")
    assert url in log.read_text()


def test_what_a_failed_server_said_last_is_in_the_error() -> None:
    with pytest.raises(LoadgenError, match=r"(?s)sim did not start.*no models profile called 'nonesuch'"):  # noqa: SIM117
        with served("sim", "--model", "nonesuch"):
            pytest.fail("it started")


def test_a_recipe_that_ends_before_it_is_healthy_says_why(servers: Path) -> None:
    recipe = recipes.read_recipe("broken")
    with pytest.raises(LoadgenError, match=r"broken did not start \(exit status 3\) and said last:\n  no such model"):
        run_recipe(recipe, {}, host="127.0.0.1", port=0, model="m")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_server_goes_with_whoever_started_it(servers: Path, number: signal.Signals) -> None:
    """SIGKILL leaves no time to tidy up: then the kernel tells the server."""
    program = (
        "import pathlib\nfrom loadgen.servers import launcher, recipe\n"
        f"recipe.data_dir = lambda _: pathlib.Path({str(servers)!r})\nlauncher.STOP_TIMEOUT_S = 1.0\n"
        "launcher.run_recipe(recipe.read_recipe('family'), {}, host='127.0.0.1', port=0, model='m')"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline().split()
        child = int(said[2])
        ready = process.stdout.readline()
        assert ready.startswith("family serves m at http://127.0.0.1:"), "the engine's own URLs are not the ready line"
        leader = os.getpgid(child)
        process.send_signal(number)
        process.wait(20)
    try:
        assert gone(leader)
        if number != signal.SIGKILL:
            assert gone(child)
            assert process.returncode == 0
    finally:
        with suppress(OSError):  # unless it is gone, and its number another process's by now
            if "SIG_IGN" in Path(f"/proc/{child}/cmdline").read_text():
                os.kill(child, signal.SIGKILL)


COMMAND_LINES = [
    ("unknown server", ["nonesuch"], "no server called 'nonesuch'; there are: llamacpp, sim"),
    ("the simulator's option elsewhere", ["llamacpp", "--seed", "1"], "--seed is the simulator's"),
    ("Docker only", ["tgi"], "docker run"),
    ("an unknown engine option", ["sim", "--engine-option", "slots=2"], "sim has no engine option 'slots'"),
]


@pytest.mark.parametrize(("said", "args", "error"), COMMAND_LINES, ids=[row[0] for row in COMMAND_LINES])
def test_the_command_refuses_what_it_cannot_do(said: str, args: list[str], error: str) -> None:
    result = CliRunner().invoke(serve, args)
    assert isinstance(result.exception, LoadgenError)
    assert error in str(result.exception)


def test_print_starts_nothing_and_shows_everything() -> None:
    result = CliRunner().invoke(serve, ["vllm", "--print", "--engine-option", 'speculative={"method": "ngram"}'])
    assert result.exit_code == 0
    assert '--speculative-config \'{"method": "ngram"}\'' in result.output
    assert "docker run" in result.output and "max_num_batched_tokens" in result.output


@pytest.mark.parametrize("flag", ["--engine-option", "--knob"])
def test_an_engine_option_has_an_older_alias(flag: str) -> None:
    result = CliRunner().invoke(serve, ["vllm", "--print", flag, "max_num_seqs=9"])
    assert "--max-num-seqs 9" in result.output


def test_nothing_listens_on_a_free_port() -> None:
    port = free_port("127.0.0.1")
    assert port > 0
    assert not healthy("127.0.0.1", port, "/health")


def test_a_server_that_is_not_healthy_in_time_is_ended_with_its_last_lines_as_the_reason() -> None:
    program = [sys.executable, "-c", "import time; print('loading', flush=True); time.sleep(60)"]
    with pytest.raises(LoadgenError, match=r"(?s)slow was not healthy after 1 s and said last:\n  loading"):  # noqa: SIM117
        with answering(program, "slow", 1.0):
            pytest.fail("it started")


# -- the output of a server that starts -------------------------------------------------------------------------------


def shown_by(program: str, environment: dict[str, str] | None = None) -> tuple[list[str], str]:
    """Return the last lines that the progress of a start showed, each once, and the log."""
    shown: list[tuple[float, str]] = []
    ready = "\ntime.sleep(0.4); print('up at http://127.0.0.1:1/v1', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", "import os, time\n" + program + ready]
    with TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        progress = lambda *moment: shown.append(moment)  # noqa: E731
        with answering(command, "engine", 20.0, log=log, progress=progress, environment=environment):
            pass
        seconds = [waited_s for waited_s, _ in shown]
        assert seconds == sorted(seconds) and seconds[0] < 5
        return list(dict.fromkeys(text for _, text in shown)), log.read_bytes().decode()


def test_a_bar_that_overwrites_itself_is_shown_as_it_grows() -> None:
    program = "for share in (25, 50, 75): print(f'\\rshards: {share} %', end='', flush=True); time.sleep(0.4)"
    shown, log = shown_by(program + "\nprint(flush=True)")
    assert shown == ["", "shards: 25 %", "shards: 50 %", "shards: 75 %"]
    assert "shards: 25 %\rshards: 50 %\rshards: 75 %\nup at" in log


def test_a_bar_leaves_room_for_the_lines_before_it_in_an_error() -> None:
    program = "print('no room for the KV cache'); [print(f'\\r{i} %', end='') for i in range(100)]; raise SystemExit(1)"
    with pytest.raises(LoadgenError, match=r"and said last:\n  no room for the KV cache\n  99 %$"):  # noqa: SIM117
        with answering([sys.executable, "-c", program], "engine", 20.0):
            pytest.fail("it started")


def test_an_endless_line_is_cut_and_does_not_fill_the_memory() -> None:
    shown, log = shown_by("print(300_000 * 'x', end='', flush=True); time.sleep(0.4)")
    assert max(map(len, shown)) <= 2 * 65_536
    assert log.count("x") == 300_000


def test_secrets_of_the_environment_are_in_no_line() -> None:
    program = "print('args: ' + os.environ['VLLM_API_KEY'] + ' ' + os.environ['TOKENS'], flush=True); time.sleep(0.4)"
    shown, log = shown_by(program, {"VLLM_API_KEY": "sk-quite-secret", "TOKENS": "not-a-secret"})
    assert "args: [redacted] not-a-secret" in shown
    assert "sk-quite-secret" not in log


def test_without_a_view_a_line_is_said_every_five_seconds() -> None:
    said: list[str] = []
    progress = start_lines("vllm", said.append)
    for tenths in range(113):
        progress(tenths / 10, "" if tenths < 80 else "loading")
    assert said == ["vllm is starting, 5 s: no output yet", "vllm is starting, 10 s: loading"]
