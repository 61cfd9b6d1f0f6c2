"""Drive a streaming API as locust users would: FastHttpUser, the answer read line by line, JSON parsed."""

import json
import random
import time
from pathlib import Path

import gevent
from locust.exception import StopUser

from locust import FastHttpUser, events, task

LOAD: dict = {}
ANSWERS: list[dict] = []


@events.init_command_line_parser.add_listener
def options(parser):
    parser.add_argument("--load", default="{}")
    parser.add_argument("--answers", default="answers.jsonl")


@events.test_start.add_listener
def start(environment, **_):
    LOAD.update(json.loads(environment.parsed_options.load), started=0, users=environment.parsed_options.num_users)


@events.test_stop.add_listener
def stop(environment, **_):
    with Path(environment.parsed_options.answers).open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in ANSWERS)


class User(FastHttpUser):
    network_timeout = connection_timeout = 600.0

    def wait_time(self):
        """Return an exponential pause of one second on average: many such users make Poisson arrivals."""
        return random.expovariate(1.0) if LOAD["poisson"] else 0

    @task
    def ask(self):
        if LOAD["started"] >= LOAD["requests"]:
            raise StopUser
        LOAD["started"] += 1
        row = {"id": f"l-{LOAD['started']}", "at": []}
        body = {"model": "truth", "messages": [{"role": "user", "content": "hello"}], "max_tokens": LOAD["tokens"]}
        row["sent"] = time.perf_counter()
        with self.client.post(
            "/v1/chat/completions", json=body | {"stream": True}, headers={"X-Request-Id": row["id"]},
            stream=True, catch_response=True,
        ) as response:  # fmt: skip
            while line := response._response.readline(b"\n"):  # iter_content waits for 1,024 bytes
                read_s = time.perf_counter()
                if line.startswith(b"data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                    row["at"].append(read_s)
            response.success()
        ANSWERS.append(row)
        if len(ANSWERS) == LOAD["requests"]:
            gevent.spawn(self.environment.runner.quit)  # in a greenlet of its own, because quit ends this one first
