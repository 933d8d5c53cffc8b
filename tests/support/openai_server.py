"""A real HTTP server that speaks the OpenAI protocol and misbehaves as a test tells it to."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-tests-do-not-print-me"
MODEL = "small"
MAX_BODY_CHARS = 500_000
"""Longer prompts are beyond the context of the pretended model."""

Step = Callable[["Call"], None]


class Call(BaseHTTPRequestHandler):
    """One request, with what a script may do to it."""

    protocol_version = "HTTP/1.1"
    server: Server
    request_json: dict[str, Any]

    def do_POST(self) -> None:
        length = int(self.headers["content-length"])
        self.request_json = json.loads(self.rfile.read(length))
        with suppress(ConnectionError):  # the client gave up: that is what some tests are about
            self.server.play(self)

    def send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """The endpoint, in a thread.

    Args:
        answer: Text for the data of a prompt, where no script says otherwise.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, answer: Callable[[str], str]) -> None:
        super().__init__(("127.0.0.1", 0), Call)
        self._answer = answer
        self._scripts: dict[str, list[Step]] = {}
        self._lock = threading.Lock()
        self.calls: Counter[str] = Counter()
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.billed = Counter[str]()
        self.flying = 0
        self.most_flying = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def script(self, marker: str, *steps: Step) -> None:
        """What happens, call by call, to prompts that contain a marker; then all is well."""
        self._scripts[marker] = list(steps)

    def play(self, call: Call) -> None:
        body = body_of(call.request_json["messages"])
        with self._lock:
            number = self.calls[body]
            self.calls[body] += 1
            self.requests.append(call.request_json)
            self.keys.add(call.headers["authorization"])
            self.headers.append({name.lower(): value for name, value in call.headers.items()})
            self.paths.append(call.path)
            self.flying += 1
            self.most_flying = max(self.most_flying, self.flying)
        try:
            self._step(body, number)(call)
        finally:
            with self._lock:
                self.flying -= 1

    def reply(self, call: Call, text: str | None = None, **fields: Any) -> None:
        """A whole completion; `fields` replace those of it."""
        body = body_of(call.request_json["messages"])
        text = self._answer(body) if text is None else text
        tokens = {"prompt_tokens": 100, "completion_tokens": 20}
        with self._lock:
            self.billed.update(tokens)
        usage = {**tokens, "prompt_tokens_details": {"cached_tokens": 64}}
        choice = {"index": 0, "message": {"content": text}, "finish_reason": "stop"}
        tree = {"id": "1", "choices": [choice], "usage": usage, **fields}
        call.send(200, json.dumps(tree).encode())

    def _step(self, body: str, number: int) -> Step:
        for marker, steps in self._scripts.items():
            if marker in body and number < len(steps):
                return steps[number]
        if len(body) > MAX_BODY_CHARS:
            return status(400, "too many tokens", code="context_length_exceeded")
        return self.reply

    def __exit__(self, *args: object) -> None:
        self.shutdown()
        self.server_close()


def body_of(messages: Sequence[Mapping[str, str]]) -> str:
    """What a prompt, or the repair of one, says of its subject."""
    repair = messages[-2]["role"] == "assistant"
    # A prompt that is asked again in other words has them below what it says of the subject.
    return messages[-3 if repair else -1]["content"].partition("\n\nWrite one ")[0]


# --- steps -----------------------------------------------------------------------------------


def status(number: int, message: str = "no", *, code: str | None = None, **headers: str) -> Step:
    """An error as the protocol words it."""
    body = json.dumps({"error": {"message": message, "code": code}}).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda call: call.send(number, body, names)


def raw(body: bytes) -> Step:
    """Any body under status 200."""
    return lambda call: call.send(200, body)


def completion(text: str, **fields: Any) -> Step:
    """A completion of a given text, fields replaced."""

    def step(call: Call) -> None:
        call.server.reply(call, text, **fields)

    return step


def choice(content: str | None, finish_reason: str = "stop", **message: Any) -> Step:
    """A completion with a choice of its own."""
    message = {"content": content, **message}
    return completion("", choices=[{"message": message, "finish_reason": finish_reason}])


def hang(seconds: float) -> Step:
    """Nothing for some time, then a lost connection."""

    def step(call: Call) -> None:
        time.sleep(seconds)
        reset(call)

    return step


def slow(seconds: float) -> Step:
    """A good answer, late."""

    def step(call: Call) -> None:
        time.sleep(seconds)
        call.server.reply(call)

    return step


def drip(seconds: float) -> Step:
    """A body of which a byte comes every tenth of a second: no single read is ever late."""

    def step(call: Call) -> None:
        call.send_response(200)
        call.send_header("content-type", "application/json")
        call.send_header("content-length", "100000")
        call.end_headers()
        for _ in range(int(seconds * 10)):
            call.wfile.write(b" ")
            call.wfile.flush()
            time.sleep(0.1)
        reset(call)

    return step


def cut(call: Call) -> None:
    """Half a body, then a reset."""
    call.send_response(200)
    call.send_header("content-length", "1000")
    call.end_headers()
    call.wfile.write(b'{"choices": [')
    call.wfile.flush()
    reset(call)


def reset(call: Call) -> None:
    """Reset the connection."""
    call.close_connection = True
    call.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    call.connection.close()
