"""From the answers of one round to the figures that are written down.

Round N means everywhere: the global model that has N rounds behind it, and the training that led to
it. A site measures the model that it receives before it trains, so each answer to `train` holds the
measurement of one model and the training of the next.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from vltune.flare.allow_list import TRAIN_METRICS
from vltune.flare.federation import METRICS, FederationError
from vltune.flare.inquiry import Answers
from vltune.flare.roll_call import RollCall
from vltune.histograms import ScoreHistograms, mean_average_precision_from
from vltune.lora_exactness import Exactness
from vltune.participant import Handshake
from vltune.robust_aggregation import Decision

MAP = "mAP"
LOSS = "loss"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """What one site said of the received model and of its training.

    Attributes:
        metrics: Documented scalars.
        histograms: Score histograms of the received model, int32.
        num_examples: Weight of its loss; 0 where it did not train.
    """

    metrics: Mapping[str, float]
    histograms: Mapping[str, Tensor]
    num_examples: int = 0


def global_map(measured: Mapping[str, Measured]) -> float:
    """Return the mAP pooled from all sites' histograms; NaN without any.

    Where they disagree about the number of classes, the majority counts; without one it is NaN.
    """
    histograms = {
        site: ScoreHistograms.from_tensors(dict(measured[site].histograms), site)
        for site in sorted(measured)
        if measured[site].histograms
    }
    if not histograms:
        return math.nan
    sizes = Counter(item.num_classes for item in histograms.values())
    num_classes, votes = sizes.most_common(1)[0]
    others = [site for site, item in histograms.items() if item.num_classes != num_classes]
    if 2 * votes <= len(histograms):
        log.warning("no global mAP in this round: sites have %s classes", sorted(sizes))
        return math.nan
    if others:
        log.warning("global mAP without %s: others have %d classes", others, num_classes)
    agreed = [item for site, item in histograms.items() if site not in others]
    return float(mean_average_precision_from(agreed)[0])


def measurement(
    round_number: int,
    measured: Mapping[str, Measured],
    metric: str = MAP,
    *,
    is_required: bool = True,
) -> dict[str, Any]:
    """Figures of the global model that has `round_number` rounds behind it.

    mAP is pooled over the sites from their score histograms; any other metric is the plain mean
    over the sites that sent it, each counting the same.

    Args:
        round_number: Rounds behind the model.
        measured: Site -> what it said.
        metric: The federation's.
        is_required: Refuse figures without it; else it is NaN where these sites have none.

    Raises:
        FederationError: No site reports the metric, so no best model could be chosen.
    """
    reported = {name for said in measured.values() for name in said.metrics}
    if is_required and measured and metric not in reported:
        raise FederationError(
            f"federation.metric is {metric!r}, which no site reports; they report "
            f"{', '.join(sorted(reported & set(METRICS))) or 'none'}. Name one of these."
        )
    values = {site: m.metrics.get(metric) for site, m in measured.items()}
    worst_site, worst = worst_of(values)
    known = [v for v in values.values() if v is not None and math.isfinite(v)]
    mean = math.fsum(known) / len(known) if known else math.nan
    return {
        "round": round_number,
        metric: global_map(measured) if metric == MAP else mean,
        "worst_site": worst_site,
        f"worst_site_{metric}": worst,
    }


def training(
    measured: Mapping[str, Measured],
    answers: Answers,
    rejected: Mapping[str, str],
    exactness: Exactness | None = None,
    decisions: Sequence[Decision] = (),
) -> dict[str, Any]:
    """Figures of one round of training; they stand in the record of the model that came of it."""
    known = (
        {}
        if exactness is None
        else {
            "exactness_error": exactness.overall,
            "exactness_by_module": exactness.per_module,
        }
    )
    return {
        **known,
        LOSS: _mean_loss(measured.values()),
        "seconds": round(answers.seconds, 4),
        "overhead_seconds": _overhead(measured.values(), answers.seconds),
        "sites": sorted(measured),
        "bytes_up": dict(sorted(answers.bytes_up.items())),
        "bytes_down": dict(sorted(answers.bytes_down.items())),
        "rejected": [{"site": site, "reason": rejected[site]} for site in sorted(rejected)],
        **({"robust": [asdict(decision) for decision in decisions]} if decisions else {}),
        **_privacy(measured),
    }


def _privacy(measured: Mapping[str, Measured]) -> dict[str, Any]:
    """What each site has spent in this run, as it says itself; nothing without privacy."""
    entries = [
        {"site": site, "level": level, "epsilon": said[f"{level}_epsilon"],
         "delta": said[f"{level}_delta"]}
        for site in sorted(measured)
        for said in (measured[site].metrics,)
        for level in ("site", "record")
        if f"{level}_epsilon" in said and f"{level}_delta" in said
    ]  # fmt: skip
    return {"privacy": entries} if entries else {}


def split_metrics(metrics: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Separate figures of the received model from those of the training that followed."""
    train = {name: value for name, value in metrics.items() if name in TRAIN_METRICS}
    return {name: value for name, value in metrics.items() if name not in train}, train


def metrics_of(measured: Mapping[str, Measured], half: int) -> dict[str, dict[str, float]]:
    """By site, half 0 or 1 of `split_metrics`."""
    return {site: split_metrics(said.metrics)[half] for site, said in measured.items()}


def worst_of(values: Mapping[str, float | None]) -> tuple[str | None, float]:
    """Return the site with the lowest value, ties by name; (None, NaN) where there is none."""
    known = [(v, site) for site, v in values.items() if v is not None and math.isfinite(v)]
    if not known:
        return None, math.nan
    value, site = min(known)
    return site, value


def describe_roll_call(
    roll_call: RollCall, handshakes: Mapping[str, Handshake], answers: Answers
) -> dict[str, Any]:
    """Who takes part and what they agree on, for rounds.json."""
    reference = roll_call.reference
    return {
        "left_out": roll_call.left_out,
        "facts": reference.facts,
        "initial_hash": reference.initial_hash,
        "shared": {name: list(shape) for name, shape in reference.spec.items()},
        "sites": {
            site: {
                "num_examples": handshakes[site].num_examples,
                "num_validation": handshakes[site].num_validation,
                **(answers.models[site].metrics or {}),
            }
            for site in roll_call.sites
        },
    }


def _mean_loss(measured: Iterable[Measured]) -> float:
    pairs = [(m.metrics[LOSS], m.num_examples) for m in measured if LOSS in m.metrics]
    total = sum(weight for _, weight in pairs)
    if not total:
        return math.nan
    return math.fsum(loss * weight for loss, weight in pairs) / total


def _overhead(measured: Iterable[Measured], seconds: float) -> float:
    """Wall time of the round that the slowest site did not spend in its task."""
    busy = [m.metrics["seconds_task"] for m in measured if "seconds_task" in m.metrics]
    return round(seconds - max(busy), 4) if busy else math.nan
