"""What the server does about updates that are meant to harm: the job's key `federation.robust`.

Two kinds of rule. *Screening* (clip, krum, multi_krum, cosine) shortens updates or leaves them out,
and whatever joins the rest may follow: a mean, or a LoRA mode. *By coordinate* (median,
trimmed_mean) takes the place of the mean. docs/robust_aggregation.md says when to take which; the
formulas stand in `robust_rules`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from vltune.parameters import ParameterError
from vltune.robust_rules import (
    Centre,
    clip_update,
    coordinate_median,
    cosines_to_others,
    krum_scores,
    squared_distances,
    trimmed_mean,
    update_norms,
    weighted_mean,
)

Rule = Literal["none", "clip", "median", "trimmed_mean", "krum", "multi_krum", "cosine"]
Action = Literal["left_out", "clipped"]
Updates = Mapping[str, Mapping[str, Tensor]]
"""Each site's shared tensors by wire name, CPU fp32, all of the same names and shapes."""

_KEYS: dict[Rule, frozenset[str]] = {
    "none": frozenset(),
    "clip": frozenset({"clip_norm", "clip_multiple", "weighted"}),
    "median": frozenset({"weighted"}),
    "trimmed_mean": frozenset({"num_malicious"}),
    "krum": frozenset({"num_malicious"}),
    "multi_krum": frozenset({"num_malicious", "keep", "weighted"}),
    "cosine": frozenset({"centre", "min_cosine", "weighted"}),
}
_BY_COORDINATE = frozenset({"median", "trimmed_mean"})


class RobustError(ParameterError):
    """A robust rule cannot be applied to these updates."""


@dataclass(frozen=True)
class RobustAggregation:
    """The job's choice; a key that the rule does not use is refused.

    Attributes:
        rule: none takes the plain mean.
        num_malicious: f, the number of bad sites that trimmed_mean, krum and multi_krum withstand.
        keep: multi_krum averages so many updates; null keeps all but `num_malicious`.
        clip_norm: clip: largest distance from the global model.
        clip_multiple: clip: the same as a multiple of the median over the sites; one of both.
        centre: cosine: what a site is compared with, mean or median (null) of the others'
            directions.
        min_cosine: cosine: below it a site is left out; null is 0.
        weighted: Sites count by `num_examples`. That is their own word, by which a bad site can
            make itself heavy, so that by default each site counts the same.
    """

    rule: Rule = "none"
    num_malicious: int | None = None
    keep: int | None = None
    clip_norm: float | None = None
    clip_multiple: float | None = None
    centre: Centre | None = None
    min_cosine: float | None = None
    weighted: bool = False

    def __post_init__(self) -> None:
        if self.rule not in _KEYS:
            raise ValueError(f"rule is {self.rule!r}; expected one of {', '.join(_KEYS)}")
        for key in ("num_malicious", "keep", "clip_norm", "clip_multiple", "centre", "min_cosine"):
            if getattr(self, key) is not None:
                self._check_key(key)
        if self.weighted:
            self._check_key("weighted")
        if self.rule == "clip":
            self._check_clip()
        if "num_malicious" in _KEYS[self.rule] and (self.num_malicious or 0) < 1:
            raise ValueError(
                f"rule {self.rule} needs num_malicious >= 1, the number of bad sites to withstand; "
                f"got {self.num_malicious}"
            )
        if self.keep is not None and self.keep < 1:
            raise ValueError(f"keep must be >= 1 or null, got {self.keep}")
        if self.centre not in (None, "mean", "median"):
            raise ValueError(f"centre must be mean, median or null, got {self.centre!r}")
        if self.min_cosine is not None and not -1 <= self.min_cosine < 1:
            raise ValueError(f"min_cosine must be in [-1, 1), got {self.min_cosine}")

    def _check_key(self, key: str) -> None:
        if key not in _KEYS[self.rule]:
            known = ", ".join(sorted(_KEYS[self.rule])) or "none"
            raise ValueError(
                f"rule {self.rule} does not use {key}; it takes {known}. Take the key away."
            )

    def _check_clip(self) -> None:
        given = [v for v in (self.clip_norm, self.clip_multiple) if v is not None]
        if len(given) != 1 or not 0 < given[0] < math.inf:
            raise ValueError(
                "rule clip needs either clip_norm or clip_multiple, positive and finite; got "
                f"clip_norm {self.clip_norm} and clip_multiple {self.clip_multiple}"
            )

    @property
    def is_by_coordinate(self) -> bool:
        """Whether the rule takes the place of the mean."""
        return self.rule in _BY_COORDINATE

    @property
    def sites_needed(self) -> int:
        """Fewest updates with which the rule means anything; `min_sites` must be as many."""
        f = self.num_malicious or 0
        if self.rule in ("krum", "multi_krum"):
            return max(2 * f + 3, f + (self.keep or 1))
        if self.rule == "trimmed_mean":
            return 2 * f + 1
        return 3 if self.rule in ("median", "cosine") or self.clip_multiple is not None else 1

    def weights(self, num_examples: Sequence[int]) -> list[int]:
        """What each site counts; without a rule, what it counts anyway."""
        return [n if self.weighted or self.rule == "none" else 1 for n in num_examples]


