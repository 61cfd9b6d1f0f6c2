"""The accounts of several engines are shown side by side, and how it is known whose a request is."""

from loadgen.report.engine_rows import ENGINE_HEADINGS, engine_note, engine_rows
from loadgen.report.format import UNKNOWN
from loadgen.results.summary import EngineEnergy

DECODING = EngineEnergy(
    name="d", role="decode", domains=["gpu:1"], requests=4, named_by={"header": 3, "counters": 1}, input_tokens=9,
    output_tokens=7, measured_joules=1000.0, idle_joules=100.0, prefill_joules=0.0, decode_joules=890.0,
    unattributed_joules=10.0, idle_watts=127.0,
)  # fmt: skip
LOST = EngineEnergy(name="<b>\x1b[31m", domains=[], requests=0, input_tokens=0, output_tokens=0)


def test_an_engine_has_a_cell_for_every_heading_and_none_is_invented() -> None:
    known, lost = engine_rows([DECODING, LOST])
    assert len(known) == len(lost) == len(ENGINE_HEADINGS)
    assert known == ["d (decode)", "4", "1,000 J", "100 J", "0 J", "890 J", "10.0 J", "127 W"]
    assert lost[2:] == [UNKNOWN] * 6
    assert "\x1b" not in lost[0]


def test_the_note_says_how_requests_are_placed() -> None:
    placed = "75.0 % by a response header, 25.0 % as the likeliest by the engines' counters."
    assert engine_note([DECODING], 4).endswith(placed)
    assert engine_note([DECODING], 8).endswith(
        "placed 37.5 % by a response header, 12.5 % as the likeliest by the engines' counters. "
        "4 of 8 are at no engine and have no joules: nothing says which served them."
    )
    assert "placed" not in engine_note([LOST], 0)
