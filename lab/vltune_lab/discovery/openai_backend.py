"""A language model behind any endpoint that speaks OpenAI's chat completions."""

import json
import logging
import random
import threading
from dataclasses import dataclass
from typing import Any

from vltune_lab.discovery.answers import one_line
from vltune_lab.discovery.backend import Answer, BackendError, Budget, Question
from vltune_lab.discovery.openai_http import (
    KEY_VARIABLES,
    Endpoint,
    NoReplyError,
    Reply,
    post_chat,
)

_log = logging.getLogger(__name__)

FORMATS = ("json_schema", "json_object", "text")
MAX_WAIT_SECONDS = 60.0
# Worst case in use: English has about 4 bytes a token, other scripts down to 2.
BYTES_PER_TOKEN = 2
_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)
# A server that cannot do a format may say so with any of these; llama.cpp's says 500.
_FORMAT_REFUSED = (400, 415, 422, 500, 501)
_OPTIONAL = ("seed", "temperature")


@dataclass(frozen=True)
class OpenAIOptions:
    """How to ask.

    Attributes:
        model: As the endpoint calls it.
        repeats: After a request that failed, so many more.
        first_wait_seconds: Before the first repeat; doubled for each further one.
        max_answer_tokens: Longest answer.
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


class OpenAIBackend:
    """Asks, repeats and learns what the endpoint cannot do.

    Structured answers are asked for as `json_schema`; an endpoint that refuses gets `json_object`,
    then no format at all, and stays there. A parameter that it does not know is left out.
    """

    def __init__(self, endpoint: Endpoint, options: OpenAIOptions, budget: Budget) -> None:
        self._endpoint = endpoint
        self._options = options
        self._budget = budget
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._format = 0
        self._has_format_worked = False
        self._left_out: set[str] = set()
        self._limit_name = "max_tokens"

    def parameters(self) -> dict[str, Any]:
        """Return model and settings; the address stays out, as it may be an internal one."""
        return {
            "backend": "openai",
            "model": self._options.model,
            "max_answer_tokens": self._options.max_answer_tokens,
        }

    def stop(self) -> None:
        """Send nothing more; questions that wait for a repeat end with a BackendError."""
        self._stopped.set()

    def ask(self, question: Question) -> Answer:
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
            asked_in = self._format
            body = self._body(question, asked_in)
            reserved = _estimate(body) + self._options.max_answer_tokens
            self._budget.reserve(reserved)
            sent += 1
            used = 0
            wait = 0.0
            try:
                reply = post_chat(self._endpoint, body)
                if reply.status == 200:
                    answer = _answer(reply.text, body)
                    used = answer.tokens
                    self._has_format_worked = True
                    return answer
                problem = f"HTTP {reply.status}: {self._excerpt(reply.text)}"
                if self._adapt(reply, body, asked_in, is_first=repeat == 0):
                    continue
                self._refuse_for_good(reply, problem)
                wait = reply.wait_seconds
            except NoReplyError as error:
                problem = str(error)
            finally:
                self._budget.settle(reserved, used)
            repeat += 1
            if repeat <= self._options.repeats:
                _log.info("asking again after: %s", problem)
                self._wait(repeat, wait)
        raise BackendError(
            f"{self._endpoint.base_url}: no answer after {sent} requests; the last one: "
            f"{problem}. Check that the endpoint is up, then run again: answers so far are kept."
        )

    def _body(self, question: Question, format_index: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._options.model,
            "messages": [
                {"role": "system", "content": question.system},
                {"role": "user", "content": question.data},
            ],
            "temperature": question.temperature,
            "seed": question.seed,
            self._limit_name: self._options.max_answer_tokens,
        }
        for name in self._left_out:
            body.pop(name, None)
        if FORMATS[format_index] == "json_schema":
            wanted = {"name": question.title, "strict": True, "schema": question.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": wanted}
        elif FORMATS[format_index] == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body

    def _adapt(self, reply: Reply, body: dict[str, Any], asked_in: int, *, is_first: bool) -> bool:
        """Change what is sent if the endpoint refused it; False if nothing is left to change."""
        if reply.status not in _FORMAT_REFUSED:
            return False
        text = reply.text.lower()
        with self._lock:
            if reply.status < 500 and "response_format" not in text and "json_schema" not in text:
                if "max_tokens" in body and "max_completion_tokens" in text:
                    self._limit_name = "max_completion_tokens"
                    return True
                refused = {name for name in _OPTIONAL if name in body and name in text}
                if refused:
                    # A new set: another thread may be reading the old one.
                    self._left_out = self._left_out | refused
                    return True
            if asked_in < self._format:
                return True
            # One 500 may be a hiccup; the second in a format that never worked is taken as refusal.
            is_hiccup = reply.status == 500 and is_first
            if is_hiccup or self._has_format_worked or asked_in == len(FORMATS) - 1:
                return False
            self._format = max(self._format, asked_in + 1)
            _log.info("the endpoint refuses %s answers", FORMATS[asked_in])
            return True

    def _refuse_for_good(self, reply: Reply, problem: str) -> None:
        if reply.status in _AGAIN and "insufficient_quota" not in reply.text:
            return
        if reply.status in (401, 403):
            cure = f"Set the key in {KEY_VARIABLES[0]}, and see that it may use the model."
        elif reply.status == 404:
            cure = "Check --base-url, which mostly ends in /v1, and --model."
        elif 300 <= reply.status < 400:
            cure = "It sends us elsewhere; give that address as --base-url if you trust it."
        elif reply.status == 429:
            cure = "The account has no quota left."
        else:
            cure = "Correct what it complains about."
        raise BackendError(f"{self._endpoint.base_url}: {problem}. {cure}")

    def _excerpt(self, text: str) -> str:
        return one_line(self._endpoint.hide_key(text))[:200] or "(no text)"

    def _wait(self, repeat: int, asked_seconds: float) -> None:
        """Wait as long as the server asks, else doubling, spread so that threads part."""
        own = self._options.first_wait_seconds * 2 ** (repeat - 1) * random.uniform(0.5, 1.0)
        self._stopped.wait(min(max(own, asked_seconds), MAX_WAIT_SECONDS))


def _estimate(body: dict[str, Any]) -> int:
    return len(json.dumps(body, ensure_ascii=False).encode()) // BYTES_PER_TOKEN


def _model_name(name: object) -> str:
    """Return what the server calls the model; llama.cpp says a path, which may be private."""
    line = one_line(name)[:200]
    is_path = line.startswith(("/", "~", "\\")) or line[1:3] in (":\\", ":/")
    return line.replace("\\", "/").rsplit("/", 1)[-1] if is_path else line


def _asked_as(body: dict[str, Any]) -> str:
    form = body.get("response_format", {}).get("type", FORMATS[-1])
    left_out = [name for name in _OPTIONAL if name not in body]
    return f"{form} without {', '.join(left_out)}" if left_out else form


def _answer(text: str, body: dict[str, Any]) -> Answer:
    """Read a chat completion.

    Raises:
        NoReplyError: It is none.
    """
    try:
        content = json.loads(text)
        choice = content["choices"][0]
        words = choice["message"]["content"]
        if not isinstance(words, str):
            raise TypeError(f"content is {type(words).__name__}")
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise NoReplyError(
            f"the answer is no chat completion ({type(error).__name__}: {error!s:.80})"
        ) from error
    # Lone surrogates, which JSON can spell, have no bytes in UTF-8.
    words = words.encode("utf-8", "replace").decode()
    usage = content.get("usage")
    counted = usage.get("total_tokens") if isinstance(usage, dict) else None
    tokens = counted if isinstance(counted, int) else 0
    is_estimate = tokens < 1
    if is_estimate:
        tokens = _estimate(body) + len(words.encode()) // BYTES_PER_TOKEN
    return Answer(
        text=words,
        model=_model_name(content.get("model")),
        tokens=tokens,
        is_estimate=is_estimate,
        is_cut=choice.get("finish_reason") == "length",
        asked_as=_asked_as(body),
    )
