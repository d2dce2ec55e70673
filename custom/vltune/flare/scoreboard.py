"""The figures of each global model as they come: written down, the best model kept, streamed."""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from nvflare.apis.fl_context import FLContext

from vltune.flare.inquiry import Answers, Live
from vltune.flare.persistor import AdapterPersistor, run_folder
from vltune.flare.round_record import Measured, measurement, metrics_of, training

Stream = Callable[[str, float, int, FLContext], None]

log = logging.getLogger(__name__)


class Scoreboard:
    """Joins the measurement of a model and the training that led to it, an answer earlier.

    Args:
        metric: The federation's; the best model has the highest.
        best: Of the rounds before this run, -1 for none.
        persistor: Keeps the best model.
        stream: Takes (tag, value, round, context) of the figures to watch; None for nobody.
    """

    def __init__(
        self, metric: str, best: float, persistor: AdapterPersistor, stream: Stream | None
    ) -> None:
        self._metric = metric
        self._best = best
        self._persistor = persistor
        self._stream = stream
        self._has_metric = False
        self._training = training({}, Answers(), {})

    def trained(
        self,
        round_number: int,
        measured: Mapping[str, Measured],
        record: dict[str, Any],
        live: Live,
    ) -> None:
        """Keep the record of a training for the model that came of it."""
        self._training = record
        live.run_log.site_metrics(round_number + 1, "train", metrics_of(measured, 1))
        live.run_log.update(last_training=record)

    def measured(
        self,
        round_number: int,
        measured: Mapping[str, Measured],
        live: Live,
        *,
        is_everyone: bool,
    ) -> None:
        """Write down the model after `round_number` rounds; mark it where it is the best so far.

        Some of the sites may have no data for the metric; all of them together must.

        Raises:
            FederationError: All sites answered and none has ever had the metric.
        """
        is_required = is_everyone and not self._has_metric
        record = measurement(round_number, measured, self._metric, is_required=is_required)
        record |= self._training
        value = record[self._metric]
        self._has_metric |= math.isfinite(value)
        if value >= self._best:
            self._best = value
            self._persistor.mark_best(run_folder(live.fl_ctx), round_number)
            live.run_log.update(best={"round": round_number, self._metric: value})
        live.run_log.site_metrics(round_number, "validation", metrics_of(measured, 0))
        live.run_log.round_line(record)
        worst = record["worst_site"]
        log.info("round %d: %s %.4f, worst site %s", round_number, self._metric, value, worst)
        if self._stream is not None:
            for name in (self._metric, f"worst_site_{self._metric}", "loss", "seconds"):
                self._stream(f"global/{name}", record[name], round_number, live.fl_ctx)
