"""One thread that polls a meter, and hands on what moved.

A daemon thread: a driver call that never returns must not keep the program alive. Nothing here runs in an event loop;
`stop` blocks until the counter's next move, so a coroutine calls it in a thread.
"""

import threading
from collections import Counter, deque
from collections.abc import Callable
from statistics import median

import msgspec

from loadgen.clock import monotonic_ns, thread_cpu_ns
from loadgen.energy.meter import EnergyMeter, Reading
from loadgen.energy.series import EnergySample
from loadgen.errors import MeterError
from loadgen.units import NS_PER_S, ns_from_s, s_from_ns

ANSWER_S = 5.0
"""A read that takes longer than this has stopped answering."""
BACK_OFF_S = 1.0
"""The longest pause between reads that fail one after the other."""
BRACKET_S = 35.0
"""The longest wait for a last move: a DCGM exporter refreshes its page every 30 s."""
LIVE_NS = NS_PER_S
STALE_NS = 5 * NS_PER_S
"""After this long without a move, the power of a domain is unknown."""
STOPPED_ANSWERING = "the meter stopped answering"


class LivePower(msgspec.Struct, frozen=True):
    """For eyes only."""

    watts: dict[str, float]
    """Mean over about the last second, by domain; those whose power is unknown are absent."""
    joules: dict[str, float]
    """Since sampling began, by domain."""
    total_watts: float | None
    """Domains within another one not added; None when a part is unknown."""


class SamplerReport(msgspec.Struct, frozen=True, kw_only=True):
    """How the sampling itself went."""

    reads: int
    samples: int
    resets: int
    """Counters that restarted; around each, some energy is unknown."""
    errors: dict[str, int]
    """Message -> how often."""
    silence_s: dict[str, float]
    """The longest time without a move, by domain: how coarse the series gets, and whether it broke off."""
    held_back: dict[str, dict[str, float]]
    """By domain: why its clocks were low -> in what share of the looks. Domains that do not say are absent."""
    read_cost_s: float | None
    """Median duration of a read."""
    period_s: float | None
    """Mean time from one read to the next, as achieved."""
    cpu_s: float
    """CPU time of the sampling thread."""


class _Domain:
    """What is remembered of one domain's samples."""

    def __init__(self, since_ns: int) -> None:
        self.recent: deque[EnergySample] = deque()
        self.last_ns = since_ns
        self.silence_ns = 0
        self.first_joules: float | None = None

    def add(self, sample: EnergySample) -> None:
        self.silence_ns = max(self.silence_ns, sample.t_ns - self.last_ns)
        self.last_ns = sample.t_ns
        if self.first_joules is None:
            self.first_joules = sample.joules
        if sample.gap:
            self.recent.clear()
        self.recent.append(sample)
        while len(self.recent) > 2 and self.recent[1].t_ns <= sample.t_ns - LIVE_NS:
            self.recent.popleft()

    @property
    def joules(self) -> float:
        return 0.0 if self.first_joules is None else self.recent[-1].joules - self.first_joules

    def watts(self, now_ns: int) -> float | None:
        if len(self.recent) < 2 or now_ns - self.last_ns > STALE_NS:
            return None
        old, new = self.recent[0], self.recent[-1]
        return (new.joules - old.joules) / s_from_ns(new.t_ns - old.t_ns)


