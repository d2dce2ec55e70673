"""Send one task to sites and collect their answers: never waits without an end."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from nvflare.apis.controller_spec import ClientTask, Task
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from vltune.flare.aggregator import META_SITE
from vltune.flare.exchange import ExchangeError, payload_bytes
from vltune.flare.failure import error_of, refusal
from vltune.flare.intake import check_form
from vltune.flare.run_log import RunLog

POLL_SECONDS = 0.02

log = logging.getLogger(__name__)


class RunAbortedError(Exception):
    """The administrator or FLARE ended the job."""


@dataclass(frozen=True)
class Live:
    """What belongs to one execution of a job at the server."""

    run_log: RunLog
    fl_ctx: FLContext
    abort_signal: Signal


@dataclass
class Answers:
    """What came back from one task.

    Attributes:
        models: Site -> content of its answer.
        failed: Site -> why it has none.
        bytes_up: Site -> size of the content it sent.
        bytes_down: Site -> size of the content it was sent.
        seconds: Wall time from sending to the last answer that was waited for.
    """

    models: dict[str, FLModel] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    bytes_up: dict[str, int] = field(default_factory=dict)
    bytes_down: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def received(self, site: str, message: Shareable) -> None:
        """Take one answer apart; whatever is wrong with it is that site's failure alone."""
        try:
            code = message.get_return_code()
            if not isinstance(code, str):  # an array would be compared number by number
                raise ExchangeError(f"{site}: the return code is a {type(code).__name__}")
            if code != ReturnCode.OK:
                self.failed[site] = error_of(message)
                return
            check_form(message, site)
            self.bytes_up[site] = payload_bytes(message)
            model = FLModelUtils.from_shareable(message)
            model.meta[META_SITE] = site
            self.models[site] = model
        except Exception as error:  # noqa: BLE001 - foreign content must not end the round
            self.failed[site] = refusal(error)

    @property
    def answered(self) -> set[str]:
        """Sites that sent anything at all."""
        return set(self.models) | set(self.failed)


class Inquiry:
    """Asks sites through a FLARE controller.

    A site that stayed silent once is still asked, but waited for only once it has taken the task,
    or while answers are too few: otherwise one dead site would cost every round its whole timeout.
    """

    def __init__(self, controller: Controller, min_sites: int) -> None:
        self.controller = controller
        self.min_sites = min_sites
        self.silent: set[str] = set()

    def ask(
        self,
        task_name: str,
        message: Shareable,
        sites: Sequence[str],
        timeout_seconds: float,
        live: Live,
    ) -> Answers:
        """Send `message` and wait for the answers, at most `timeout_seconds`.

        Raises:
            RunAbortedError: The abort signal was triggered.
        """
        answers = Answers()
        size = payload_bytes(message)

        def sent(client_task: ClientTask, fl_ctx: FLContext) -> None:
            answers.bytes_down[client_task.client.name] = size

        def received(client_task: ClientTask, fl_ctx: FLContext) -> None:
            answers.received(client_task.client.name, client_task.result)
            client_task.result = None

        began = time.monotonic()
        task = Task(task_name, message, after_task_sent_cb=sent, result_received_cb=received)
        self.controller.broadcast(task, live.fl_ctx, targets=list(sites), min_responses=len(sites))
        while task.completion_status is None:
            if live.abort_signal.triggered:
                self.controller.cancel_task(task)
                raise self._aborted(sites)
            if self._is_done(answers, sites) or time.monotonic() - began > timeout_seconds:
                self.controller.cancel_task(task)
                break
            time.sleep(POLL_SECONDS)
        if live.abort_signal.triggered:
            raise self._aborted(sites)
        answers.seconds = time.monotonic() - began
        self._note_silence(answers, sites, timeout_seconds)
        return answers

    def _aborted(self, sites: Sequence[str]) -> RunAbortedError:
        """FLARE aborts a job itself where fewer sites than the quorum are left."""
        lost = sorted(s for s in sites if self.controller.get_client_disconnect_time(s))
        left = f" after FLARE lost {', '.join(lost)}" if lost else ""
        return RunAbortedError(f"the job was aborted{left}")

    def _is_done(self, answers: Answers, sites: Sequence[str]) -> bool:
        answered = answers.answered
        gone = {s for s in sites if self.controller.get_client_disconnect_time(s)}
        asleep = self.silent - answers.bytes_down.keys()
        waiting = set(sites) - answered - asleep - gone
        if waiting:
            return False
        lagging = set(sites) - answered - gone
        return not lagging or len(answers.models) >= self.min_sites

    def _note_silence(self, answers: Answers, sites: Sequence[str], timeout_seconds: float) -> None:
        missing = set(sites) - answers.answered
        for site in sorted(missing):
            answers.failed[site] = (
                f"no answer within {timeout_seconds:g} s (its process ended, or the timeout is too "
                "short)"
                if site not in self.silent
                else "no answer; it has been silent before"
            )
        self.silent = (self.silent - answers.answered) | missing
