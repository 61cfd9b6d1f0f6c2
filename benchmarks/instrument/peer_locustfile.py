"""locust as its users would drive a streaming API: FastHttpUser, the answer read line by line, JSON parsed."""

import json
import random
import time
from pathlib import Path

import gevent
from locust.exception import StopUser

from locust import FastHttpUser, events, task

ASKED: dict = {}
SAID: list[dict] = []


@events.init_command_line_parser.add_listener
def options(parser):
    parser.add_argument("--load", default="{}")
    parser.add_argument("--said", default="said.jsonl")


@events.test_start.add_listener
def start(environment, **_):
    ASKED.update(json.loads(environment.parsed_options.load), begun=0, users=environment.parsed_options.num_users)


@events.test_stop.add_listener
def stop(environment, **_):
    with Path(environment.parsed_options.said).open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in SAID)


class User(FastHttpUser):
    network_timeout = connection_timeout = 600.0

    def wait_time(self):
        """Poisson: many users, each of whom waits exponentially for a second in the mean."""
        return random.expovariate(1.0) if ASKED["poisson"] else 0

    @task
    def ask(self):
        if ASKED["begun"] >= ASKED["requests"]:
            raise StopUser
        ASKED["begun"] += 1
        row = {"id": f"l-{ASKED['begun']}", "at": []}
        body = {"model": "truth", "messages": [{"role": "user", "content": "hello"}], "max_tokens": ASKED["tokens"]}
        row["sent"] = time.perf_counter()
        with self.client.post(
            "/v1/chat/completions", json=body | {"stream": True}, headers={"X-Request-Id": row["id"]},
            stream=True, catch_response=True,
        ) as response:  # fmt: skip
            while line := response._response.readline(b"\n"):  # iter_content waits for 1,024 bytes
                at = time.perf_counter()
                if line.startswith(b"data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                    row["at"].append(at)
            response.success()
        SAID.append(row)
        if len(SAID) == ASKED["requests"]:
            gevent.spawn(self.environment.runner.quit)  # not from here: it ends this greenlet first