class Sampler:
    """`start`, then `stop`. Does not close the meter: after a hang, the hung call still holds it.

    on_samples gets each batch, never empty, in the sampling thread.
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
        self._moved = threading.Condition()
        """Guards everything below; notified after every read."""
        self._domains: dict[str, _Domain] = {}
        self._errors: Counter[str] = Counter()
        self._clocks: dict[str, Counter[str | None]] = {}
        self._costs_ns: deque[int] = deque(maxlen=1000)
        self._reads = self._samples = self._resets = self._cpu_ns = 0
        self._first_read_ns = self._last_read_ns = 0
        self._reading_since_ns: int | None = None
        self._crash: BaseException | None = None

    def start(self) -> None:
        now_ns = self._clock()
        self._domains = {domain.name: _Domain(now_ns) for domain in self._meter.domains}
        self._thread.start()

    def stop(self) -> SamplerReport:
        """Ends after one more move of every domain, so that the series covers this moment; waits a few periods at most.

        Blocks. Raises what `on_samples` raised, if it did.
        """
        end_ns = self._clock()
        with self._moved:
            self._moved.wait_for(lambda: self._covers(end_ns) or not self._thread.is_alive(), self._bracket_s())
        self._stopping.set()
        self._thread.join(self._answer_s)
        if self._crash is not None:
            raise self._crash
        return self.report()

    def latest(self) -> LivePower:
        """A snapshot for the live view; never waits for the meter."""
        now_ns = self._clock()
        with self._moved:
            every = {name: domain.watts(now_ns) for name, domain in self._domains.items()}
            joules = {name: domain.joules for name, domain in self._domains.items()}
        inner = {domain.name for domain in self._meter.domains if domain.within is not None}
        watts = {name: value for name, value in every.items() if value is not None}
        known = [value for name, value in watts.items() if name not in inner]
        return LivePower(watts, joules, sum(known) if known and len(known) == len(every.keys() - inner) else None)

    def report(self) -> SamplerReport:
        """May be asked for at any time; a read that hangs just now is counted as an error."""
        now_ns = self._clock()
        with self._moved:
            errors = self._errors + Counter({STOPPED_ANSWERING: int(self._hangs(now_ns))})
            span_ns = self._last_read_ns - self._first_read_ns
            return SamplerReport(
                reads=self._reads,
                samples=self._samples,
                resets=self._resets,
                errors=dict(errors),
                silence_s={
                    name: s_from_ns(max(domain.silence_ns, now_ns - domain.last_ns))
                    for name, domain in self._domains.items()
                },
                held_back={
                    name: {why: n / looks.total() for why, n in looks.items() if why is not None}
                    for name, looks in self._clocks.items()
                },
                read_cost_s=s_from_ns(round(median(self._costs_ns))) if self._costs_ns else None,
                period_s=s_from_ns(span_ns) / (self._reads - 1) if self._reads > 1 else None,
                cpu_s=s_from_ns(self._cpu_ns),
            )

    @property
    def hangs(self) -> bool:
        """Whether a read has gone without an answer for too long: the meter cannot be closed, nor asked anything."""
        return self._hangs(self._clock())

    def _covers(self, t_ns: int) -> bool:
        return all(domain.last_ns >= t_ns for domain in self._domains.values())

    def _bracket_s(self) -> float:
        """Two periods and two polls of the slowest domain. Nothing more is to come from a read that hangs."""
        if self._hangs(self._clock()):
            return 0.0
        periods = [domain.period_s or 0.0 for domain in self._meter.domains]
        return min(2 * max(periods, default=0.0) + 2 * self._meter.poll_s + 0.2, BRACKET_S)

    def _hangs(self, now_ns: int) -> bool:
        since_ns = self._reading_since_ns
        return since_ns is not None and now_ns - since_ns > ns_from_s(self._answer_s)

    def _run(self) -> None:
        # The one place where any exception is caught: it would die with the thread, unseen. `stop` raises it again.
        try:
            self._poll()
        except BaseException as err:
            self._crash = err
            with self._moved:
                self._moved.notify_all()

    def _poll(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            start_ns = self._clock()
            failures = 0 if self._read(start_ns) else failures + 1
            poll_s = self._meter.poll_s
            pause_s = min(poll_s * 2 ** min(failures, 10), max(BACK_OFF_S, poll_s)) if failures else poll_s
            self._stopping.wait(pause_s - s_from_ns(self._clock() - start_ns))

    def _read(self, start_ns: int) -> bool:
        """One read, tallied and handed on; whether the meter answered."""
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
        with self._moved:
            self._tally(start_ns, reading)
            self._moved.notify_all()
        return answered

    def _tally(self, start_ns: int, reading: Reading) -> None:
        cost_ns = self._clock() - start_ns
        self._costs_ns.append(cost_ns)
        self._first_read_ns = self._first_read_ns or start_ns
        self._last_read_ns = start_ns
        self._reads += 1
        self._cpu_ns = thread_cpu_ns()
        if cost_ns > ns_from_s(self._answer_s):
            self._errors[STOPPED_ANSWERING] += 1
        self._errors.update(reading.errors)
        self._resets += reading.resets
        for name, why in reading.held_back:
            self._clocks.setdefault(name, Counter())[why] += 1
        self._samples += len(reading.samples)
        for sample in reading.samples:
            self._domains[sample.domain].add(sample)
