"""Conversions between the units that cross a boundary. Names carry the unit, so a call reads as an equation."""

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000
MJ_PER_J = 1_000
UJ_PER_MJ = 1_000
J_PER_KWH = 3.6e6


def ns_from_s(seconds: float) -> int:
    """Return whole nanoseconds, the nearest to `seconds`."""
    return round(seconds * NS_PER_S)


def s_from_ns(ns: int) -> float:
    return ns / NS_PER_S


def mj_from_j(joules: float) -> int:
    """Return whole millijoules: the unit in which energy accounts are kept, so that they add up exactly."""
    return round(joules * MJ_PER_J)


def j_from_mj(millijoules: int) -> float:
    return millijoules / MJ_PER_J


def energy_imbalance_mj(measured_mj: int, attributed_mj: int, idle_mj: int, unattributed_mj: int) -> int:
    """Measured energy less the accounts' sum: 0 where energy is conserved, and anything else is a bug."""
    return measured_mj - (attributed_mj + idle_mj + unattributed_mj)
