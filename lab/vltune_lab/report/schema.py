"""Schema of `summary.json` (docs/run_folder.md): its keys, their types and ranges.

Metrics and probabilities are in [0, 1], sizes in bytes, times in seconds; null means: not measured.
"""

import itertools
from dataclasses import dataclass, field
from typing import Any, Literal

from vltune_lab.report.schema_entries import RejectedUpdate as RejectedUpdate
from vltune_lab.report.schema_entries import RobustDecision as RobustDecision
from vltune_lab.report.schema_entries import SitePrivacy as SitePrivacy
from vltune_lab.report.schema_entries import check_amounts as check_amounts
from vltune_lab.report.schema_entries import check_fractions as check_fractions

SCHEMA_VERSION = 1
"""Counts up when a key changes its meaning or goes; a new key may come without."""


@dataclass(frozen=True)
class RoundSummary:
    """One round.

    Attributes:
        round: Rounds that the measured global model has behind it; 0 is the model before training.
        mAP: Of that model, pooled over the sites' validation data from their score histograms.
        worst_site_mAP: Lowest mAP of one site on its own validation data.
        loss: Mean training loss of the round that led to this model; null in round 0.
        seconds: Wall time of the round.
        overhead_seconds: Wall time of the round less the slowest site's own work.
        bytes_up: Sent by all sites together.
        bytes_down: Sent to all sites together.
        rejected: Updates that the server refused.
        exactness_error: How far the joined LoRA is from the mean of the sites' products, relative;
            null where the server cannot tell.
        score: The run's metric where that is not mAP; see `Scores`.
        worst_site_score: Its lowest value at one site.
    """

    round: int
    mAP: float | None
    worst_site_mAP: float | None
    loss: float | None
    seconds: float
    overhead_seconds: float
    bytes_up: int
    bytes_down: int
    rejected: int
    exactness_error: float | None = None
    score: float | None = None
    worst_site_score: float | None = None

    def __post_init__(self) -> None:
        check_fractions(mAP=self.mAP, worst_site_mAP=self.worst_site_mAP)
        check_fractions(score=self.score, worst_site_score=self.worst_site_score)
        check_amounts(
            round=self.round,
            seconds=self.seconds,
            bytes_up=self.bytes_up,
            bytes_down=self.bytes_down,
            rejected=self.rejected,
            exactness_error=self.exactness_error,
        )


@dataclass(frozen=True)
class SiteSummary:
    """One site; metrics are those of the final global model on the site's validation data.

    Attributes:
        site: FLARE name.
        num_examples: Training images.
        zero_shot_mAP: The better of the two zero-shot readings on the same data.
        mAP: Mean average precision.
        CF1: From mean class precision and recall.
        OF1: From overall precision and recall.
        num_validation: Validation images.
        metrics: Other figures in [0, 1], by name; those before training are `zero_shot_NAME`.
    """

    site: str
    num_examples: int
    zero_shot_mAP: float | None
    mAP: float | None
    CF1: float | None
    OF1: float | None
    num_validation: int | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fractions(zero_shot_mAP=self.zero_shot_mAP, mAP=self.mAP, CF1=self.CF1, OF1=self.OF1)
        check_fractions(**{f"metrics.{name}": value for name, value in self.metrics.items()})
        check_amounts(num_examples=self.num_examples, num_validation=self.num_validation)


@dataclass(frozen=True)
class Scores:
    """The headline of a run whose metric is not mAP.

    Attributes:
        metric: Name of the metric, such as accuracy.
        zero_shot: Mean over the sites before training.
        overall: Mean over the sites of the final model, each site counting the same.
        worst_site: Lowest value of one site.
    """

    metric: str
    zero_shot: float | None
    overall: float | None
    worst_site: float | None

    def __post_init__(self) -> None:
        check_fractions(zero_shot=self.zero_shot, overall=self.overall, worst_site=self.worst_site)


@dataclass(frozen=True)
class SiteBytes:
    """What one site sent (`bytes_up`) and received (`bytes_down`) in one round."""

    site: str
    round: int
    bytes_up: int
    bytes_down: int

    def __post_init__(self) -> None:
        check_amounts(round=self.round, bytes_up=self.bytes_up, bytes_down=self.bytes_down)


@dataclass(frozen=True)
class Reading:
    """One model on the global test set; a class without positives has the AP null."""

    mAP: float | None
    CF1: float | None
    OF1: float | None
    per_class_ap: dict[str, float | None]

    def __post_init__(self) -> None:
        check_fractions(mAP=self.mAP, CF1=self.CF1, OF1=self.OF1)
        check_fractions(**{f"per_class_ap of {name}": ap for name, ap in self.per_class_ap.items()})


