"""The server's side of a run: roll call, rounds, a last look, and an end in every case."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nvflare.apis.analytix import ANALYTIC_EVENT_TYPE, AnalyticsDataType
from nvflare.apis.client import Client
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.apis.utils.analytix_utils import create_analytic_dxo, send_analytic_dxo
from nvflare.app_common.abstract.model import ModelLearnableKey, make_model_learnable
from nvflare.app_common.app_constant import AppConstants
from torch import Tensor

from vltune import __version__
from vltune.config import from_mapping
from vltune.flare.aggregator import ValidatingAggregator
from vltune.flare.exchange import (
    TASK_PREPARE,
    TASK_TRAIN,
    TASK_VALIDATE,
    task_message,
    to_arrays,
    to_tensors,
)
from vltune.flare.failure import refusal
from vltune.flare.federation import FederationConfig, FederationError, sites_of_round
from vltune.flare.inquiry import Answers, Inquiry, Live, RunAbortedError
from vltune.flare.intake import read_evaluation, read_handshake
from vltune.flare.persistor import META_ROUND, AdapterPersistor, run_folder
from vltune.flare.roll_call import RollCall, check_own_code, compare_sites, describe_sites
from vltune.flare.round_record import Measured, describe_roll_call, training
from vltune.flare.run_log import RunLog, new_run_id
from vltune.flare.scoreboard import Scoreboard
from vltune.lora_residual import split_residual
from vltune.parameters import spec_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunConfig:
    """Which run this is.

    Attributes:
        name: Of the job.
        method: Of the algorithm, for the records.
        seed: Run seed; draws the sites of a round where not all take part.
        run_id: Under which sites keep their state; empty makes a new one.
        start_round: Rounds behind the adapter that a resumed run continues from.
        best: Metric of the best global model so far, -1 for none.
        facts: How facts of each site's handshake must begin (the hash of the job's class list).
    """

    name: str
    method: str
    seed: int
    run_id: str = ""
    start_round: int = 0
    best: float = -1.0
    facts: dict[str, str] = field(default_factory=dict)


class FederationController(Controller):
    """Roll call, then rounds of `train`, then `validate`; writes everything down as it goes.

    Args:
        federation: The job's `federation`.
        run: A `RunConfig` as a mapping.
        aggregator_id: The component that checks and averages updates.
        persistor_id: The component that keeps the global adapter.
        task_check_period: Seconds between FLARE's looks at its tasks.
    """

    def __init__(
        self,
        federation: dict[str, Any],
        run: dict[str, Any],
        aggregator_id: str = "aggregator",
        persistor_id: str = AppConstants.DEFAULT_PERSISTOR_ID,
        task_check_period: float = 0.05,
    ) -> None:
        super().__init__(task_check_period=task_check_period)
        self.federation = federation
        self.run = run
        self.aggregator_id = aggregator_id
        self.persistor_id = persistor_id
        self.task_check_period = task_check_period
        self._config = from_mapping(FederationConfig, federation, "the job's federation")
        self._run = from_mapping(RunConfig, run, "the job's run")
        self._run_id = self._run.run_id or new_run_id()
        self.inquiry = Inquiry(self, self._config.min_sites)

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Find the other components."""
        engine = fl_ctx.get_engine()
        self._aggregator = engine.get_component(self.aggregator_id)
        self._persistor = engine.get_component(self.persistor_id)
        for component, kind in (
            (self._aggregator, ValidatingAggregator),
            (self._persistor, AdapterPersistor),
        ):
            if not isinstance(component, kind):
                self.system_panic(f"expected a {kind.__name__}, got {type(component)}", fl_ctx)
        self._scoreboard = Scoreboard(
            self._config.metric,
            self._run.best,
            self._persistor,
            self._stream if self._config.tensorboard else None,
        )

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Nothing is left open."""

    def process_result_of_unknown_task(
        self,
        client: Client,
        task_name: str,
        client_task_id: str,
        result: Shareable,
        fl_ctx: FLContext,
    ) -> None:
        """An answer that came after its round had ended."""
        log.warning("%s: its answer to %s came too late and is not used", client.name, task_name)

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Run to the end; whatever goes wrong ends the job with the reason."""
        run_log = RunLog(
            run_folder(fl_ctx),
            {
                "job": self._run.name,
                "method": self._run.method,
                "run_id": self._run_id,
                "vltune": __version__,
                "metric": self._config.metric,
                "start_round": self._run.start_round,
                "completed_rounds": self._run.start_round,
            },
        )
        try:
            self._federate(Live(run_log, fl_ctx, abort_signal))
        except RunAbortedError as error:
            run_log.end(status="aborted", reason=str(error))
        except Exception as error:
            reason = str(error) if isinstance(error, ValueError) else repr(error)
            log.exception("the federation ends: %s", reason)
            run_log.end(status="failed", reason=reason)
            self.system_panic(reason, fl_ctx)
        else:
            run_log.end(status="completed", finished=time.time())

    def _federate(self, live: Live) -> None:
        check_own_code(self._run.facts)
        start, end = self._run.start_round, self._config.rounds
        if start >= end:
            raise FederationError(
                f"{start} rounds are done and the job asks for {end}; raise federation.rounds"
            )
        roll_call, current = self._prepare(live)
        self._save(current, start, live)
        for round_number in range(start, end):
            current = self._round(round_number, current, roll_call, live)
            self._save(current, round_number + 1, live)
            live.run_log.update(completed_rounds=round_number + 1)
        self._validate(end, current, roll_call, live)

    def _prepare(self, live: Live) -> tuple[RollCall, dict[str, Tensor]]:
        """Compare the sites and find the global model to start from."""
        learnable = self._persistor.load(live.fl_ctx)
        loaded = to_tensors(learnable[ModelLearnableKey.WEIGHTS], "the adapter to continue from")
        sites = sorted(client.name for client in live.fl_ctx.get_engine().get_clients())
        message = task_message(
            self._run_id, len(sites), None, self._run.start_round, self._config.rounds
        )
        timeout = self._config.prepare_timeout_seconds
        answers = self.inquiry.ask(TASK_PREPARE, message, sites, timeout, live)
        handshakes, failed = {}, dict(answers.failed)
        for site, model in answers.models.items():
            try:
                self._aggregator.refuse_processed(site, model)
                handshakes[site] = read_handshake(model, site)
            except Exception as error:  # noqa: BLE001 - one site's answer must not end the run
                failed[site] = refusal(error)
        live.run_log.phase("prepare", answers.seconds)
        live.run_log.update(
            left_out=failed, bytes_prepare={"up": answers.bytes_up, "down": answers.bytes_down}
        )
        required = spec_of(split_residual(loaded)[0]) if loaded else None
        roll_call = compare_sites(
            handshakes, failed, self._config.min_sites, required, self._run.facts
        )
        for site, reason in sorted(roll_call.left_out.items()):
            log.error("%s does not take part: %s", site, reason)
        live.run_log.update(**describe_roll_call(roll_call, handshakes, answers))
        return roll_call, loaded or roll_call.reference.initial

    def _round(
        self, round_number: int, current: dict[str, Tensor], roll_call: RollCall, live: Live
    ) -> dict[str, Tensor]:
        """One round of training; returns the new global model."""
        began = time.monotonic()
        sites = sites_of_round(roll_call.sites, self._config, self._run.seed, round_number)
        self._aggregator.start_round(round_number, current, roll_call.num_examples)
        message = self._message(current, round_number, roll_call)
        timeout = self._config.round_timeout_seconds
        answers = self.inquiry.ask(TASK_TRAIN, message, sites, timeout, live)
        rejected = self._accept(answers)
        for site, reason in sorted(rejected.items()):
            log.warning("round %d goes on without %s: %s", round_number, site, reason)
        accepted = self._aggregator.accepted
        if len(accepted) < self._config.min_sites:
            live.run_log.update(rejected_at_end=rejected)
            raise FederationError(
                f"round {round_number}: {len(accepted)} of {len(sites)} updates accepted, "
                f"min_sites is {self._config.min_sites}: {describe_sites(rejected)}"
            )
        measured = {
            site: Measured(update.metrics, update.histograms, update.num_examples)
            for site, update in accepted.items()
        }
        mean: dict[str, Tensor] = self._aggregator.average()
        answers.seconds = time.monotonic() - began
        live.run_log.phase("rounds", answers.seconds)
        is_everyone = len(measured) == len(roll_call.sites)
        self._scoreboard.measured(round_number, measured, live, is_everyone=is_everyone)
        joined = self._aggregator
        record = training(measured, answers, rejected, joined.exactness, joined.decisions)
        self._scoreboard.trained(round_number, measured, record, live)
        return mean

    def _accept(self, answers: Answers) -> dict[str, str]:
        """Give the answers to the aggregator; returns the sites that do not count, with reasons."""
        rejected = dict(answers.failed)
        for site in sorted(answers.models):
            try:
                self._aggregator.accept_model(answers.models[site])
            except Exception as error:  # noqa: BLE001 - one site's answer must not end the run
                rejected[site] = refusal(error)
        return rejected

    def _validate(
        self, round_number: int, current: dict[str, Tensor], roll_call: RollCall, live: Live
    ) -> None:
        """Measure the last global model everywhere; a site that fails costs only its figures."""
        message = self._message(current, round_number, roll_call)
        timeout = self._config.round_timeout_seconds
        answers = self.inquiry.ask(TASK_VALIDATE, message, roll_call.sites, timeout, live)
        measured, failed = {}, dict(answers.failed)
        for site, model in answers.models.items():
            try:
                evaluation = read_evaluation(model, site)
                measured[site] = Measured(evaluation.metrics, evaluation.histograms)
            except Exception as error:  # noqa: BLE001 - one site's answer must not end the run
                failed[site] = refusal(error)
        live.run_log.phase("validate", answers.seconds)
        live.run_log.update(
            not_measured_at_end=failed,
            bytes_validate={"up": answers.bytes_up, "down": answers.bytes_down},
        )
        is_everyone = len(measured) == len(roll_call.sites)
        self._scoreboard.measured(round_number, measured, live, is_everyone=is_everyone)

    def _message(
        self, current: Mapping[str, Tensor], round_number: int, roll_call: RollCall
    ) -> Shareable:
        return task_message(
            self._run_id, len(roll_call.sites), current, round_number, self._config.rounds
        )

    def _save(self, current: Mapping[str, Tensor], round_number: int, live: Live) -> None:
        learnable = make_model_learnable(to_arrays(current), {META_ROUND: round_number})
        self._persistor.save(learnable, live.fl_ctx)

    def _stream(self, tag: str, value: float, round_number: int, fl_ctx: FLContext) -> None:
        dxo = create_analytic_dxo(tag, value, AnalyticsDataType.SCALAR, global_step=round_number)
        send_analytic_dxo(self, dxo, fl_ctx, event_type=ANALYTIC_EVENT_TYPE)
