"""Hugging Face generate() behind OpenAI's API, with static batches: the plain baseline, and honest about what it does.

A batch is up to --batch requests, or those that arrived within --deadline-ms of its first. It runs until its longest
member is done; later requests wait. GET /batches returns the exact composition of every iteration, as JSON Lines.

Imports: torch, transformers, aiohttp and the standard library, so that it runs where only those are.
"""

import argparse
import asyncio
import json
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from aiohttp import web
from transformers.generation.streamers import BaseStreamer

KEEP_ITERATIONS = 1_000_000
DONE = None
"""Ends a request's queue."""


def main() -> None:
    options = parse()
    if options.decoding == "assisted" and options.batch != 1:
        print("assisted decoding takes one request at a time: --batch is 1", flush=True)
        options.batch = 1
    if options.threads:
        torch.set_num_threads(options.threads)
    engine = Engine(options)
    threading.Thread(target=engine.run, name="generate", daemon=True).start()
    print(f"transformers {transformers.__version__} serves {engine.name} on {engine.device}", flush=True)
    web.run_app(Api(engine).app(), host=options.host, port=options.port, print=None, handle_signals=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--model", required=True, help="a folder, or a name on the hub ($HF_TOKEN for gated ones)")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--deadline-ms", type=float, default=50.0)
    parser.add_argument("--compile", action="store_true", help="static KV cache, decode step through torch.compile")
    parser.add_argument("--decoding", choices=["greedy", "sampled", "beam", "assisted"], default="greedy")
    parser.add_argument("--beams", type=int, default=4)
    parser.add_argument("--draft", default="ngram", help='draft model of assisted decoding, or "ngram"')
    parser.add_argument("--draft-tokens", type=int, default=4)
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--device")
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--random-weights", action="store_true")
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


class RefusedError(Exception):
    """What the client asked for cannot be had; an HTTP status and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(eq=False)
class Request:
    """One prompt in line. Its tokens come out of `out`, one list an iteration, then DONE or an exception."""

    id: str
    ids: list[int]
    max_tokens: int
    min_tokens: int
    ignore_eos: bool
    temperature: float
    top_p: float
    loop: asyncio.AbstractEventLoop
    out: "asyncio.Queue[list[int] | Exception | None]" = field(default_factory=asyncio.Queue)
    made: int = 0
    finish_reason: str | None = None

    def tell(self, what: "list[int] | Exception | None") -> None:
        self.loop.call_soon_threadsafe(self.out.put_nowait, what)

    def take(self, tokens: list[int], eos: set[int]) -> list[int]:
        """What of the iteration's tokens is this request's: up to its own end."""
        if self.finish_reason is not None:
            return []
        mine: list[int] = []
        for token in tokens:
            mine.append(token)
            self.made += 1
            if token in eos and not self.ignore_eos and self.made >= self.min_tokens:
                self.finish_reason = "stop"
                break
            if self.made >= self.max_tokens:
                self.finish_reason = "length"
                break
        self.tell(mine)
        if self.finish_reason is not None:
            self.tell(DONE)
        return mine


class Engine:
    """The model, the line in front of it, and the account of every iteration. One thread runs it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.name = options, options.model
        self.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if options.compile and self.device == "cpu":
            sys.exit("--compile: transformers compiles generate() on a GPU only")
        dtype = getattr(torch, options.dtype or ("float32" if self.device == "cpu" else "bfloat16"))
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
        self.model = load(options.model, dtype, self.device, options.attention, options.random_weights)
        self.draft = None
        if options.decoding == "assisted" and options.draft != "ngram":
            self.draft = load(options.draft, dtype, self.device, options.attention, options.random_weights)
            self.draft.generation_config.num_assistant_tokens = options.draft_tokens
            self.draft.generation_config.num_assistant_tokens_schedule = "constant"
        eos = self.model.generation_config.eos_token_id
        self.eos = set(eos if isinstance(eos, list) else [eos]) - {None}
        self.pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else min(self.eos, default=0)
        # generate() must not end a row by itself: each request's own length and end are ours to keep.
        self.model.generation_config.eos_token_id = None
        self.max_model_len = int(getattr(self.model.config, "max_position_embeddings", 4096))
        self.line: queue.Queue[Request] = queue.Queue()
        self.waiting: deque[Request] = deque()
        self.iterations: deque[dict[str, Any]] = deque(maxlen=KEEP_ITERATIONS)
        self.counts = dict.fromkeys(("iterations", "prompt_tokens", "generation_tokens", "running"), 0)
        self.batches = 0

    def run(self) -> None:
        while True:
            batch = self.next_batch()
            self.counts["running"] = len(batch)
            try:
                self.generate(batch)
            except Exception as err:  # out of memory, say: these requests failed, the server goes on
                for request in batch:
                    request.tell(RuntimeError(f"{type(err).__name__}: {str(err)[:500]}"))
            self.counts["running"] = 0

    def next_batch(self) -> list[Request]:
        """Blocks for the first request; takes more that are sampled alike, until the batch is full or time is up."""
        first = self.waiting.popleft() if self.waiting else self.line.get()
        batch, end_s = [first], time.monotonic() + self.options.deadline_ms / 1e3
        others: deque[Request] = deque()
        while len(batch) < self.options.batch:
            try:
                left_s = end_s - time.monotonic()
                one = self.waiting.popleft() if self.waiting else self.line.get(timeout=max(left_s, 0))
            except queue.Empty:
                break
            alike = (one.temperature, one.top_p) == (first.temperature, first.top_p)
            (batch if alike or self.options.decoding != "sampled" else others).append(one)
        self.waiting.extendleft(reversed(others))
        return batch

    @torch.inference_mode()
    def generate(self, batch: list[Request]) -> None:
        """One static batch: prompts padded on the left, as many steps as its longest member asks for."""
        longest = max(len(request.ids) for request in batch)
        rows = [[self.pad] * (longest - len(r.ids)) + r.ids for r in batch]
        mask = [[0] * (longest - len(r.ids)) + [1] * len(r.ids) for r in batch]
        ids = torch.tensor(rows, device=self.device)
        follow = Follow(self, batch, longest)
        arguments: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": torch.tensor(mask, device=self.device),
            "max_new_tokens": max(request.max_tokens for request in batch),
            "pad_token_id": self.pad,
            "stopping_criteria": transformers.StoppingCriteriaList([follow.finished]),
            "logits_processor": transformers.LogitsProcessorList([follow.no_early_end]),
            **self.decoding(batch[0]),
        }
        if self.options.decoding == "beam":
            out = self.model.generate(**arguments)
            follow.whole(out[:, longest:].tolist())
        else:
            self.model.generate(streamer=follow, **arguments)

    def decoding(self, first: Request) -> dict[str, Any]:
        match self.options.decoding:
            case "sampled":
                return {
                    "do_sample": True,
                    "temperature": max(first.temperature, 1e-3),
                    "top_p": first.top_p,
                    "top_k": 0,
                }
            case "beam":
                return {"do_sample": False, "num_beams": self.options.beams}
            case "assisted" if self.draft is not None:
                return {"do_sample": False, "assistant_model": self.draft}
            case "assisted":
                return {"do_sample": False, "prompt_lookup_num_tokens": self.options.draft_tokens}
        return {"do_sample": False, **({"cache_implementation": "static"} if self.options.compile else {})}


