"""Values of --engine are read or refused in one line, and every engine has its own domains of one meter."""

import pytest

from loadgen.energy import fleet_meter
from loadgen.energy.choose import open_meter
from loadgen.energy.fleet_meter import MeterAtEngine, open_fleet_meter
from loadgen.energy.meter import EnergyMeter, Reading
from loadgen.energy.named_engine import NamedEngine, domains_of, parse_engine, parse_engines
from loadgen.energy.series import EnergyDomain, EnergySample, scope
from loadgen.errors import LoadgenError

A, B = "a=http://127.0.0.1:8001,gpus=0", "b=http://127.0.0.1:8002/v1,gpus=1"


class Fixed:
    """A meter of GPUs that always counts one joule."""

    poll_s = 0.01

    def __init__(self, *gpus: str) -> None:
        self.domains = [EnergyDomain(name=f"gpu:{gpu}", source="nvml-counter", uuid=f"GPU-{gpu}") for gpu in gpus]
        self.notes = ["a note"]
        self.closed = False

    def read(self) -> Reading:
        throttled = tuple((domain.name, "heat") for domain in self.domains)
        return Reading([EnergySample(1, domain.name, 1.0) for domain in self.domains], 0, ("late",), throttled)

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("text", "engine"),
    [
        ("a=http://h:1/", NamedEngine(name="a", url="http://h:1")),
        (B, NamedEngine(name="b", url="http://127.0.0.1:8002", gpus=("1",))),
        (
            "p-1=https://h/pool?x=a,b,gpus=0:GPU-7,role=prefill,energy=http://m:9478",
            NamedEngine(
                name="p-1",
                url="https://h/pool?x=a,b",
                gpus=("0", "GPU-7"),
                role="prefill",
                energy="http://m:9478",
            ),
        ),
    ],
)
def test_an_engine_is_a_name_a_url_and_options(text: str, engine: NamedEngine) -> None:
    assert parse_engine(text) == engine


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("http://h:1", "begins with no NAME="),
        ("a b=http://h:1", "begins with no NAME="),
        ("a=" + "x" * 500, "is no URL"),
        ("a=ftp://h", "is no URL"),
        ("a=http://h:port", "is no URL"),
        ("a=http://h,gpu=0", "is no URL"),
        ("a=http://h:1/v1,rol=decode", "is no URL"),
        ("a=http://h:1,energy=http://g,gpu=0", "is no URL"),
        ("a=http://h:1,role=both", "is none of prefill, decode"),
        ("a=http://h:1,gpus=", "not GPUs"),
        ("a=http://h:1,gpus=0:0", "not GPUs"),
        ("a=http://h:1,gpus=0,gpus=1", "twice"),
        ("a=http://h:1,energy=nvml", "is no URL"),
    ],
)
def test_other_text_is_refused_in_one_line(text: str, words: str) -> None:
    with pytest.raises(LoadgenError, match=words) as refusal:
        parse_engine(text)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([A, A.replace("8001", "8003")], "the name a twice"),
        ([A, A.replace("a=", "b=").replace("gpus=0", "gpus=1")], "the URL http://127.0.0.1:8001 twice"),
        ([A, B.replace("gpus=1", "gpus=0")], "GPU 0 is of two engines"),
        ([A + ",role=prefill", B], "go together"),
        ([f"e{i}=http://h:{i},energy=http://m:{i}" for i in range(1, 300)], "are the most"),
    ],
)
def test_engines_that_do_not_go_together_are_refused(texts: list[str], words: str) -> None:
    with pytest.raises(LoadgenError, match=words):
        parse_engines(texts)


def test_engines_may_share_all_of_their_gpus_or_none() -> None:
    engines = ["a=http://h:1,gpus=0:1", "b=http://h:2,gpus=1:0"]
    assert len(parse_engines(engines, sharing=True)) == 2
    with pytest.raises(LoadgenError, match="GPU 0 is of two engines"):
        parse_engines(["a=http://h:1,gpus=0:1", "b=http://h:2,gpus=0"], sharing=True)
    with pytest.raises(LoadgenError, match="of two engines"):
        parse_engines(engines)
    with pytest.raises(LoadgenError, match="GPU 0 is of more than two engines"):
        parse_engines([*engines, "c=http://h:3,gpus=0:1"], sharing=True)


