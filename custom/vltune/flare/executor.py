"""The site's side of a run: FLARE tasks in, answers out, and no exception that ends the process.

Tasks: `prepare` (handshake), `train` (measure the received global model, then train from it) and
`validate` (measure only). The method is named by the dotted path of its builder, see
`vltune.participant`. FLARE may start a new process for every task, so whatever must survive is on
disk.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nvflare.apis.analytix import ANALYTIC_EVENT_TYPE, AnalyticsDataType
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.apis.utils.analytix_utils import create_analytic_dxo, send_analytic_dxo
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from torch import Tensor

from vltune.code_identity import code_hash
from vltune.flare.allow_list import SITE_METRICS
from vltune.flare.examination import check_builder, examine_site
from vltune.flare.exchange import (
    HEADER_RUN,
    HEADER_SITES,
    TASK_PREPARE,
    TASK_TRAIN,
    TASK_VALIDATE,
    evaluation_reply,
    handshake_reply,
    round_of,
    to_tensors,
    update_reply,
)
from vltune.flare.failure import error_reply, public_message
from vltune.flare.filters import SPEC_PROPERTY, check_result
from vltune.flare.last_word import leave_last_word, take_back_last_word
from vltune.flare.site_state import SiteState
from vltune.parameters import LocalUpdate
from vltune.participant import (
    Builder,
    Evaluation,
    Handshake,
    Participant,
    ShouldStop,
    TrainingStopped,
    import_builder,
)
from vltune.private_release import ReleaseGuard
from vltune.site_config import AnySiteConfig, find_site_config

JOB_FILE = "vltune_job.json"
THREADS_VARIABLE = "VLTUNE_THREADS"

log = logging.getLogger(__name__)


class ExecutorError(ValueError):
    """The job cannot be run here; the message says what is wrong with it."""


class ParticipantExecutor(Executor):
    """Drives one participant through a run.

    Args:
        participant: Dotted path of the method's builder.
        job_file: JSON in the app's config folder that says what to train.
        stream_metrics: Send the documented scalars as FLARE events too, for TensorBoard.
        examine: Ask the doctor before the first task; where a check fails, that is the answer.
    """

    def __init__(
        self,
        participant: str,
        job_file: str = JOB_FILE,
        stream_metrics: bool = True,
        examine: bool = False,
    ) -> None:
        super().__init__()
        self.participant = participant
        self.job_file = job_file
        self.stream_metrics = stream_metrics
        self.examine = examine
        self._site: AnySiteConfig | None = None
        self._state: SiteState | None = None
        self._built: Participant | None = None
        self._handshake: Handshake | None = None
        self._guard: ReleaseGuard | None = None
        self._trained_round = -1

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Give the state folder back when the run ends; a death before that ends no job."""
        if event_type == EventType.START_RUN:
            leave_last_word(fl_ctx)
        if event_type == EventType.END_RUN:
            take_back_last_word(fl_ctx)
            self.close()

    def close(self) -> None:
        """Forget the participant and unlock the state folder."""
        if self._state is not None:
            self._state.close()
        self._state = self._built = self._handshake = self._guard = None
        self._trained_round = -1

    def execute(
        self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        """Do one task; the answer is content, or a return code with a reason."""
        try:
            reply = self._do(task_name, shareable, fl_ctx, abort_signal)
            if reply.get_return_code() == ReturnCode.OK:
                check_result(reply, fl_ctx.get_prop(SPEC_PROPERTY))
            return reply
        except TrainingStopped as stopped:
            log.info("task %s: %s", task_name, stopped)
            return make_reply(ReturnCode.TASK_ABORTED)
        except (Exception, SystemExit) as error:
            # A dead process would end the whole job in FLARE.
            if abort_signal.triggered:
                return make_reply(ReturnCode.TASK_ABORTED)
            log.exception("task %s failed", task_name)
            return error_reply(
                ReturnCode.EXECUTION_EXCEPTION, public_message(error, self._private_paths())
            )

    def _do(
        self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        def should_stop() -> bool:
            return bool(abort_signal.triggered)

        if task_name not in (TASK_PREPARE, TASK_TRAIN, TASK_VALIDATE):
            return make_reply(ReturnCode.TASK_UNKNOWN)
        began = time.perf_counter()
        round_number = round_of(shareable)
        participant, handshake = self._ready(task_name, shareable, fl_ctx, should_stop)
        own = handshake.spec if task_name == TASK_PREPARE else handshake.own_spec
        fl_ctx.set_prop(SPEC_PROPERTY, dict(own or handshake.spec), private=True, sticky=True)
        if task_name == TASK_PREPARE:
            seconds = {"seconds_prepare": time.perf_counter() - began}
            return handshake_reply(handshake, seconds)
        shared = to_tensors(FLModelUtils.from_shareable(shareable).params, "the server")
        evaluation = self._evaluate(participant, shared, should_stop)
        if task_name == TASK_VALIDATE:
            metrics = evaluation.metrics | participant.finish(shared, should_stop)
            evaluation = Evaluation(metrics, evaluation.histograms)
            self._stream(evaluation.metrics, round_number, fl_ctx)
            return evaluation_reply(evaluation, round_number)
        if should_stop():
            raise TrainingStopped("before training")
        update = self._train(participant, shared, round_number, should_stop)
        trained = {**update.metrics, "seconds_task": time.perf_counter() - began}
        self._stream(evaluation.metrics, round_number, fl_ctx)
        self._stream(trained, round_number + 1, fl_ctx)
        metrics = {**evaluation.metrics, **trained}
        return update_reply(
            LocalUpdate(update.tensors, update.num_examples, metrics, evaluation.histograms),
            round_number,
        )

    def _evaluate(
        self, participant: Participant, shared: dict[str, Tensor], should_stop: ShouldStop
    ) -> Evaluation:
        began = time.perf_counter()
        evaluation = participant.evaluate(shared, should_stop)
        seconds = time.perf_counter() - began
        metrics = {**evaluation.metrics, "seconds_evaluate": seconds}
        return Evaluation(metrics, evaluation.histograms)

    def _train(
        self,
        participant: Participant,
        shared: dict[str, Tensor],
        round_number: int,
        should_stop: Callable[[], bool],
    ) -> LocalUpdate:
        assert self._guard is not None  # _ready() made it
        self._guard.before_training()
        try:
            update = participant.train(shared, round_number, should_stop)
        except BaseException:
            # What is half trained in memory must not be where the next round begins.
            self._built = self._handshake = None
            raise
        self._trained_round = round_number
        assert self._state is not None  # _ready() made it
        self._state.save(round_number, participant.personal_state())
        return self._guard.release(shared, update)

    def _ready(
        self,
        task_name: str,
        shareable: Shareable,
        fl_ctx: FLContext,
        should_stop: Callable[[], bool],
    ) -> tuple[Participant, Handshake]:
        """The participant as it was before the round, built again where the process is new."""
        if self._trained_round >= round_of(shareable):
            # A repeated round (the server never got the first answer) must not train twice.
            self.close()
        if self._built is None or self._handshake is None:
            self._build(task_name, shareable, fl_ctx, should_stop)
        assert self._built is not None  # _build() made both
        assert self._handshake is not None
        return self._built, self._handshake

    def _build(
        self,
        task_name: str,
        shareable: Shareable,
        fl_ctx: FLContext,
        should_stop: Callable[[], bool],
    ) -> None:
        workspace = fl_ctx.get_engine().get_workspace()
        site_name = str(fl_ctx.get_identity_name())
        self._site = find_site_config(site_name, Path(workspace.get_site_config_dir()))
        app = Path(workspace.get_app_config_dir(fl_ctx.get_job_id())).parent
        check_builder(self.participant, app, fl_ctx)
        if task_name == TASK_PREPARE and self.examine:
            examine_site(app, self.participant, self._site, site_name)
        if self._state is None:
            run_id = str(shareable.get_header(HEADER_RUN, ""))
            self._state = SiteState(self._site.state_dir, site_name, run_id)
        job = read_job(app / "config" / self.job_file)
        self._guard = ReleaseGuard.of_job(job, self._state.folder)
        threads = self._threads(shareable, fl_ctx)
        log.info("site %s: %d threads, method %s", site_name, threads, self.participant)
        built = find_builder(self.participant)(
            job, self._site, site_name, self._state.folder, threads
        )
        handshake = built.prepare(should_stop)
        self._handshake = replace(handshake, facts=handshake.facts | {"code": code_hash()})
        personal = self._state.before(round_of(shareable))
        if personal:
            built.load_personal_state(personal)
        self._built = built

    def _threads(self, shareable: Shareable, fl_ctx: FLContext) -> int:
        """CPU threads: the site's own number, else cores / sites that share this machine."""
        if self._site is not None and self._site.threads is not None:
            return self._site.threads
        chosen = os.environ.get(THREADS_VARIABLE, "")
        if chosen.isdecimal() and int(chosen) > 0:
            return int(chosen)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        simulated = fl_ctx.get_prop(FLContextKey.SIMULATE_MODE, False)
        sites = shareable.get_header(HEADER_SITES, 1) if simulated else 1
        return max(1, (cores or 1) // max(1, int(sites)))

    def _private_paths(self) -> list[Path]:
        if self._site is None:
            return []
        return self._site.private_paths()

    def _stream(self, metrics: Mapping[str, float], round_number: int, fl_ctx: FLContext) -> None:
        """Send scalars as FLARE events; they bypass result filters, so the same list holds here."""
        if not self.stream_metrics:
            return
        for name in sorted(SITE_METRICS & metrics.keys()):
            dxo = create_analytic_dxo(
                name, float(metrics[name]), AnalyticsDataType.SCALAR, global_step=round_number
            )
            send_analytic_dxo(self, dxo, fl_ctx, event_type=ANALYTIC_EVENT_TYPE)


def read_job(path: Path) -> dict[str, Any]:
    """Read the job that the export carries.

    Raises:
        ExecutorError: The file is missing or holds no JSON object.
    """
    try:
        job = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ExecutorError(f"{path}: cannot be read as the job. Export the job again.") from error
    if not isinstance(job, dict):
        raise ExecutorError(f"{path}: expected an object, got {type(job).__name__}")
    return job


def find_builder(dotted: str) -> Builder:
    """Import the method's builder.

    Raises:
        ExecutorError: There is no such function.
    """
    cure = "Expected the dotted path of a build_participant function."
    return import_builder(dotted, ExecutorError, cure)
