import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from importlib.resources import files

import msgspec
import numpy as np
import pytest

from loadgen.energy.series import EnergySample
from loadgen.errors import LoadgenError
from loadgen.report import provenance_section, run_page
from loadgen.report.failures_table import failures_table
from loadgen.report.markup import Markup, table, tag
from loadgen.report.run_facts import ERROR_MEANING
from loadgen.results.run_folder import RunResult
from loadgen.results.summary import KindOutput
from loadgen.results.verdict import CHECKS, Check, Status, Verdict
from support import sample_runs

VOID = {"meta", "br", "link", "img"}
EVERY_KIND = [sample_runs.run, sample_runs.without_energy, sample_runs.without_completions, sample_runs.single]


class Page(HTMLParser):
    """Elements, ids and words; and that every tag that opens closes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@cache
def page_of(kind: str) -> Page:
    return Page(run_page.render_run_page(getattr(sample_runs, kind)()))


@pytest.mark.parametrize("make", EVERY_KIND)
def test_every_kind_of_run_makes_a_whole_page_that_needs_nothing_else(make) -> None:
    page = page_of(make.__name__)
    assert page.open == []
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    names = {name for name, _ in page.elements}
    assert not names & {"link", "img", "iframe", "object"}
    loads = [v for _, attrs in page.elements for k, v in attrs.items() if k in ("src", "href", "xlink:href")]
    assert all(v is not None and (v.startswith("#") or re.fullmatch(r"\w+\.jsonl?", v)) for v in loads)
    assert "nan" not in page.text.lower().split() and "None" not in page.text.split()
    assert not re.search(r"url\((?!#)|@import", files("loadgen.report").joinpath("page.css").read_text())


def test_references_inside_the_page_have_their_targets() -> None:
    page = page_of("run")
    ids = {attrs["id"] for _, attrs in page.elements if "id" in attrs}
    wanted = {name for _, attrs in page.elements for name in (attrs.get("aria-labelledby") or "").split()}
    assert wanted and wanted <= ids


def test_a_picture_says_in_words_what_it_shows() -> None:
    page = page_of("run")
    pictures = [attrs for name, attrs in page.elements if name == "svg" and attrs.get("role") == "img"]
    assert len(pictures) >= 8
    assert all("aria-labelledby" in attrs or attrs.get("aria-label") for attrs in pictures)
    assert "Time to first token (TTFT), cumulative share of requests" in page.text


def test_words_from_the_server_and_the_trace_are_text_not_markup() -> None:
    evil = '<script>alert("x")</script>'
    made = sample_runs.run(num_requests=40, failing=0.3)
    summary, info = made.summary, made.info
    assert summary is not None
    records = [msgspec.structs.replace(r, workload=evil, detail=evil if r.error else None) for r in made.records]
    summary = msgspec.structs.replace(
        summary,
        run_id=evil,
        by_workload={evil: summary.by_workload["chat"], "b" + evil: summary.by_workload["code"]},
        energy=msgspec.structs.replace(summary.energy, valid=False, reasons=[evil], source=evil, method=evil),
        verdict=Verdict.of([Check(name=name, status="failed", reason=evil, rows=[evil]) for name in CHECKS]),
    )
    info = msgspec.structs.replace(
        info, run_id=evil, config={"trace": evil, evil: [evil, {evil: evil}]}, server={"model": evil}, host={evil: evil}
    )
    text = run_page.render_run_page(replace(made, summary=summary, info=info, records=records))
    assert "<script>alert" not in text
    assert evil in Page(text).text


@pytest.mark.parametrize(
    ("status", "kind", "head", "tile"),
    [
        ("ok", "good", "OK", "Time to first token (TTFT)"),
        ("warning", "fair", "OK, with warnings", "Time to first token (TTFT) !"),
        ("failed", "bad", "FAILED", "Time to first token (TTFT) !!"),
    ],
)
def test_the_page_begins_with_the_verdict_and_marks_the_tiles_that_it_touches(
    status: Status, kind: str, head: str, tile: str
) -> None:
    made = sample_runs.single()
    assert made.summary is not None
    reason = None if status == "ok" else "the server stood still"
    checks = [
        Check(
            name=n, status=status if n == "server" else "ok", reason=reason if n == "server" else None, rows=["ttft_s"]
        )
        for n in CHECKS
    ]
    summary = msgspec.structs.replace(made.summary, verdict=Verdict.of(checks))
    text = run_page.render_run_page(replace(made, summary=summary))
    assert f'<div class="verdict {kind}"><strong>{head}</strong>' in text
    assert f"<dt>{tile}</dt>" in text
    assert ("<li>server: the server stood still</li>" in text) is (status != "ok")


def test_only_tag_makes_markup() -> None:
    assert tag("p", "<b>", title='"<') == '<p title="&quot;&lt;">&lt;b&gt;</p>'
    assert tag("p", tag("b", "x")) == "<p><b>x</b></p>"
    assert isinstance(table(["<"], [["<"]], "<"), Markup) and "<<" not in table(["<"], [["<"]], "<")


def test_the_ledger_on_the_page_adds_up_to_the_millijoule() -> None:
    made = sample_runs.run()
    assert made.attribution is not None
    shown = re.findall(
        r'<th scope="row">(?:<i class="key \w+"></i> \w+|= measured)</th><td[^>]*>([\d,.]+) J</td>',
        run_page.render_run_page(made),
    )
    *accounts, measured = (int(re.sub("[,.]", "", cell)) for cell in shown)
    assert len(accounts) == 4
    assert sum(accounts) == measured == made.attribution.measured_mj


def test_accounts_that_do_not_add_up_are_said_first() -> None:
    made = sample_runs.run(num_requests=20)
    assert made.attribution is not None
    off = msgspec.structs.replace(made.attribution, idle_mj=made.attribution.idle_mj + 5)
    page = Page(run_page.render_run_page(sample_runs.judged(replace(made, attribution=off))))
    assert "FAILED energy: the accounts do not add up to what was measured: -5 mJ" in page.text
    assert "ENERGY NOT VALID" in page.text


def test_what_is_not_valid_says_so_and_shows_no_zero_for_unknown() -> None:
    page = page_of("without_energy")
    assert "Energy was not measured: nvml: libnvidia-ml.so.1" in page.text
    assert "libnvidia-ml.so.1 was not found" in page.text
    assert " 0 J" not in page.text
    assert "no request completed" in page_of("without_completions").text


def test_simulated_is_said_only_when_it_is() -> None:
    made = sample_runs.single()
    real = replace(made, info=msgspec.structs.replace(made.info, server={"model": "m", "simulated": False}))
    assert "SIMULATED" in page_of("single").text
    assert "SIMULATED" not in run_page.render_run_page(real)


def test_a_run_without_a_summary_is_an_error_in_one_line() -> None:
    with pytest.raises(LoadgenError, match="no summary"):
        run_page.render_run_page(replace(sample_runs.single(), summary=None))


def test_measured_but_not_attributed_shows_no_accounts() -> None:
    page = Page(run_page.render_run_page(replace(sample_runs.single(), attribution=None)))
    assert "nothing was attributed" in page.text
    assert "= measured" not in page.text


# ---------------------------------------------------------------- figures


def crowd(factor: int) -> RunResult:
    """A run whose requests and energy were copied one after the other `factor` times."""
    made = sample_runs.run()
    assert made.attribution is not None
    n, span = len(made.records), 120_000_000_000
    instants = ("scheduled_ns", "sent_ns", "first_token_ns", "last_token_ns", "finished_ns")
    records = [
        msgspec.structs.replace(
            r,
            index=r.index + k * n,
            chunk_ns=[t + k * span for t in r.chunk_ns],
            **{f: t + k * span for f in instants if (t := getattr(r, f)) is not None},
        )
        for k in range(factor)
        for r in made.records
    ]
    shares = [
        msgspec.structs.replace(e, index=e.index + k * n) for k in range(factor) for e in made.attribution.requests
    ]
    last = made.energy[-1].joules
    energy = [
        EnergySample(s.t_ns + k * span, s.domain, s.joules + k * last) for k in range(factor) for s in made.energy
    ]
    return replace(
        made,
        schedule=[msgspec.structs.replace(r, index=r.index + k * n) for k in range(factor) for r in made.schedule],
        records=records,
        energy=energy,
        attribution=msgspec.structs.replace(made.attribution, requests=shares),
    )


def test_a_large_run_makes_no_large_page_and_says_how_it_was_thinned() -> None:
    text = run_page.render_run_page(crowd(25))
    assert len(text.encode()) < 1_500_000
    assert " of 9,700 requests: the 50 highest and lowest of TTFT" in text
    assert "drawn at up to 500 ranks" in text
    assert text.count("<path") < 4_000


# ---------------------------------------------------------------- colours


def _themes() -> tuple[dict[str, str], dict[str, str]]:
    css = files("loadgen.report").joinpath("page.css").read_text()
    light, dark = (dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", css, re.S))
    assert light.keys() == dark.keys()
    return light, dark


def _luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(a: str, b: str) -> float:
    low, high = sorted((_luminance(a), _luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", _themes(), ids=["light", "dark"])
def test_text_and_lines_stand_out_from_what_is_behind_them(theme: dict[str, str]) -> None:
    text = [(name, back) for name in ("ink", "soft", "good", "fair", "bad") for back in ("paper", "panel")]
    text += [(f"hi{i}", f"h{i}") for i in range(7)] + [("paper", "fair")]
    assert {pair: c for pair in text if (c := _contrast(theme[pair[0]], theme[pair[1]])) < 4.5} == {}
    lines = [f"s{i}" for i in range(6)] + ["prefill", "idle", "unattributed"]
    assert {name: c for name in lines if (c := _contrast(theme[name], theme["paper"])) < 3} == {}


# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
BLINDNESS = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def _seen(colour: str, eye: str) -> np.ndarray:
    """Oklab coordinates of a colour as that eye sees it."""
    srgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(BLINDNESS[eye]) @ linear, 0, 1)
    to_lms = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566]]
    lms = np.cbrt(np.array([*to_lms, [0.0883024619, 0.2817188376, 0.6299787005]]) @ linear)
    to_lab = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099]]
    return np.array([*to_lab, [0.0259040371, 0.7827717662, -0.8086757660]]) @ lms


@pytest.mark.parametrize("theme", _themes(), ids=["light", "dark"])
@pytest.mark.parametrize("eye", BLINDNESS)
def test_neighbouring_colours_differ_for_colour_blind_readers(theme: dict[str, str], eye: str) -> None:
    pairs = [("s0", "s1"), ("s1", "s2"), ("s0", "s2"), ("prefill", "decode"), ("decode", "idle"), ("prefill", "idle")]
    apart = {pair: float(np.linalg.norm(_seen(theme[pair[0]], eye) - _seen(theme[pair[1]], eye))) for pair in pairs}
    assert {pair: d for pair, d in apart.items() if d < 0.06} == {}


# -- sections, each alone ---------------------------------------------------------------------------------------------


def test_failures_are_listed_with_an_example_and_a_run_without_any_says_so() -> None:
    made = sample_runs.run()
    text = Page(failures_table(made.records, sample_runs.START_NS)).text
    assert all(ERROR_MEANING[r.error] in text for r in made.records if r.error)
    assert Page(failures_table((r for r in made.records if r.ok), 0)).text == "No request failed."


def test_provenance_flattens_options_and_leaves_out_what_is_empty() -> None:
    made = sample_runs.single()
    assert made.summary is not None
    info = msgspec.structs.replace(made.info, config={"a": {"b": [1, "x"], "c": None}, "d": []}, host={}, start_ns=None)
    text = Page(provenance_section.provenance(info, made.summary.instrument)).text
    assert "a.b 1, x" in text and "a.c -" in text and "d -" in text
    assert "Host" not in text and "started -" in text


def test_kinds_of_output_have_a_table_of_their_own() -> None:
    result = sample_runs.run()
    assert result.summary is not None
    kinds = {"tools": KindOutput(requests=1, tokens=30, joules=6.0, joules_per_token=0.2)}
    page = run_page.render_run_page(
        replace(result, summary=msgspec.structs.replace(result.summary, output_kinds=kinds))
    )
    assert "tool calls" in page and "Output by kind" in page
    assert "Output by kind" not in run_page.render_run_page(result)