@dataclass(frozen=True)
class GlobalTest:
    """Readings on the test set that no site owns.

    Attributes:
        num_examples: Images.
        federated: The final global model.
        zero_shot_pooled: CLIP's image feature against "a photo of a CLASS."
        zero_shot_patch: CLIP's patch features pooled by softmax against the same texts.
        before_training: The method at initialisation.
    """

    num_examples: int
    federated: Reading
    zero_shot_pooled: Reading | None = None
    zero_shot_patch: Reading | None = None
    before_training: Reading | None = None


@dataclass(frozen=True)
class RunSummary:
    """Content of summary.json, in this order.

    Attributes:
        job: Name of the job.
        method: Name of the method, such as FedMPT.
        sites: Number of sites that took part.
        rounds: Rounds completed.
        seed: Run seed.
        zero_shot_mAP: The better of the two zero-shot readings, on the data of `global_mAP`.
        global_mAP: The final global model on `measured_on`.
        worst_site_mAP: Lowest `mAP` in `per_site`.
        bytes_up_per_site_per_round: Mean over sites and rounds.
        wall_seconds: Of the whole run.
        config: The resolved job.
        seeds: Purpose -> seed.
        versions: Package -> version.
        per_round: Ascending; may begin with round 0, the model before training.
        per_site: One entry a site.
        thresholds: Metric -> threshold on probabilities.
        bytes_per_site_per_round: Every message; may be empty.
        wall_seconds_by_phase: Phase -> wall time; the phases follow one another.
        rejected_updates: In order.
        robust_decisions: In order; empty without a robust rule.
        privacy: What each site has spent; empty without differential privacy.
        measured_on: Data of `global_mAP`: `global_test`, or `site_histograms` where there is none.
        scores: The headline where the run's metric is not mAP; null where it is.
        global_test: Readings on the global test set, if there is one.
        artefacts: Name -> file name in the run folder.
        left_out_sites: Site -> why it took no part.
        environment: sim, poc or prod.
        started: ISO 8601 time.
        hardware: Readable line.
        extra: What a method adds; not part of the schema.
        schema_version: `SCHEMA_VERSION`.
    """

    job: str
    method: str
    sites: int
    rounds: int
    seed: int
    zero_shot_mAP: float | None
    global_mAP: float | None
    worst_site_mAP: float | None
    bytes_up_per_site_per_round: int
    wall_seconds: float
    config: dict[str, Any]
    seeds: dict[str, int]
    versions: dict[str, str]
    per_round: tuple[RoundSummary, ...]
    per_site: tuple[SiteSummary, ...]
    thresholds: dict[str, float]
    bytes_per_site_per_round: tuple[SiteBytes, ...]
    wall_seconds_by_phase: dict[str, float]
    rejected_updates: tuple[RejectedUpdate, ...] = ()
    robust_decisions: tuple[RobustDecision, ...] = ()
    privacy: tuple[SitePrivacy, ...] = ()
    measured_on: Literal["global_test", "site_histograms"] = "global_test"
    global_test: GlobalTest | None = None
    scores: Scores | None = None
    artefacts: dict[str, str] = field(default_factory=dict)
    left_out_sites: dict[str, str] = field(default_factory=dict)
    environment: str = "sim"
    started: str = ""
    hardware: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        check_fractions(
            zero_shot_mAP=self.zero_shot_mAP,
            global_mAP=self.global_mAP,
            worst_site_mAP=self.worst_site_mAP,
            **{f"thresholds.{name}": value for name, value in self.thresholds.items()},
        )
        check_amounts(
            sites=self.sites,
            rounds=self.rounds,
            bytes_up_per_site_per_round=self.bytes_up_per_site_per_round,
            wall_seconds=self.wall_seconds,
            **{f"wall_seconds_by_phase.{k}": v for k, v in self.wall_seconds_by_phase.items()},
        )
        _check_ascending("per_round", [item.round for item in self.per_round])
        _check_ascending("per_site", sorted(item.site for item in self.per_site))
        if self.measured_on == "global_test" and self.global_test is None:
            raise ValueError("measured_on is global_test, but global_test is null")

    @property
    def headline(self) -> Scores:
        """The run's metric and its three figures, whichever metric it is."""
        return self.scores or Scores(
            "mAP", self.zero_shot_mAP, self.global_mAP, self.worst_site_mAP
        )

    def round_scores(self, entry: RoundSummary) -> tuple[float | None, float | None]:
        """The run's metric in one round: overall, and of the worst site."""
        if self.scores is None:
            return entry.mAP, entry.worst_site_mAP
        return entry.score, entry.worst_site_score

    def site_scores(self, site: SiteSummary) -> tuple[float | None, float | None]:
        """The run's metric at one site: before training, and of the final model."""
        if self.scores is None:
            return site.zero_shot_mAP, site.mAP
        metric = self.scores.metric
        return site.metrics.get(f"zero_shot_{metric}"), site.metrics.get(metric)


def _check_ascending(name: str, values: list[Any]) -> None:
    for before, after in itertools.pairwise(values):
        if not before < after:
            raise ValueError(f"{name}: {after!r} stands behind {before!r}; each once, in order")
