"""Locust event hooks: coordinate replays and poll the sidecar on the master, set tests up and end them on workers."""

import logging
import secrets
from typing import Any

import gevent
from locust.runners import MasterRunner, WorkerRunner

from loadgen.errors import LoadgenError
from loadgen.locust import web
from loadgen.locust.options import LOOPBACK, add_options, settings
from loadgen.locust.trace_replay import Conductor, Outcome, Part, Ready
from loadgen.locust.users import Test, TraceReplay, state_of
from locust import events

log = logging.getLogger("loadgen")

_POLL_S = 0.2
_CSV_WAIT_S = 1.5
"""Locust writes its CSV files every second but not once more at the end: this wait gets the last rows into them."""


class Coordinator:
    """Conduct replays, poll the sidecar and end the test, in the process that serves the web page."""

    def __init__(self, environment: Any) -> None:
        self.environment = environment
        self.watch = web.Watch(environment)
        self.conductor: Conductor | None = None
        self._conducting: Conductor | None = None
        self._failed = False

    def start(self) -> bool:
        """Begin to watch the test. Return False, and end the test, when its options are invalid."""
        self._failed = False
        options, runner = self.environment.parsed_options, self.environment.runner
        self.conductor = Conductor(
            secrets.token_hex(6),
            tell=lambda node, part: runner.send_message("loadgen_part", part._asdict(), client_id=node),
            alive=self._alive,
        )
        try:
            settings(options, self.environment.host)
            if TraceReplay in self.environment.user_classes and not options.trace:
                raise LoadgenError("TraceReplay needs a trace: add --trace traces/chat.jsonl")
        except LoadgenError as err:
            self.fail(str(err))
            return False
        self.watch.begin(options.sidecar or None)
        return True

    def stop(self) -> None:
        self.conductor = None

    # A message may arrive after its test was stopped: there is no conductor then, and nothing to do.

    def on_ready(self, msg: Any, **_: Any) -> None:
        """Take the message of a replaying user that it is ready."""
        if self.conductor:
            self.conductor.ready(Ready(**msg.data))

    def on_done(self, msg: Any, **_: Any) -> None:
        """Take the result of a part of the schedule."""
        if self.conductor:
            self.conductor.done(Outcome(**msg.data))

    def on_problem(self, msg: Any, **_: Any) -> None:
        """End the test for a reason that a worker found."""
        self.fail(msg.data["why"])

    def _alive(self) -> set[str]:
        runner = self.environment.runner
        if isinstance(runner, MasterRunner):
            return {node.id for node in runner.clients.values() if node.state != "missing"}
        return {runner.client_id}

    def spawned(self) -> None:
        """Conduct the replay when locust has started every user; those that replay report themselves ready."""
        if self.conductor is not self._conducting and self._users()[0]:
            self._conducting = self.conductor
            gevent.spawn(self._conduct, self.conductor)

    def _users(self) -> tuple[int, int]:
        """Count (users that replay, others)."""
        users = self.environment.runner.target_user_classes_count
        replaying = users.get(TraceReplay.__name__, 0)
        return replaying, sum(users.values()) - replaying

    def _conduct(self, conductor: Conductor) -> None:
        """Conduct a replay from the first user ready to the last part sent, or until the test is stopped."""
        try:
            while not conductor.begin_if(self._users()[0]):
                gevent.sleep(_POLL_S)
                if conductor is not self.conductor:
                    return
            log.info("replay %s: %s", conductor.run_id, conductor.plan())
            while not conductor.over:
                gevent.sleep(_POLL_S)
                if conductor is not self.conductor:
                    log.warning("replay %s was stopped before its end", conductor.run_id)
                    return
        except LoadgenError as err:
            self.fail(str(err))
            return
        summary, complete = conductor.summary()
        (log.info if complete else log.error)("replay %s: %s", conductor.run_id, summary)
        if not complete:
            self.environment.process_exit_code = 1
        if not self._users()[1]:
            self._end()

    def fail(self, reason: str) -> None:
        """End the test because of invalid input or environment: log the first reason, in one line."""
        if self._failed:
            return
        self._failed = True
        log.error("%s", reason)
        self.environment.process_exit_code = 2
        self._end()

    def _end(self) -> None:
        runner, options = self.environment.runner, self.environment.parsed_options
        gevent.spawn(runner.quit if options.headless else runner.stop)


def _init(environment: Any, runner: Any, web_ui: Any, **_: Any) -> None:
    if not isinstance(runner, MasterRunner):
        runner.register_message("loadgen_part", _on_part)
    if isinstance(runner, WorkerRunner):
        return
    coordinator = state_of(environment).coordinator = Coordinator(environment)
    runner.register_message("loadgen_ready", coordinator.on_ready)
    runner.register_message("loadgen_done", coordinator.on_done)
    runner.register_message("loadgen_problem", coordinator.on_problem)
    spawning_complete: Any = events.spawning_complete  # it names no environment: listen to it for this one
    spawning_complete.add_listener(lambda **_: coordinator.spawned())
    options = environment.parsed_options
    if isinstance(runner, MasterRunner) and options.master_bind_host == LOOPBACK:
        log.info("workers on this machine can join; for others add --master-bind-host '*'")
    if not options.user_classes and not options.class_picker:  # a trace is replayed by itself, or not at all
        replays = bool(options.trace)
        environment.user_classes = [c for c in environment.user_classes if (c is TraceReplay) == replays]
    if web_ui:
        web.install(web_ui, coordinator.watch)


def _on_part(environment: Any, msg: Any, **_: Any) -> None:
    part = Part(**msg.data)
    if assigned := state_of(environment).parts.get(part.user):  # else its test was stopped meanwhile
        assigned.set(part)


def _start(environment: Any, **_: Any) -> None:
    state = state_of(environment)
    state.test = None
    state.parts.clear()
    if state.coordinator and not state.coordinator.start():
        return
    if isinstance(environment.runner, MasterRunner):
        return
    try:
        state.test = Test(environment)
    except LoadgenError as err:
        reason = str(err).replace("add --serve sim, or say where with --base-url", "say where with --host")
        environment.runner.send_message("loadgen_problem", {"why": reason})


def _stop(environment: Any, **_: Any) -> None:
    state = state_of(environment)
    if state.coordinator:
        state.coordinator.stop()
    test, state.test = state.test, None
    if test:
        state.closing.append(gevent.spawn(test.close))


def _quit(environment: Any, **_: Any) -> None:
    """Without a web page the joules are logged at the end: stop the load and give the sidecar time to settle."""
    state = state_of(environment)
    headless = environment.parsed_options.headless
    if state.coordinator and headless and environment.runner.state in ("spawning", "running"):
        environment.runner.stop()
    gevent.joinall(state.closing, timeout=10)
    if state.coordinator and headless:
        if not environment.stats.entries and environment.process_exit_code is None:
            log.error("no request has ended: setting up takes seconds, and --run-time counts them too")
            environment.process_exit_code = 2
        for line in state.coordinator.watch.settled():
            log.info("%s", line)
        if environment.parsed_options.csv_prefix:
            gevent.sleep(_CSV_WAIT_S)


def listen() -> None:
    """Register the hooks: once in a process, when its locustfile is read."""
    hooks: Any = events
    hooks.init_command_line_parser.add_listener(add_options)
    hooks.init.add_listener(_init)
    hooks.test_start.add_listener(_start)
    hooks.test_stop.add_listener(_stop)
    hooks.quitting.add_listener(_quit)