@dataclass(frozen=True)
class Decision:
    """One update that was not taken as it came."""

    site: str
    action: Action
    reason: str


@dataclass(frozen=True)
class Screened:
    """What is left to be joined: updates by site, and the decisions, both sorted by site."""

    updates: dict[str, Mapping[str, Tensor]]
    decisions: tuple[Decision, ...] = ()


@dataclass(frozen=True)
class RobustResult:
    """The next global tensors, fp32, and what was done to whom; nobody left: those sent out."""

    tensors: dict[str, Tensor]
    decisions: tuple[Decision, ...]


def robust_aggregate(
    settings: RobustAggregation,
    reference: Mapping[str, Tensor],
    updates: Updates,
    num_examples: Mapping[str, int],
) -> RobustResult:
    """Join plain tensors under the rule.

    Args:
        settings: The rule.
        reference: The shared tensors that were sent out.
        updates: Each site's.
        num_examples: Each site's training examples, >= 1.

    Raises:
        RobustError: Fewer updates than the rule needs.
    """
    screened = screen(settings, reference, updates)
    if not screened.updates:
        return RobustResult(dict(reference), screened.decisions)
    return RobustResult(combine(settings, screened.updates, num_examples), screened.decisions)


def screen(
    settings: RobustAggregation, reference: Mapping[str, Tensor], updates: Updates
) -> Screened:
    """Shorten updates or leave them out; see `robust_aggregate`."""
    if len(updates) < settings.sites_needed:
        raise RobustError(
            f"rule {settings.rule} needs {settings.sites_needed} updates, got {len(updates)} of "
            f"{', '.join(sorted(updates)) or 'nobody'}. Raise federation.min_sites."
        )
    if settings.rule == "clip":
        return _clip(settings, reference, updates)
    if settings.rule in ("krum", "multi_krum"):
        return _krum(settings, updates)
    if settings.rule == "cosine":
        return _cosine(settings, reference, updates)
    return Screened({site: updates[site] for site in sorted(updates)})


def combine(
    settings: RobustAggregation, updates: Updates, num_examples: Mapping[str, int]
) -> dict[str, Tensor]:
    """Join what `screen` left, in the order of the sites' names."""
    sites = sorted(updates)
    tensors = [updates[site] for site in sites]
    weights = settings.weights([num_examples[site] for site in sites])
    if settings.rule == "median":
        return coordinate_median(tensors, weights if settings.weighted else None)
    if settings.rule == "trimmed_mean":
        return trimmed_mean(tensors, settings.num_malicious or 0)
    return weighted_mean(tensors, weights)


def _clip(
    settings: RobustAggregation, reference: Mapping[str, Tensor], updates: Updates
) -> Screened:
    sites = sorted(updates)
    norms = dict(
        zip(sites, update_norms(reference, [updates[site] for site in sites]), strict=True)
    )
    limit, source = settings.clip_norm, "clip_norm"
    if limit is None:
        middle = _median_of(list(norms.values()))
        limit = (settings.clip_multiple or 0.0) * middle
        source = f"{settings.clip_multiple:g} times the sites' median {middle:.6g}"
    decisions = tuple(
        Decision(site, "clipped", f"norm {norm:.6g} cut to {limit:.6g}, {source}")
        for site, norm in norms.items()
        if norm > limit
    )
    return Screened(
        {site: clip_update(reference, updates[site], limit) for site in sites}, decisions
    )


def _krum(settings: RobustAggregation, updates: Updates) -> Screened:
    sites, f = sorted(updates), settings.num_malicious or 0
    scores = krum_scores(squared_distances([updates[site] for site in sites]), f).tolist()
    ranking = sorted(zip(scores, sites, strict=True))
    keep = 1 if settings.rule == "krum" else settings.keep or len(sites) - f
    worst = ranking[keep - 1][0]
    decisions = tuple(
        Decision(
            site,
            "left_out",
            f"Krum score {score:.6g}; the {keep} kept of {len(sites)} have at most {worst:.6g}",
        )
        for site, score in sorted((site, score) for score, site in ranking[keep:])
    )
    kept = {site for _, site in ranking[:keep]}
    return Screened({site: updates[site] for site in sites if site in kept}, decisions)


def _cosine(
    settings: RobustAggregation, reference: Mapping[str, Tensor], updates: Updates
) -> Screened:
    sites = sorted(updates)
    centre, least = settings.centre or "median", settings.min_cosine or 0.0
    cosines = cosines_to_others(reference, [updates[site] for site in sites], centre)
    decisions = tuple(
        Decision(
            site,
            "left_out",
            f"cosine {value:.4f} with the {centre} of the others is below {least:g}",
        )
        for site, value in zip(sites, cosines, strict=True)
        if value is not None and value < least
    )
    gone = {decision.site for decision in decisions}
    return Screened({site: updates[site] for site in sites if site not in gone}, decisions)


def _median_of(values: Sequence[float]) -> float:
    ascending = sorted(values)
    count = len(ascending)
    return (ascending[(count - 1) // 2] + ascending[count // 2]) / 2
