"""One question to an endpoint, sent until there is an answer: repeats, waits and the budget."""

import json
import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vltune_lab.discovery.answers import one_line
from vltune_lab.discovery.backend import Answer, BackendError, Budget
from vltune_lab.discovery.openai_http import (
    KEY_VARIABLES,
    Endpoint,
    NoReplyError,
    Reply,
    post_json,
)

_log = logging.getLogger(__name__)

MAX_WAIT_SECONDS = 60.0
# Worst case in use: English has about 4 bytes a token, other scripts down to 2.
BYTES_PER_TOKEN = 2
_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)

Body = dict[str, Any]


@dataclass(frozen=True)
class OpenAIOptions:
    """How to ask.

    Attributes:
        model: As the endpoint calls it.
        repeats: After a request that failed, so many more.
        first_wait_seconds: Before the first repeat; doubled for each further one.
        max_answer_tokens: Longest answer; an embedding has none.
    """

    model: str
    repeats: int = 4
    first_wait_seconds: float = 1.0
    max_answer_tokens: int = 4000

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise BackendError("--model is empty; give the name that the endpoint serves.")
        if self.repeats < 0 or self.first_wait_seconds < 0 or self.max_answer_tokens < 1:
            raise BackendError(
                f"repeats {self.repeats}, first wait {self.first_wait_seconds} s, longest answer "
                f"{self.max_answer_tokens} tokens: expected 0 or more, 0 or more, 1 or more."
            )


@dataclass(frozen=True)
class Call:
    """A question on one route of the endpoint.

    Attributes:
        route: Below the base URL, such as `/chat/completions`.
        body: Makes what is sent, anew for each request.
        read: Makes an answer of a reply's text and the body that got it, or raises NoReplyError.
        adapt: Changes what `body` makes if a reply refuses a body, told whether it is the first
            try; False if there is nothing to change.
        max_answer_tokens: The answer's part of the reservation, 0 or more.
        not_found: What to do about a status 404.
        without: How to do without an answer; empty if there is no way.
    """

    route: str
    body: Callable[[], Body]
    read: Callable[[str, Body], Answer]
    adapt: Callable[[Reply, Body, bool], bool]
    max_answer_tokens: int
    not_found: str
    without: str = ""


class Caller:
    """Sends calls to one endpoint; several threads may call at once."""

    def __init__(self, endpoint: Endpoint, options: OpenAIOptions, budget: Budget) -> None:
        self._endpoint = endpoint
        self._options = options
        self._budget = budget
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Send nothing more; calls that wait for a repeat end with a BackendError."""
        self._stopped.set()

    def call(self, call: Call) -> Answer:
        """Ask until there is an answer, the repeats are used up or the budget is spent.

        Raises:
            BudgetError: The budget does not allow another request.
            BackendError: Refused for good, or no answer after all repeats.
        """
        problem = ""
        repeat = sent = 0
        while repeat <= self._options.repeats:
            if self._stopped.is_set():
                raise BackendError(f"{self._endpoint.base_url}: stopped after {sent} requests.")
            body = call.body()
            sent += 1
            answer, reply, problem = self._send(call, body)
            if answer is not None:
                return answer
            wait = 0.0
            if reply is not None:
                if call.adapt(reply, body, repeat == 0):
                    continue
                self._refuse_for_good(call, reply, problem)
                wait = reply.wait_seconds
            repeat += 1
            if repeat <= self._options.repeats:
                _log.info("asking again after: %s", problem)
                self._wait(repeat, wait)
        raise BackendError(
            f"{self._endpoint.base_url}: no answer after {sent} requests; the last one: "
            f"{problem}. Check that the endpoint is up, then run again: answers so far are kept. "
            f"{call.without}".strip()
        )

    def _send(self, call: Call, body: Body) -> tuple[Answer | None, Reply | None, str]:
        """Return an answer, or the reply that refuses one (None if there is none) and why.

        Raises:
            BudgetError: The budget does not allow another request.
        """
        reserved = estimate_tokens(body) + call.max_answer_tokens
        self._budget.reserve(reserved)
        used = 0
        try:
            reply = post_json(self._endpoint, call.route, body)
            if reply.status != 200:
                return None, reply, f"HTTP {reply.status}: {self._excerpt(reply.text)}"
            answer = call.read(reply.text, body)
            used = answer.tokens
            return answer, None, ""
        except NoReplyError as error:
            return None, None, str(error)
        finally:
            self._budget.settle(reserved, used)

    def _refuse_for_good(self, call: Call, reply: Reply, problem: str) -> None:
        if reply.status in _AGAIN and "insufficient_quota" not in reply.text:
            return
        if reply.status in (401, 403):
            cure = f"Set the key in {KEY_VARIABLES[0]}, and see that it may use the model."
        elif reply.status == 404:
            cure = f"{call.not_found} {call.without}"
        elif 300 <= reply.status < 400:
            cure = "It sends us elsewhere; give that address as --base-url if you trust it."
        elif reply.status == 429:
            cure = "The account has no quota left."
        else:
            cure = f"Correct what it complains about. {call.without}"
        raise BackendError(f"{self._endpoint.base_url}: {problem}. {cure.strip()}")

    def _excerpt(self, text: str) -> str:
        return one_line(self._endpoint.hide_key(text))[:200] or "(no text)"

    def _wait(self, repeat: int, asked_seconds: float) -> None:
        """Wait as long as the server asks, else doubling, spread so that threads part."""
        own = self._options.first_wait_seconds * 2 ** (repeat - 1) * random.uniform(0.5, 1.0)
        self._stopped.wait(min(max(own, asked_seconds), MAX_WAIT_SECONDS))


def estimate_tokens(body: Body) -> int:
    """Return at most how many tokens a body has."""
    return len(json.dumps(body, ensure_ascii=False).encode()) // BYTES_PER_TOKEN


def counted_tokens(content: Body, key: str) -> int:
    """Return what a reply says under `usage`; 0 if it does not count."""
    usage = content.get("usage")
    counted = usage.get(key) if isinstance(usage, dict) else None
    return counted if isinstance(counted, int) else 0


def model_name(name: object) -> str:
    """Return what the server calls the model; llama.cpp says a path, which may be private."""
    line = one_line(name)[:200]
    is_path = line.startswith(("/", "~", "\\")) or line[1:3] in (":\\", ":/")
    return line.replace("\\", "/").rsplit("/", 1)[-1] if is_path else line
