"""A test's course: what the master, or the only process, does besides serving locust's page, and who hears what."""

import logging
import secrets
from typing import Any

import gevent
from locust.runners import MasterRunner, WorkerRunner

from loadgen.errors import LoadgenError
from loadgen.locust import web
from loadgen.locust.options import add_options, settings
from loadgen.locust.trace_replay import Conductor, Outcome, Part, Ready
from loadgen.locust.users import LoadgenUser, Test, TraceReplay
from locust import events

log = logging.getLogger("loadgen")

POLL_S = 0.2
CSV_S = 1.5
"""Locust writes its CSV files every second, and not once more at the end: what has just settled shall be in them."""


class Course:
    """What the process that holds the web page does: conducts replays, watches the sidecar, ends the test."""

    def __init__(self, environment: Any) -> None:
        self.environment = environment
        self.watch = web.Watch(environment)
        self.conductor: Conductor | None = None
        self._conducting: Conductor | None = None
        self._failed = False

    def start(self) -> None:
        self._failed = False
        options = self.environment.parsed_options
        self.conductor = Conductor(secrets.token_hex(6), self._tell, self._alive)
        try:
            settings(options, self.environment.host)
            if TraceReplay in self.environment.user_classes and not options.trace:
                raise LoadgenError("TraceReplay needs a trace: add --trace traces/chat.jsonl")
        except LoadgenError as err:
            return self.fail(str(err))
        return self.watch.begin(options.sidecar or None)

    def stop(self) -> None:
        self.conductor = None

    def _tell(self, node: str, part: Part) -> None:
        self.environment.runner.send_message("loadgen_part", part._asdict(), client_id=node)

    def _alive(self) -> set[str]:
        runner = self.environment.runner
        if isinstance(runner, MasterRunner):
            return {node.id for node in runner.clients.values() if node.state != "missing"}
        return {runner.client_id}

    def spawned(self) -> None:
        """Every user is there; those that replay say so themselves, now or soon."""
        if self.conductor is not self._conducting and self._users()[0]:
            self._conducting = self.conductor
            gevent.spawn(self._conduct, self.conductor)

    def _users(self) -> tuple[int, int]:
        """(users that replay, others)."""
        users = self.environment.runner.target_user_classes_count
        replaying = users.get(TraceReplay.__name__, 0)
        return replaying, sum(users.values()) - replaying

    def _conduct(self, conductor: Conductor) -> None:
        """From the first user ready to the last part done, or until the test is stopped."""
        try:
            while not conductor.begin_if(self._users()[0]):
                gevent.sleep(POLL_S)
                if conductor is not self.conductor:
                    return
            log.info("replay %s: %s", conductor.run_id, conductor.plan())
            while not conductor.over:
                gevent.sleep(POLL_S)
                if conductor is not self.conductor:
                    log.warning("replay %s was stopped before its end", conductor.run_id)
                    return
        except LoadgenError as err:
            self.fail(str(err))
            return
        words, whole = conductor.summary()
        (log.info if whole else log.error)("replay %s: %s", conductor.run_id, words)
        if not whole:
            self.environment.process_exit_code = 1
        if not self._users()[1]:
            self._end()

    def fail(self, why: str) -> None:
        """The world is not as asked: said once, in one line, and the test ends."""
        if self._failed:
            return
        self._failed = True
        log.error("%s", why)
        self.environment.process_exit_code = 2
        self._end()

    def _end(self) -> None:
        runner, options = self.environment.runner, self.environment.parsed_options
        gevent.spawn(runner.quit if options.headless else runner.stop)


_course: Course | None = None


def _init(environment: Any, runner: Any, web_ui: Any, **_: Any) -> None:
    global _course
    if isinstance(runner, WorkerRunner):
        runner.register_message("loadgen_part", _on_part)
        return
    _course = Course(environment)
    runner.register_message("loadgen_ready", _on_ready)
    runner.register_message("loadgen_done", _on_done)
    runner.register_message("loadgen_problem", _on_problem)
    if not isinstance(runner, MasterRunner):
        runner.register_message("loadgen_part", _on_part)
    options = environment.parsed_options
    if not options.user_classes and not options.class_picker:  # a trace is replayed by itself, or not at all
        replays = bool(options.trace)
        environment.user_classes = [c for c in environment.user_classes if (c is TraceReplay) == replays]
    if web_ui:
        web.install(web_ui, _course.watch)


def _on_part(environment: Any, msg: Any, **_: Any) -> None:
    part = Part(**msg.data)
    if part.user in TraceReplay.parts:  # else its test has been stopped meanwhile
        TraceReplay.parts[part.user].set(part)


def _on_ready(environment: Any, msg: Any, **_: Any) -> None:
    assert _course is not None
    if _course.conductor:
        _course.conductor.ready(Ready(**msg.data))


def _on_done(environment: Any, msg: Any, **_: Any) -> None:
    assert _course is not None
    if _course.conductor:
        _course.conductor.done(Outcome(**msg.data))


def _on_problem(environment: Any, msg: Any, **_: Any) -> None:
    assert _course is not None
    _course.fail(msg.data["why"])


def _start(environment: Any, **_: Any) -> None:
    if _course:
        _course.start()
    if isinstance(environment.runner, MasterRunner):
        return
    LoadgenUser.test = None
    TraceReplay.parts.clear()
    try:
        LoadgenUser.test = Test(environment)
    except LoadgenError as err:
        why = str(err).replace("add --serve sim, or say where with --base-url", "say where with --host")
        environment.runner.send_message("loadgen_problem", {"why": why})


def _spawned(**_: Any) -> None:
    if _course:
        _course.spawned()


_closing: list[Any] = []


def _stop(environment: Any, **_: Any) -> None:
    if _course:
        _course.stop()
    test, LoadgenUser.test = LoadgenUser.test, None
    if test:
        _closing.append(gevent.spawn(test.close))


def _quit(environment: Any, **_: Any) -> None:
    """Without a web page the joules are said at the end: load stops, and the sidecar is given time to settle."""
    headless = environment.parsed_options.headless
    if _course and headless and environment.runner.state in ("spawning", "running"):
        environment.runner.stop()
    gevent.joinall(_closing, timeout=10)
    if _course and headless:
        if not environment.stats.entries and environment.process_exit_code is None:
            log.error("no request has ended: setting up takes seconds, and --run-time counts them too")
            environment.process_exit_code = 2
        for line in _course.watch.settled():
            log.info("%s", line)
        if environment.parsed_options.csv_prefix:
            gevent.sleep(CSV_S)


def listen() -> None:
    """Once in a process, when its locustfile is read."""
    hooks: Any = events
    hooks.init_command_line_parser.add_listener(add_options)
    hooks.init.add_listener(_init)
    hooks.test_start.add_listener(_start)
    hooks.spawning_complete.add_listener(_spawned)
    hooks.test_stop.add_listener(_stop)
    hooks.quitting.add_listener(_quit)