def test_every_engine_has_its_own_domains_by_index_by_uuid_or_by_its_source() -> None:
    domains = [
        *Fixed("0", "1", "2").domains,
        EnergyDomain(name="cpu:package-0", source="rapl"),
        *MeterAtEngine("far", Fixed("0")).domains,
    ]
    a, b, far = (
        NamedEngine(name="a", url="u", gpus=("0", "GPU-2")),
        NamedEngine(name="b", url="v", gpus=("1",)),
        NamedEngine(name="far", url="w", energy="x"),
    )
    assert [[d.name for d in domains_of(e, domains)] for e in (a, b, far)] == [
        ["gpu:0", "gpu:2"],
        ["gpu:1"],
        ["gpu:0@far"],
    ]
    with pytest.raises(LoadgenError, match="has no GPU 7"):
        domains_of(NamedEngine(name="c", url="u", gpus=("7",)), domains)
    assert domains_of(NamedEngine(name="c", url="u", gpus=("7",)), []) == []  # no energy was measured


def test_a_domain_at_an_engine_measures_what_it_measured() -> None:
    names = ("gpu:0", "cpu:package-0", "psys", "machine:plug")
    kinds = ["accelerator", "host", "machine", "machine"]
    for suffix in ("", "@far"):
        assert [scope(EnergyDomain(name=name + suffix, source="s")) for name in names] == kinds


def test_the_meter_of_an_engine_names_it_everywhere() -> None:
    meter = MeterAtEngine("far", Fixed("0"))
    reading = meter.read()
    assert [sample.domain for sample in reading.samples] == ["gpu:0@far"]
    assert (reading.errors, reading.throttled) == (("far: late",), (("gpu:0@far", "heat"),))
    assert meter.notes == ["far: a note"]


def test_one_meter_reads_all_engines_and_asks_only_for_their_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: dict[str, Fixed] = {}
    requested: dict[str, object] = {}

    def open_it(choice: str, *, gpus: object, **_: object) -> tuple[EnergyMeter, list[str]]:
        opened[choice] = Fixed("0", "1") if choice == "nvml" else Fixed("7")
        requested[choice] = gpus
        return opened[choice], []

    monkeypatch.setattr(fleet_meter, "open_meter", open_it)
    engines = parse_engines([A, B, "far=http://h:1,energy=http://m:9478"])
    meter, reasons, same = open_fleet_meter(engines, "nvml")
    assert meter is not None
    assert [domain.name for domain in meter.domains] == ["gpu:0", "gpu:1", "gpu:7@far"]
    assert (reasons, same) == ([], engines)
    assert requested == {"nvml": ["0", "1"], "http://m:9478": None}
    with pytest.raises(LoadgenError, match="which GPUs are its own"):
        open_fleet_meter(parse_engines([A, "b=http://127.0.0.1:8002"]), "nvml")
    with pytest.raises(LoadgenError, match="gpu:0 is of a and of b"):
        open_fleet_meter(parse_engines([A, "b=http://127.0.0.1:8002,gpus=GPU-0:1"]), "nvml")
    with pytest.raises(LoadgenError, match="has no GPU 5"):
        open_fleet_meter(parse_engines([A, B.replace("gpus=1", "gpus=5")]), "nvml")
    assert opened["nvml"].closed


def test_an_engine_on_another_host_without_a_source_is_a_reason_and_no_meter() -> None:
    meter, reasons, _ = open_fleet_meter(parse_engines(["a=http://192.0.2.1:1,gpus=0", B]))
    assert meter is None
    assert "energy=http://HOST:9478" in reasons[0]
    assert open_fleet_meter(parse_engines([A, B]), "none")[0] is None
    with pytest.raises(LoadgenError, match=r"^--engine c: http://127.0.0.1:1 cannot be read"):
        open_fleet_meter(parse_engines(["c=http://h:1,energy=http://127.0.0.1:1"]))
    assert open_meter("none")[0] is None
