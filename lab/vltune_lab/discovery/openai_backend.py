"""A language model behind any endpoint that speaks OpenAI's chat completions."""

import json
import logging
import threading
from typing import Any

from vltune_lab.discovery.backend import Answer, Budget, Question
from vltune_lab.discovery.openai_calls import (
    BYTES_PER_TOKEN,
    Body,
    Call,
    Caller,
    OpenAIOptions,
    counted_tokens,
    estimate_tokens,
    model_name,
)
from vltune_lab.discovery.openai_http import Endpoint, NoReplyError, Reply

_log = logging.getLogger(__name__)

FORMATS = ("json_schema", "json_object", "text")
# A server that cannot do a format may say so with any of these; llama.cpp's says 500.
_FORMAT_REFUSED = (400, 415, 422, 500, 501)
_OPTIONAL = ("seed", "temperature")


class OpenAIBackend:
    """Asks, repeats and learns what the endpoint cannot do.

    Structured answers are asked for as `json_schema`; an endpoint that refuses gets `json_object`,
    then no format at all, and stays there. A parameter that it does not know is left out.
    """

    def __init__(self, endpoint: Endpoint, options: OpenAIOptions, budget: Budget) -> None:
        self._options = options
        self._caller = Caller(endpoint, options, budget)
        self._lock = threading.Lock()
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
        self._caller.stop()

    def ask(self, question: Question) -> Answer:
        """Ask until there is an answer, the repeats are used up or the budget is spent.

        Raises:
            BudgetError: The budget does not allow another request.
            BackendError: Refused for good, or no answer after all repeats.
        """
        call = Call(
            route="/chat/completions",
            body=lambda: self._body(question, self._format),
            read=self._read,
            adapt=self._adapt,
            max_answer_tokens=self._options.max_answer_tokens,
            not_found="Check --base-url, which mostly ends in /v1, and --model.",
        )
        return self._caller.call(call)

    def _read(self, text: str, body: Body) -> Answer:
        answer = _answer(text, body)
        self._has_format_worked = True
        return answer

    def _body(self, question: Question, format_index: int) -> Body:
        body: Body = {
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

    def _adapt(self, reply: Reply, body: Body, is_first: bool) -> bool:
        """Change what is sent if the endpoint refused it; False if nothing is left to change."""
        if reply.status not in _FORMAT_REFUSED:
            return False
        text = reply.text.lower()
        asked_in = FORMATS.index(_format(body))
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


def _format(body: Body) -> str:
    form: str = body.get("response_format", {}).get("type", FORMATS[-1])
    return form


def _asked_as(body: Body) -> str:
    form = _format(body)
    left_out = [name for name in _OPTIONAL if name not in body]
    return f"{form} without {', '.join(left_out)}" if left_out else form


def _answer(text: str, body: Body) -> Answer:
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
    tokens = counted_tokens(content, "total_tokens")
    is_estimate = tokens < 1
    if is_estimate:
        tokens = estimate_tokens(body) + len(words.encode()) // BYTES_PER_TOKEN
    return Answer(
        text=words,
        model=model_name(content.get("model")),
        tokens=tokens,
        is_estimate=is_estimate,
        is_cut=choice.get("finish_reason") == "length",
        asked_as=_asked_as(body),
    )
