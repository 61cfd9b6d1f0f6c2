"""A request that the server would refuse for its length is refused before the run."""

import pytest

from loadgen.client.server_info import ServerInfo
from loadgen.errors import LoadgenError
from loadgen.workload.schedule import ScheduledRequest


@pytest.mark.parametrize(
    ("limit", "lengths", "index"),
    [
        (128, [(100, 28)], None),
        (128, [(100, 29)], 0),
        (128, [(100, 28), (1, 128), (2, 128)], 1),
        (None, [(10**9, 10**9)], None),
        (128, [], None),
    ],
    ids=["exactly as long", "one longer", "the first that is longer", "no limit known", "no requests"],
)
def test_requests_fit_up_to_the_context(limit: int | None, lengths: list[tuple[int, int]], index: int | None) -> None:
    server = ServerInfo("http://h/v1", "m", None, limit)
    requests = [
        ScheduledRequest(index=i, offset_ns=0, workload="chat", input_tokens=n, output_tokens=o)
        for i, (n, o) in enumerate(lengths)
    ]
    if index is None:
        server.check_fits(requests)
    else:
        with pytest.raises(LoadgenError, match=f"^request {index} needs"):
            server.check_fits(requests)


@pytest.mark.parametrize(("inputs", "refused"), [(100, False), (101, True)])
def test_a_prompt_fits_up_to_the_servers_own_limit(inputs: int, refused: bool) -> None:
    server = ServerInfo("http://h/v1", "m", "tgi", 4096, max_input_tokens=100)
    request = ScheduledRequest(index=3, offset_ns=0, workload="chat", input_tokens=inputs, output_tokens=1)
    if refused:
        with pytest.raises(LoadgenError, match=r"^request 3 has 101 input tokens, but the server takes 100"):
            server.check_fits([request])
    else:
        server.check_fits([request])
