"""Energy series x records -> joules per request. Conserves energy to the millijoule."""

import msgspec


class RequestEnergy(msgspec.Struct, frozen=True, kw_only=True):
    """One line of attribution.jsonl. joules = prefill_joules + decode_joules, in whole millijoules."""

    index: int
    prefill_joules: float
    decode_joules: float
    joules: float


class RunAttribution(msgspec.Struct, frozen=True, kw_only=True):
    """Where every millijoule went: measured_mj == idle_mj + attributed_mj + unattributed_mj, exactly."""

    method: str
    start_ns: int
    end_ns: int
    measured_mj: int
    idle_mj: int
    attributed_mj: int
    unattributed_mj: int
    requests: list[RequestEnergy]