def load(name: str, dtype: torch.dtype, device: str, attention: str, random_weights: bool) -> Any:
    if not random_weights:
        model = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=dtype, attn_implementation=attention)
        return model.to(device).eval()
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    with torch.device(device):
        config = transformers.AutoConfig.from_pretrained(name)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    torch.set_default_dtype(before)
    return model.eval()


class Follow(BaseStreamer):
    """Sees each iteration's tokens as generate() makes them; hands them out, and writes the iteration down.

    Tokens arrive as a copy on the host, so that the instant is after the GPU has finished the iteration.
    """

    def __init__(self, engine: Engine, batch: list[Request], padded: int) -> None:
        self.engine, self.batch, self.padded = engine, batch, padded
        self.number = 0
        self.prompt_seen = False
        self.start_ns = time.monotonic_ns()
        self.batch_id, engine.batches = engine.batches, engine.batches + 1

    def put(self, value: torch.Tensor) -> None:
        if not self.prompt_seen:  # generate() shows the prompt first
            self.prompt_seen = True
            return
        tokens = value.reshape(1, -1).tolist() if len(self.batch) == 1 else value.reshape(-1, 1).tolist()
        self.iteration("prefill" if self.number == 0 else "decode", tokens)

    def end(self) -> None:
        """Every request has been told by then."""

    def whole(self, tokens: list[list[int]]) -> None:
        """Beam decoding shows nothing before its end: one entry for all of its iterations."""
        self.iteration("whole", tokens)

    def iteration(self, phase: str, tokens: list[list[int]]) -> None:
        end_ns = time.monotonic_ns()
        context = [len(request.ids) + request.made for request in self.batch]
        mine = [len(request.take(row, self.engine.eos)) for request, row in zip(self.batch, tokens, strict=True)]
        counts = self.engine.counts
        counts["iterations"] += 1
        counts["generation_tokens"] += sum(mine)
        if self.number == 0:
            counts["prompt_tokens"] += sum(len(request.ids) for request in self.batch)
        self.engine.iterations.append(
            {
                "batch": self.batch_id,
                "iteration": self.number,
                "phase": phase,
                "start_ns": self.start_ns,
                "end_ns": end_ns,
                "rows": len(self.batch),
                "padded_input": self.padded,
                "requests": [request.id for request in self.batch],
                "context_tokens": context,
                "output_tokens": mine,
            }
        )
        self.number, self.start_ns = self.number + 1, end_ns

    def finished(self, ids: torch.Tensor, _scores: torch.Tensor, **_: Any) -> torch.Tensor:
        """Rows stay until all are done: a static batch is as long as its longest member."""
        over = all(request.finish_reason is not None for request in self.batch)
        return torch.full((len(ids),), over, device=ids.device)

    def no_early_end(self, _ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """min_tokens: the end token cannot be chosen before."""
        if self.engine.eos and any(request.min_tokens and not request.ignore_eos for request in self.batch):
            rows = [r for r, q in enumerate(self.batch) if q.made + 1 < q.min_tokens and not q.ignore_eos]
            if rows and len(scores) == len(self.batch):
                scores[torch.tensor(rows)[:, None], torch.tensor(sorted(self.engine.eos))] = -torch.inf
        return scores


# ---------------------------------------------------------------- HTTP


class Text:
    """Tokens to text, piece by piece; bytes of an unfinished character wait for the rest."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.ids, self.start, self.read = tokenizer, [], 0, 0

    def add(self, tokens: list[int], last: bool = False) -> str:
        self.ids += tokens
        before = self.tokenizer.decode(self.ids[self.start : self.read], skip_special_tokens=True)
        after = self.tokenizer.decode(self.ids[self.start :], skip_special_tokens=True)
        if after.endswith("�") and not last:
            return ""
        self.start, self.read = self.read, len(self.ids)
        return after[len(before) :]


class Api:
    """OpenAI's paths over one engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def app(self) -> web.Application:
        app = web.Application(client_max_size=64 << 20)
        app.add_routes(
            [
                web.get("/health", self.health),
                web.get("/v1/models", self.models),
                web.get("/metrics", self.metrics),
                web.get("/batches", self.batches),
                web.post("/tokenize", self.tokenize),
                web.post("/v1/chat/completions", self.chat),
                web.post("/v1/completions", self.completions),
            ]
        )
        return app

    async def health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def models(self, _: web.Request) -> web.Response:
        model = {"id": self.engine.name, "object": "model", "owned_by": "transformers"}
        return web.json_response({"object": "list", "data": [{**model, "max_model_len": self.engine.max_model_len}]})

    async def metrics(self, _: web.Request) -> web.Response:
        counts = self.engine.counts
        waiting = self.engine.line.qsize() + len(self.engine.waiting)
        lines = [
            f"# TYPE transformers:{name} {kind}\ntransformers:{name} {value}"
            for name, kind, value in (
                ("iterations_total", "counter", counts["iterations"]),
                ("prompt_tokens_total", "counter", counts["prompt_tokens"]),
                ("generation_tokens_total", "counter", counts["generation_tokens"]),
                ("num_requests_running", "gauge", counts["running"]),
                ("num_requests_waiting", "gauge", waiting),
            )
        ]
        return web.Response(text="\n".join(lines) + "\n", headers={"Content-Type": "text/plain; version=0.0.4"})

    async def batches(self, _: web.Request) -> web.Response:
        text = "".join(json.dumps(one) + "\n" for one in list(self.engine.iterations))
        return web.Response(text=text, content_type="application/x-ndjson")

    async def tokenize(self, http: web.Request) -> web.Response:
        body = await http.json()
        special = bool(body.get("add_special_tokens", True))
        ids = self.engine.tokenizer(str(body.get("prompt", "")), add_special_tokens=special)["input_ids"]
        return web.json_response({"count": len(ids), "tokens": ids, "max_model_len": self.engine.max_model_len})

    async def chat(self, http: web.Request) -> web.StreamResponse:
        return await self.answer(http, "chat")

    async def completions(self, http: web.Request) -> web.StreamResponse:
        return await self.answer(http, "completions")

    async def answer(self, http: web.Request, kind: str) -> web.StreamResponse:
        try:
            body = await self.body(http)
            request = self.request(body, http, kind)
        except RefusedError as err:
            return web.json_response({"error": {"message": str(err), "code": err.status}}, status=err.status)
        self.engine.line.put(request)
        if body.get("stream"):
            return await self.stream(http, request, kind, bool((body.get("stream_options") or {}).get("include_usage")))
        text = Text(self.engine.tokenizer)
        try:
            said = "".join([text.add(tokens) async for tokens in tokens_of(request)]) + text.add([], last=True)
        except RuntimeError as err:
            return web.json_response({"error": {"message": str(err), "code": 500}}, status=500)
        choice = {"message": {"role": "assistant", "content": said}} if kind == "chat" else {"text": said}
        return web.json_response(
            self.frame(request, kind, False)
            | {"choices": [{"index": 0, **choice, "finish_reason": request.finish_reason}], "usage": usage(request)}
        )

    async def body(self, http: web.Request) -> dict[str, Any]:
        try:
            body = await http.json()
        except (json.JSONDecodeError, UnicodeDecodeError) as err:
            raise RefusedError(400, f"the body is not JSON: {err}") from err
        if not isinstance(body, dict):
            raise RefusedError(400, "the body is not a JSON object")
        return body

    def request(self, body: dict[str, Any], http: web.Request, kind: str) -> Request:
        """What the body asks for. Raises RefusedError."""
        if (model := body.get("model", self.engine.name)) != self.engine.name:
            raise RefusedError(404, f"the model {model!r} does not exist; there is {self.engine.name!r}")
        if body.get("n", 1) != 1:
            raise RefusedError(400, "n has to be 1")
        ids = self.prompt_ids(body, kind)
        asked = body.get("max_completion_tokens") or body.get("max_tokens") or (16 if kind == "completions" else 256)
        if not isinstance(asked, int) or asked < 1:
            raise RefusedError(400, f"max_tokens: {asked!r} is not a whole number above 0")
        if len(ids) + asked > self.engine.max_model_len:
            raise RefusedError(400, f"{len(ids)} + {asked} tokens exceed the model's {self.engine.max_model_len}")
        return Request(
            id=http.headers.get("X-Request-Id") or f"{time.time_ns():x}",
            ids=ids,
            max_tokens=asked,
            min_tokens=int(body.get("min_tokens") or 0),
            ignore_eos=bool(body.get("ignore_eos")),
            temperature=float(body.get("temperature", 1.0)),
            top_p=float(body.get("top_p", 1.0)),
            loop=asyncio.get_running_loop(),
        )

    def prompt_ids(self, body: dict[str, Any], kind: str) -> list[int]:
        tokenizer, limit = self.engine.tokenizer, len(self.engine.tokenizer)
        match body:
            case {"messages": [_, *_] as messages} if kind == "chat":
                try:
                    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
                except Exception as err:  # templates are programs of the model's author
                    raise RefusedError(400, f"messages: {err}") from err
                return list(tokenizer(text, add_special_tokens=False)["input_ids"])
            case {"prompt": str(text)} if kind == "completions" and text:
                return list(tokenizer(text)["input_ids"])
            case {"prompt": [int(), *_] as ids} if kind == "completions":
                size = max(limit, self.engine.model.config.vocab_size)
                if all(isinstance(one, int) and 0 <= one < size for one in ids):
                    return ids
        needed = "messages" if kind == "chat" else "prompt: a text, or a list of token ids"
        raise RefusedError(400, f"the body needs {needed}")

    async def stream(self, http: web.Request, request: Request, kind: str, with_usage: bool) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(http)
        frame, text = self.frame(request, kind, True), Text(self.engine.tokenizer)

        async def send(choices: list[dict[str, Any]], **more: Any) -> None:
            await response.write(b"data: " + json.dumps({**frame, "choices": choices, **more}).encode() + b"\n\n")

        def choice(said: str, finish: str | None = None) -> dict[str, Any]:
            part = {"delta": {"content": said} if said else {}} if kind == "chat" else {"text": said}
            return {"index": 0, **part, "finish_reason": finish}

        try:
            if kind == "chat":
                await send([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
            async for tokens in tokens_of(request):
                if said := text.add(tokens):
                    await send([choice(said)])
            await send([choice(text.add([], last=True), request.finish_reason)])
            if with_usage:
                await send([], usage=usage(request))
        except RuntimeError as err:
            await response.write(b"data: " + json.dumps({"error": {"message": str(err)}}).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    def frame(self, request: Request, kind: str, stream: bool) -> dict[str, Any]:
        kinds = {"chat": "chat.completion", "completions": "text_completion"}
        chunk = ".chunk" if stream and kind == "chat" else ""
        prefix = "chatcmpl-" if kind == "chat" else "cmpl-"
        return {"id": prefix + request.id, "object": kinds[kind] + chunk, "created": int(time.time()),
                "model": self.engine.name}  # fmt: skip


async def tokens_of(request: Request) -> AsyncIterator[list[int]]:
    while (what := await request.out.get()) is not DONE:
        if isinstance(what, Exception):
            raise what
        yield what


def usage(request: Request) -> dict[str, int]:
    return {
        "prompt_tokens": len(request.ids),
        "completion_tokens": request.made,
        "total_tokens": len(request.ids) + request.made,
    }


if __name__ == "__main__":
    main()
