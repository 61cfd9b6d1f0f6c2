"""Poll a meter in one thread and hand on its samples.

It is a daemon thread: a driver call that never returns must not keep the program alive. Nothing here runs in an event
loop; `stop` blocks until the counter's next update, so a coroutine calls it in a thread.
"""

import threading
from collections import Counter, deque
from collections.abc import Callable
from statistics import median

import msgspec

from loadgen.clock import monotonic_ns, thread_cpu_ns
from loadgen.energy.meter import EnergyMeter, Reading, pause_s
from loadgen.energy.series import EnergySample, accelerators
from loadgen.errors import MeterError
from loadgen.units import NS_PER_S, ns_from_s, s_from_ns

ANSWER_S = 5.0
"""Longest read; after that the meter has stopped answering."""
BRACKET_S = 35.0
"""Longest wait for a last update: a DCGM exporter refreshes its page every 30 s."""
LIVE_NS = NS_PER_S
"""Span of the mean that is shown as the power now."""
STALE_NS = 5 * NS_PER_S
"""Time without an update after which the power of a domain is unknown."""
STOPPED_ANSWERING = "the meter stopped answering"


class LivePower(msgspec.Struct, frozen=True):
    """Power and energy so far, for display only."""

    watts: dict[str, float]
    """Mean over about the last second, by domain; domains whose power is unknown are absent."""
    joules: dict[str, float]
    """Energy since sampling began, by domain."""
    total_joules: float
    """Sum over the GPUs, or over the outermost domains where no meter has one."""
    total_watts: float | None
    """Sum over the same domains; None when the power of one of them is unknown."""


class SamplerReport(msgspec.Struct, frozen=True, kw_only=True):
    """Statistics of the sampling itself."""

    reads: int
    samples: int
    resets: int
    """Counter restarts; some energy around each is unknown."""
    errors: dict[str, int]
    """Message -> count."""
    silence_s: dict[str, float]
    """Longest time without an update, by domain: it shows how coarse the series is, and whether it broke off."""
    throttled: dict[str, dict[str, float]] = msgspec.field(name="held_back")
    """Share of the checks by domain and reason for reduced clocks. Domains that do not report it are absent."""
    read_cost_s: float | None
    """Median duration of a read."""
    period_s: float | None
    """Mean time from one read to the next, as achieved."""
    cpu_s: float
    """CPU time of the sampling thread."""


class _Domain:
    """The recent samples of one domain. Mutable; guarded by the sampler's condition."""

    def __init__(self, since_ns: int) -> None:
        self.recent: deque[EnergySample] = deque()
        self.updated_ns = since_ns
        self.silence_ns = 0
        self.start_joules: float | None = None

    def add(self, sample: EnergySample) -> None:
        self.silence_ns = max(self.silence_ns, sample.t_ns - self.updated_ns)
        self.updated_ns = sample.t_ns
        if self.start_joules is None:
            self.start_joules = sample.joules
        if sample.gap:
            self.recent.clear()
        while len(self.recent) > 1 and self.recent[1].t_ns <= sample.t_ns - LIVE_NS:
            self.recent.popleft()
        self.recent.append(sample)

    @property
    def joules(self) -> float:
        return 0.0 if self.start_joules is None else self.recent[-1].joules - self.start_joules

    def watts(self, now_ns: int) -> float | None:
        if len(self.recent) < 2 or now_ns - self.updated_ns > STALE_NS:
            return None
        start, end = self.recent[0], self.recent[-1]
        return (end.joules - start.joules) / s_from_ns(end.t_ns - start.t_ns)


def closing_wait_s(meter: EnergyMeter) -> float:
    """Return how long a last update can take: two periods of the slowest domain, two polls and a little."""
    periods = [domain.period_s or 0.0 for domain in meter.domains]
    return min(2 * max(periods, default=0.0) + 2 * meter.poll_s + 0.2, BRACKET_S)


