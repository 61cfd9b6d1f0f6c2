"""The blocks of code in README.md and docs/ run, or say why not; docs/results holds data that benchmarks write."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from support import doc_page
from support.doc_page import PageError, first_missing, steps

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if ROOT / "docs" / "results" not in page.parents),
]
PAGE_TIMEOUT_S = 100
Outcomes = dict[Path, Future[str | None]]
SHORTER = """#!{python}
# A replay of minutes takes two seconds here.
import sys
LONGEST = {{"--duration": 2, "--num-requests": 20}}
options = sys.argv[1:]
for at, name in enumerate(options[:-1]):
    if name in LONGEST:
        options[at + 1] = str(min(float(options[at + 1]), LONGEST[name])).removesuffix(".0")
if options[:1] == ["replay"] and not {{*LONGEST, "--help"}} & set(options):
    options += ["--duration", "2"]
sys.argv[1:] = options
from loadgen.cli import main
main()
"""


def alone() -> list[str]:
    """Return a prefix that leaves a command only the loopback interface, or none where the system has no namespaces."""
    prefix = ["unshare", "--map-root-user", "--net"]
    try:
        subprocess.run([*prefix, "ip", "link", "set", "lo", "up"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return [*prefix, "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


def run_page(page: Path, folder: Path) -> str | None:
    """Run a page's blocks in a new folder; return what is wrong with them."""
    (programs := folder / "programs").mkdir()
    (programs / "loadgen").write_text(SHORTER.format(python=sys.executable))
    (programs / "loadgen").chmod(0o755)
    (here := folder / "here").mkdir()
    environment = {
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
        "HOME": str(folder), "LANG": "C.UTF-8", "COLUMNS": "80", "LOADGEN_IDLE": "0.5", "NETRC": os.devnull,
    }  # fmt: skip
    process = subprocess.Popen(
        [*alone(), sys.executable, doc_page.__file__, str(page)], cwd=here, env=environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        _, error = process.communicate(timeout=PAGE_TIMEOUT_S)
        return error.strip() or "the page ended without a word" if process.returncode else None
    except subprocess.TimeoutExpired:
        return f"{page} took more than {PAGE_TIMEOUT_S} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with the servers that the page has started
        process.communicate()


@pytest.fixture(scope="module")
def outcomes(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[dict[Path, Future[str | None]]]:
    """Yield the outcome of each page that is tested. Pages mostly wait, so four run at a time."""
    selected = [getattr(item, "callspec", None) for item in request.session.items]
    pages = [page for spec in selected if spec and isinstance(page := spec.params.get("page"), Path)]
    with ThreadPoolExecutor(4) as pool:
        yield {page: pool.submit(run_page, page, tmp_path_factory.mktemp(page.stem)) for page in pages}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_works_as_it_is_written(page: Path, outcomes: Outcomes) -> None:
    assert (wrong := outcomes[page].result()) is None, wrong


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ("```\nls\n```", "no language"),
        ("```perl\nprint 1\n```", "perl is neither run nor marked"),
        ("```text\nloadgen replay chat\n```", "text is neither run nor marked"),
        ("    ls", "neither run nor marked"),
        ("<!-- not run: -->\n```bash\nls\n```", "for no reason"),
        ("```console\noutput\n```", "without a command"),
        ("```bash\nfalse\ntrue\n```", "line 1 failed"),
        ("```console\n$ false\n```", "line 2 failed"),
        ("```console\n$ echo 'done in 3 s'\ndone in 4.5 ms\nmore\n```", "did not print.*more"),
        ("```python\n1 / 0\n```", "ZeroDivisionError"),
        ("```bash\necho a\n```\n```text\nb\n```", "did not print.*b"),
    ],
)
def test_a_block_that_does_not_work_is_found(page: str, reason: str) -> None:
    with pytest.raises(PageError, match=reason):
        doc_page.run(page)


@pytest.mark.parametrize(
    "page",
    [
        "<!-- not run: needs a GPU -->\n```bash\nfalse\n```",
        "```console\n$ false\n$ echo $?\n1\n```",
        "```bash\nx=2\n```\n```console\n$ echo $x \\\nand more\n7 and more\n```",
        "```python\nx = 2\n```\n```python\nassert x == 2\nprint(x)\n```\n```text\n7\n```",
        "```bash\necho a\n```\n<!-- not compared: of a real run -->\n```text\nb\n```",
        "<!-- setup: x=1 -->\n```bash\ntest $x = 1\n```",
        "```toml\na = 1\n```",
    ],
)
def test_a_block_that_works_or_is_marked_passes(page: str) -> None:
    assert doc_page.run(page) >= 0


@pytest.mark.parametrize(
    ("shown", "printed", "missing"),
    [
        ("TTFT 48.0 ms  1.2 s", "TTFT  1.0 s  900 µs", None),
        ("joules -", "joules 12.5 kJ", None),
        ("a\n...\nc", "a\nb\nc", None),
        ("c\na", "a\nb\nc", "a"),
        ("as requested", "as asked", "as requested"),
    ],
)
def test_an_output_is_compared_line_by_line_but_for_its_numbers(shown: str, printed: str, missing: str | None) -> None:
    assert first_missing(shown, printed) == missing


def test_a_file_of_a_page_is_written_for_the_blocks_below_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    doc_page.run("<!-- file: a.json -->\n```json\n{}\n```\n```bash\ngrep -q {} a.json\n```")
    assert [step.kind for step in steps("<!-- another terminal, port 1 -->\n```bash\nx\n```")] == ["bash"]
