"""Waiting for sites, with FLARE's controller replaced by threads that answer when told to."""

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.controller_spec import TaskCompletionStatus
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from vltune.flare.exchange import evaluation_reply, task_message
from vltune.flare.failure import error_reply
from vltune.flare.inquiry import Inquiry, Live, RunAbortedError
from vltune.participant import Evaluation

MESSAGE = task_message("run", 2, None, 0, 1)


class Flare:
    """Sites answer after `delays[site]` seconds, or never; some do not even take the task."""

    def __init__(self, delays: dict[str, float | None]) -> None:
        self.delays = delays
        self.dead: set[str] = set()
        self.asleep: set[str] = set()
        self.replies: dict[str, Shareable] = {}

    def broadcast(self, task: Any, fl_ctx: Any, targets: list[str], min_responses: int) -> None:
        for site in targets:
            answer = SimpleNamespace(client=SimpleNamespace(name=site), task=task)
            if site in self.asleep:
                continue
            task.after_task_sent_cb(answer, fl_ctx)
            delay = self.delays[site]
            if delay is not None:
                answer.result = self.replies.get(site) or evaluation_reply(Evaluation({}), 0)
                threading.Timer(delay, task.result_received_cb, (answer, fl_ctx)).start()

    def cancel_task(self, task: Any) -> None:
        task.completion_status = TaskCompletionStatus.CANCELLED

    def get_client_disconnect_time(self, site: str) -> float | None:
        return 1.0 if site in self.dead else None


def live(signal: Signal | None = None) -> Live:
    return Live(None, None, signal or Signal())  # type: ignore[arg-type] # no log, no context needed


def test_everybody_is_waited_for() -> None:
    answers = Inquiry(Flare({"a": 0.0, "b": 0.2}), 1).ask("train", MESSAGE, ["a", "b"], 5, live())
    assert set(answers.models) == {"a", "b"}
    assert answers.bytes_down["a"] == answers.bytes_down["b"] > 0
    assert 0.2 <= answers.seconds < 1


def test_a_silent_site_costs_one_timeout_and_then_nothing() -> None:
    flare = Flare({"a": 0.0, "b": None})
    inquiry = Inquiry(flare, 1)
    first = inquiry.ask("train", MESSAGE, ["a", "b"], 0.3, live())
    assert 0.3 <= first.seconds < 1
    assert "no answer within 0.3 s" in first.failed["b"]
    flare.asleep = {"b"}
    second = inquiry.ask("train", MESSAGE, ["a", "b"], 0.3, live())
    assert second.seconds < 0.2
    assert "silent before" in second.failed["b"]


def test_a_silent_site_that_takes_a_task_again_is_waited_for() -> None:
    """Such as one whose link was cut: it must not lose every race against the others."""
    flare = Flare({"a": 0.0, "b": None})
    inquiry = Inquiry(flare, 1)
    inquiry.ask("train", MESSAGE, ["a", "b"], 0.1, live())
    flare.delays["b"] = 0.2
    third = inquiry.ask("train", MESSAGE, ["a", "b"], 0.3, live())
    assert set(third.models) == {"a", "b"}
    assert inquiry.silent == set()


def test_a_silent_site_is_waited_for_while_answers_are_too_few() -> None:
    flare = Flare({"a": 0.0, "b": None})
    inquiry = Inquiry(flare, 2)
    inquiry.ask("train", MESSAGE, ["a", "b"], 0.1, live())
    flare.delays["b"] = 0.2
    answers = inquiry.ask("train", MESSAGE, ["a", "b"], 5, live())
    assert set(answers.models) == {"a", "b"}


def test_a_site_that_flare_calls_dead_is_not_waited_for() -> None:
    flare = Flare({"a": 0.0, "b": None})
    flare.dead = {"b"}
    answers = Inquiry(flare, 1).ask("train", MESSAGE, ["a", "b"], 9, live())
    assert answers.seconds < 1
    assert set(answers.failed) == {"b"}


def test_abort_ends_the_wait() -> None:
    signal = Signal()
    threading.Timer(0.1, lambda: signal.trigger(True)).start()
    began = time.monotonic()
    with pytest.raises(RunAbortedError):
        Inquiry(Flare({"a": None}), 1).ask("train", MESSAGE, ["a"], 9, live(signal))
    assert time.monotonic() - began < 1


def test_a_failure_and_an_unreadable_answer_are_that_sites_alone() -> None:
    flare = Flare({"a": 0.0, "b": 0.0, "c": 0.0})
    flare.replies = {
        "b": error_reply(ReturnCode.EXECUTION_EXCEPTION, "ConfigError: no data"),
        "c": Shareable(),
    }
    answers = Inquiry(flare, 1).ask("train", MESSAGE, ["a", "b", "c"], 5, live())
    assert set(answers.models) == {"a"}
    assert answers.failed["b"] == "EXECUTION_EXCEPTION: ConfigError: no data"
    assert "cannot be read" in answers.failed["c"]