class Sampler:
    """A sampling thread: `start` it, then `stop` it. The meter stays open: after a hang, the hung call still holds it.

    `on_samples` gets each batch, never empty, in the sampling thread.
    """

    def __init__(
        self,
        meter: EnergyMeter,
        on_samples: Callable[[list[EnergySample]], None],
        *,
        clock: Callable[[], int] = monotonic_ns,
        answer_s: float = ANSWER_S,
    ) -> None:
        self._meter = meter
        self._on_samples = on_samples
        self._clock = clock
        self._answer_s = answer_s
        self._thread = threading.Thread(target=self._run, name="energy-sampler", daemon=True)
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        """Guards everything below; notified after every read."""
        self._domains: dict[str, _Domain] = {}
        self._errors: Counter[str] = Counter()
        self._clocks: dict[str, Counter[str | None]] = {}
        self._costs_ns: deque[int] = deque(maxlen=1000)
        self._reads = self._samples = self._resets = self._cpu_ns = 0
        self._start_read_ns = self._end_read_ns = 0
        self._reading_since_ns: int | None = None
        self._crash: BaseException | None = None

    def start(self) -> None:
        now_ns = self._clock()
        self._domains = {domain.name: _Domain(now_ns) for domain in self._meter.domains}
        self._thread.start()

    def cancel(self) -> None:
        """End the thread, without waiting for it."""
        self._stopping.set()

    def stop(self) -> SamplerReport:
        """Stop after one more update of every domain, so that the series covers this moment.

        Blocks for a few periods at most. Raises the exception of `on_samples`, if it raised one.
        """
        end_ns = self._clock()

        def is_covered() -> bool:
            return all(domain.updated_ns >= end_ns for domain in self._domains.values())

        with self._changed:
            wait_s = 0.0 if self.hangs else closing_wait_s(self._meter)
            self._changed.wait_for(lambda: is_covered() or not self._thread.is_alive(), wait_s)
        self._stopping.set()
        self._thread.join(self._answer_s)
        if self._crash is not None:
            raise self._crash
        return self.report()

    def latest(self) -> LivePower:
        """Return a snapshot for the live view. Never waits for the meter."""
        now_ns = self._clock()
        with self._changed:
            power = {name: domain.watts(now_ns) for name, domain in self._domains.items()}
            joules = {name: domain.joules for name, domain in self._domains.items()}
        watts = {name: value for name, value in power.items() if value is not None}
        outer = power.keys() & {domain.name for domain in accelerators(self._meter.domains)}
        measured = [value for name, value in watts.items() if name in outer]
        total_watts = sum(measured) if measured and len(measured) == len(outer) else None
        return LivePower(watts, joules, sum(joules[name] for name in outer), total_watts)

    def report(self) -> SamplerReport:
        """Return the statistics so far, at any time. A read that hangs at this moment counts as an error."""
        now_ns = self._clock()
        with self._changed:
            errors = self._errors + Counter({STOPPED_ANSWERING: int(self._hangs(now_ns))})
            span_ns = self._end_read_ns - self._start_read_ns
            return SamplerReport(
                reads=self._reads,
                samples=self._samples,
                resets=self._resets,
                errors=dict(errors),
                silence_s={
                    name: s_from_ns(max(domain.silence_ns, now_ns - domain.updated_ns))
                    for name, domain in self._domains.items()
                },
                throttled={
                    name: {reason: n / checks.total() for reason, n in checks.items() if reason is not None}
                    for name, checks in self._clocks.items()
                },
                read_cost_s=s_from_ns(round(median(self._costs_ns))) if self._costs_ns else None,
                period_s=s_from_ns(span_ns) / (self._reads - 1) if self._reads > 1 else None,
                cpu_s=s_from_ns(self._cpu_ns),
            )

    @property
    def hangs(self) -> bool:
        """True if a read has had no answer for too long: the meter can neither be closed nor read."""
        return self._hangs(self._clock())

    def _hangs(self, now_ns: int) -> bool:
        start_ns = self._reading_since_ns
        return start_ns is not None and now_ns - start_ns > ns_from_s(self._answer_s)

    def _run(self) -> None:
        # Any exception is caught here: it would be lost with the thread. `stop` raises it again.
        try:
            self._poll()
        except BaseException as err:
            self._crash = err
            with self._changed:
                self._changed.notify_all()

    def _poll(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            start_ns = self._clock()
            failures = 0 if self._read(start_ns) else failures + 1
            self._stopping.wait(pause_s(self._meter.poll_s, failures) - s_from_ns(self._clock() - start_ns))

    def _read(self, start_ns: int) -> bool:
        """Read once, hand the samples on and count them. Returns True if the meter answered."""
        self._reading_since_ns = start_ns
        answered = True
        try:
            reading = self._meter.read()
        except MeterError as err:
            answered = False
            reading = Reading([], errors=(str(err),))
        self._reading_since_ns = None
        if reading.samples:
            self._on_samples(reading.samples)
        with self._changed:
            self._tally(start_ns, reading)
            self._changed.notify_all()
        return answered

    def _tally(self, start_ns: int, reading: Reading) -> None:
        cost_ns = self._clock() - start_ns
        self._costs_ns.append(cost_ns)
        self._start_read_ns = self._start_read_ns or start_ns
        self._end_read_ns = start_ns
        self._reads += 1
        self._cpu_ns = thread_cpu_ns()
        if cost_ns > ns_from_s(self._answer_s):
            self._errors[STOPPED_ANSWERING] += 1
        self._errors.update(reading.errors)
        self._resets += reading.resets
        for name, reason in reading.throttled:
            self._clocks.setdefault(name, Counter())[reason] += 1
        self._samples += len(reading.samples)
        for sample in reading.samples:
            self._domains.setdefault(sample.domain, _Domain(start_ns)).add(sample)  # a meter may get domains late
