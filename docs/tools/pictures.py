"""Make the pictures of the documentation, a run, a study and the terminal, and the text of the run in README.md.

    python docs/tools/pictures.py      needs Chromium and tmux; takes two minutes

The run is made again until its verdict is OK: on a busy machine the picture would be one of the machine.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.text import Text

import loadgen

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
BEGIN, END = "<!-- demo: begin -->\n", "<!-- demo: end -->"
UNCOMPARED = "<!-- not compared: tests/docs/test_readme.py does -->\n"
PICTURES = ROOT / "docs" / "pictures"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
LOADGEN = (sys.executable, "-m", "loadgen")
DEMO = "replay chat --rps 4 --duration 30 --serve sim --goodput ttft:200 --goodput tpot:20"
COLUMNS, LINES = 100, 24
ATTEMPTS = 6
LIVE_S = 20
"""Seconds from the command until the terminal is drawn: in the middle of the run."""
FONT_FROM_ELSEWHERE = re.compile(r"@font-face\s*\{[^}]*\}")


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for attempt in range(1, ATTEMPTS + 1):
            run = terminal(folder)
            if loadgen.read(run).verdict.status == "ok":
                break
            print(f"attempt {attempt}: the verdict is not OK; see {run}")
        show_in_readme(run.relative_to(folder), folder)
        subprocess.run([*LOADGEN, "study", "rate-sweep"], cwd=folder, check=True, capture_output=True)
        study = folder / "runs" / "study-rate-sweep"
        screenshots({"run-page": run / "report.html", "study-page": study / "report.html"})


def terminal(folder: Path) -> Path:
    """Draw a terminal as it is in the middle of a run, wait for the run's end, and return its folder."""
    tmux = ("tmux", "-S", str(folder / "tmux"), "-f", "/dev/null")
    size = ("-x", str(COLUMNS), "-y", str(LINES))
    command = ("env", "TERM=xterm-256color", *LOADGEN, *DEMO.split())
    subprocess.run([*tmux, "new-session", "-d", *size, "-c", str(folder), *command], check=True)
    time.sleep(LIVE_S)
    screen = subprocess.run([*tmux, "capture-pane", "-e", "-p"], check=True, capture_output=True, text=True).stdout
    with (folder / "discarded").open("w") as discarded:
        console = Console(record=True, width=COLUMNS, file=discarded)
        console.print(Text.from_ansi(f"$ loadgen {DEMO}\n{screen.rstrip()}"))
    drawing = console.export_svg(title="loadgen replay", unique_id="terminal")
    (PICTURES / "terminal.svg").write_text(FONT_FROM_ELSEWHERE.sub("", drawing))
    while subprocess.run([*tmux, "has-session"], capture_output=True).returncode == 0:
        time.sleep(1)
    return max((folder / "runs").iterdir())


def show_in_readme(run: Path, folder: Path) -> None:
    """Put the text with which the run ended between the two comments of README.md."""
    environment = os.environ | {"COLUMNS": "80"}
    command = (*LOADGEN, "report", str(run))
    printed = subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout
    before, _, rest = README.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    README.write_text(f"{before}{BEGIN}{UNCOMPARED}```text\n{printed.strip()}\n```\n{end}{after}")


def screenshots(pages: dict[str, Path]) -> None:
    """Take the first screen of each page, in light and in dark colours."""
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as browser,
    ):
        for name, path in pages.items():
            for scheme in ("light", "dark"):
                page = browser.new_page(viewport={"width": 1080, "height": 1180}, color_scheme=scheme)
                page.goto(path.as_uri())
                page.wait_for_timeout(1000)  # the charts are drawn
                page.screenshot(path=PICTURES / f"{name}-{scheme}.png")


if __name__ == "__main__":
    main()
