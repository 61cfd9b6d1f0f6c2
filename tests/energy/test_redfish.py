"""A chassis behind Redfish is a machine's energy; its credentials stay in the environment."""

import json
import shutil
import ssl
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from loadgen.energy.choose import open_meter
from loadgen.energy.redfish import PASSWORD, USER, RedfishMeter, number_at
from loadgen.errors import LoadgenError, MeterError
from loadgen.units import NS_PER_S
from support.served_in_thread import serving

CHASSIS = "/redfish/v1/Chassis/1"
POWER = {
    "@odata.type": "#Power.v1_7_1.Power",
    "PowerControl": [
        {"MemberId": "0", "PowerConsumedWatts": 590, "PowerMetrics": {"AverageConsumedWatts": 587, "IntervalInMin": 20}}
    ],
}
"""As HPE's iLO and Dell's iDRAC answer, shortened."""


class Controller:
    """A server of resources by path."""

    def __init__(self) -> None:
        self.resources: dict[str, Any] = {}
        self.user: str | None = None
        """"user:password" without which it refuses."""
        self.asked: list[str] = []
        bmc = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                bmc.asked.append(self.path)
                wanted = None if bmc.user is None else "Basic " + b64encode(bmc.user.encode()).decode()
                body = bmc.resources.get(self.path.removeprefix(CHASSIS + "/"))
                status = 401 if wanted and self.headers["Authorization"] != wanted else 404 if body is None else 200
                self.send_response(body if isinstance(body, int) else status)
                self.end_headers()
                if status == 200 and not isinstance(body, int):
                    self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"redfish+http://127.0.0.1:{self.http.server_port}{CHASSIS}"


@pytest.fixture
def bmc() -> Iterator[Controller]:
    served = Controller()
    with serving(served.http):
        yield served


@pytest.fixture
def tls(tmp_path: Path) -> ssl.SSLContext:
    """A server's context with a certificate that nobody signed."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    make = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=bmc",
        "-keyout",
        key,
        "-out",
        cert,
    ]
    subprocess.run(make, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context


class Ticking:
    """A clock that the test moves."""

    ns = 0

    def __call__(self) -> int:
        return self.ns


def environment(energy: float | None = None, power: float | None = None) -> dict[str, Any]:
    return {"EnvironmentMetrics": {"EnergyJoules": {"Reading": energy}, "PowerWatts": {"Reading": power}}}


@pytest.mark.parametrize(
    ("steps", "source", "joules"),
    [
        ([environment(energy=j, power=9) for j in (10, 110, 310)], "redfish-counter", 200.0),
        ([environment(power=w) for w in (100, 300, 300)], "redfish-power", 500.0),
        ([{**environment(), "Power": POWER}] * 3, "redfish-power", 1180.0),
        ([{"Power": POWER}] * 3, "redfish-power", 1180.0),
    ],
)
def test_a_counter_is_preferred_to_a_power_and_that_to_the_older_resource(
    steps: list[dict[str, Any]], source: str, joules: float, bmc: Controller
) -> None:
    clock = Ticking()
    bmc.resources = steps[0]
    meter = RedfishMeter(bmc.url, environ={}, clock=clock)
    samples = []
    for second, resources in enumerate(steps):
        clock.ns, bmc.resources = second * NS_PER_S, resources
        samples += meter.read().samples
    assert [(domain.name, domain.source) for domain in meter.domains] == [("machine:127.0.0.1", source)]
    assert samples[-1].joules - samples[0].joules == pytest.approx(joules)
    meter.close()


def test_a_resource_that_moved_to_a_slash_is_read_there(bmc: Controller) -> None:
    bmc.resources = {"Power": 308, "Power/": POWER}
    RedfishMeter(bmc.url, environ={}).close()
    assert bmc.asked[-1].endswith("/Power/")


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({}, "has neither EnvironmentMetrics with a reading nor a Power.PowerControl; .*answers 404"),
        ({"Power": {"PowerControl": []}}, "has neither"),
        ({"Power": b"<html>"}, "is no JSON"),
        ({"Power": b"[" * 100_000}, "is no JSON"),
        ({"Power": b" " * (2 << 20)}, "sent more than 1 MiB"),
        ({"Power": {"PowerControl": [{"PowerConsumedWatts": -1}]}}, "has neither"),
    ],
)
def test_what_has_no_power_is_refused_in_one_line(resources: dict[str, Any], words: str, bmc: Controller) -> None:
    bmc.resources = resources
    with pytest.raises(LoadgenError, match=words) as refused:
        open_meter(bmc.url)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("value", [True, "5", None, -1, 1e300, float("nan"), [5], {"a": 1}])
def test_what_is_no_energy_is_unknown(value: Any) -> None:
    assert number_at({"a": [{"b": value}]}, ("a", 0, "b")) is None
    assert number_at(value, ("a", 0, "b")) is None


def test_a_value_that_goes_away_is_an_error_and_no_sample(bmc: Controller) -> None:
    bmc.resources = {"Power": POWER}
    meter = RedfishMeter(bmc.url, environ={})
    bmc.resources = {"Power": {"PowerControl": [{"PowerConsumedWatts": None}]}}
    with pytest.raises(MeterError, match="has no value now"):
        meter.read()
    meter.close()


def test_credentials_come_from_the_environment_and_are_in_no_message(bmc: Controller) -> None:
    bmc.resources, bmc.user = {"Power": POWER}, "operator:s3cr/t:@ü"
    given = {USER: "operator", PASSWORD: "s3cr/t:@ü"}
    meter = RedfishMeter(bmc.url, environ=given)
    assert not any("s3cr" in note for note in meter.notes)
    meter.close()
    with pytest.raises(MeterError, match=f"answers 401: set {USER} and {PASSWORD}") as refused:
        RedfishMeter(bmc.url, environ={**given, PASSWORD: "wr0ng"})
    assert "wr0ng" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redfish+https://root:calvin@bmc/redfish/v1/Chassis/1", "holds no password"),
        ("redfish+http://bmc.example/redfish/v1/Chassis/1", "sent over https only"),
        ("redfish+https://bmc/redfish/v1/Chassis/1?verify=maybe", r"is \?verify=no or none"),
        ("redfish+ftp://127.0.0.1/redfish", "no http:// or https:// address"),
        ("redfish+https://[bmc/redfish", "malformed"),
    ],
)
def test_a_password_is_in_no_address_and_sent_over_no_plain_connection(url: str, words: str) -> None:
    with pytest.raises(MeterError, match=words) as refused:
        RedfishMeter(url, environ={USER: "root", PASSWORD: "calvin"})
    assert "calvin" not in str(refused.value)


def test_a_certificate_is_verified_unless_the_address_states_otherwise(bmc: Controller, tls: ssl.SSLContext) -> None:
    bmc.resources = {"Power": POWER}
    bmc.http.socket = tls.wrap_socket(bmc.http.socket, server_side=True)
    url = bmc.url.replace("http:", "https:")
    with pytest.raises(MeterError, match="certificate"):
        RedfishMeter(url, environ={})
    meter = RedfishMeter(url + "?verify=no", environ={})
    assert "not verified" in meter.notes[-1]
    meter.close()
