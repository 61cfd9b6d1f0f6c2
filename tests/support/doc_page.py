"""The code blocks of a Markdown page, run in order in the current folder: python doc_page.py PAGE.

HTML comments above a block, which readers do not see, say how it runs:

    <!-- not run: REASON -->                     nothing runs the next block
    <!-- setup: COMMANDS -->                     commands that run here and are not shown
    <!-- another terminal, port 8000 -->         the next block keeps running; the page waits for its port
    <!-- file: NAME -->                          the next block is the content of this file
    <!-- not compared: REASON -->                the next block is not the output of the block before it

Lines of a `console` block without a `$`, and a `text` block right after a block that ran, are output. The real output
must have all of these lines, in this order. Numbers with their units and marks, and lines of dots, match anything.
"""

import io
import json
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from markdown_it import MarkdownIt

COMMENT = re.compile(r"<!--\s*(not run|setup|another terminal, port|file|not compared)\s*:?\s*(.*?)\s*-->", re.DOTALL)
DATA = {"json", "jsonl", "toml", "yaml", "xml", "ini", "csv", "pyi"}
NUMBER = re.compile(r"[-+±]?\d[\d.,:]*(?:e[-+]?\d+)?(?:\s?(?:[kMµmn]?[sJW]|k?Wh|%|[kM]B|/s)(?!\w))?|(?<=\s)-(?=\s|$)")
DONE = "\x04done"
PRELUDE = """
terminal() {
  port=$1; shift; "$@" &
  for attempt in $(seq 300); do (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && return; sleep 0.1; done
  echo "nothing listens on port $port"; return 1; }
trap 'failed=$?' ERR
"""


class PageError(Exception):
    """A block that is neither run nor marked, that failed, or whose output is not what the page shows."""


class Step(NamedTuple):
    """Something to run, and the output that the page shows for it."""

    line: int
    kind: str
    text: str
    shown: str = ""
    may_fail: bool = False


def steps(markdown: str) -> Iterator[Step]:
    """Yield the steps of a page: each block of code is one, or is data, or is marked."""
    marks: dict[str, str] = {}
    last: Step | None = None  # the block that runs last so far: the next one may be its output
    for token in MarkdownIt().parse(markdown):
        if token.type not in ("html_block", "code_block", "fence"):
            continue
        line, language = token.map[0] + 1, (token.info.split() or [""])[0]
        if token.type == "fence" and language == "text" and last and "not compared" not in marks:
            last = last._replace(shown=token.content)
            continue
        if last and token.type != "html_block":
            yield last
            last = None
        if token.type == "html_block":
            for kind, value in COMMENT.findall(token.content):
                if kind == "setup":
                    yield from [last] if last else []
                    last = None
                    yield Step(line, "bash", value)
                else:
                    marks[kind] = value
            continue
        if "not run" in marks:
            if not marks["not run"]:
                raise PageError(f"line {line}: this block is not run, for no reason")
        elif "file" in marks:
            yield Step(line, "file", json.dumps([marks["file"], token.content]))
        elif "another terminal, port" in marks:
            command = re.sub(r"^\$ ", "", token.content)
            yield Step(line, "bash", f"terminal {marks['another terminal, port']} {command}")
        elif language == "console":
            *before, last = console_steps(line, token.content)
            yield from before
        elif language in ("bash", "sh", "python"):
            last = Step(line, "python" if language == "python" else "bash", token.content)
        elif language not in DATA | {"text"} or re.match(r"\$ |loadgen (?!.*\[OPTIONS)", token.content):
            raise PageError(
                f"line {line}: a block of {language or 'no language'} is neither run nor marked, and no data"
            )
        marks = {}
    yield from [last] if last else []


def console_steps(line: int, text: str) -> list[Step]:
    """Return the commands of a `console` block with the output below each; one may fail if `echo $?` comes next."""
    found: list[Step] = []
    for number, row in enumerate(text.splitlines(), line + 1):
        if row.startswith("$ "):
            found.append(Step(number, "bash", "echo $status" if row == "$ echo $?" else row[2:]))
        elif not found:
            raise PageError(f"line {number}: output without a command, which begins with '$ '")
        elif found[-1].text.endswith("\\"):
            found[-1] = found[-1]._replace(text=f"{found[-1].text}\n{row}")
        else:
            found[-1] = found[-1]._replace(shown=f"{found[-1].shown}{row}\n")
    following = [step.text for step in found[1:]] + [""]
    return [step._replace(may_fail=after == "echo $status") for step, after in zip(found, following, strict=True)]


def skeleton(text: str) -> list[str]:
    """Return the lines of an output without numbers, widths, rules and lines of dots."""
    lines = (
        " ".join(NUMBER.sub("#", re.sub(r"[─━┄│┃╭╮╰╯╌]+| \?(?= |$)", " ", line)).split()) for line in text.splitlines()
    )
    return [line for line in lines if line and line not in ("...", "…")]


def first_missing(shown: str, printed: str) -> str | None:
    """Return the first line that a page shows and that was not printed after the lines above it."""
    rest = iter(skeleton(printed))
    return next((line for line in skeleton(shown) if line not in rest), None)


class Session:
    """A shell and a namespace of Python, in which the steps of a page leave what later ones use."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.shell = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.bash(PRELUDE)

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_raised: object) -> None:
        assert self.shell.stdin and self.shell.stdout
        self.shell.kill()
        self.shell.wait()
        self.shell.stdin.close()
        self.shell.stdout.close()  # which servers of the page still write to

    def bash(self, text: str) -> tuple[bool, str]:
        """Run commands; return whether all of them succeeded, and their output."""
        assert self.shell.stdin and self.shell.stdout
        self.shell.stdin.write(f"failed=0; {{ {text}\n}} </dev/null\n")
        self.shell.stdin.write(f"status=$?; echo '{DONE}' $failed\n")
        self.shell.stdin.flush()
        printed = ""
        for line in self.shell.stdout:
            before, mark, status = line.partition(DONE)
            printed += before
            if mark:
                return status.strip() == "0", printed
        return False, printed + "the shell ended"

    def python(self, text: str) -> tuple[bool, str]:
        """Run Python in the page's own namespace; return whether nothing was raised, and the output."""
        printed = io.StringIO()
        try:
            with redirect_stdout(printed):
                exec(compile(text, "block", "exec"), self.names)
        except Exception:
            return False, printed.getvalue() + traceback.format_exc()
        return True, printed.getvalue()

    def file(self, text: str) -> tuple[bool, str]:
        """Write a file that the page shows."""
        name, content = json.loads(text)
        Path(name).write_text(content)
        return True, ""


def run(markdown: str) -> int:
    """Run a page in the current folder; return how many steps ran."""
    plan = list(steps(markdown))
    with Session() as session:
        for step in plan:
            succeeded, printed = getattr(session, step.kind)(step.text)
            if not (succeeded or step.may_fail):
                raise PageError(f"line {step.line} failed:\n{step.text}\n{printed[-4000:]}")
            if (missing := first_missing(step.shown, printed)) is not None:
                raise PageError(f"line {step.line} did not print where shown: {missing}\n{printed[-6000:]}")
    return len(plan)


if __name__ == "__main__":
    try:
        print(run(Path(sys.argv[1]).read_text()))
    except PageError as error:
        sys.exit(f"{sys.argv[1]}, {error}")
