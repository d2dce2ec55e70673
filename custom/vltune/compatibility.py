"""What excludes what: one table, asked before round 0 and printed in docs/compatibility.md.

The job's part is asked where a job is read and where the server starts; a site's filter shows
itself in the site's first answer, which is before round 0 too.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from vltune.config import ConfigError, from_mapping
from vltune.lora_modes import LoraAggregation
from vltune.privacy import PrivacyConfig
from vltune.robust_aggregation import RobustAggregation


class Feature(StrEnum):
    """Parts of a run that do not go with all others."""

    ENCRYPTION = "homomorphic encryption"
    SECURE_AGGREGATION = "secure aggregation"
    QUANTIZATION = "quantized updates (int8, fp16)"
    UPDATE_CHECKS = "checks of each update (NaN, norm)"
    PRODUCTS = "LoRA modes with products"
    HETLORA = "hetlora"
    ROBUST = "robust rules"
    BY_COORDINATE = "median, trimmed_mean"
    LORA = "LoRA methods (FedVLM, FedUMM)"
    SITE_PRIVACY = "site-level differential privacy"
    RECORD_PRIVACY = "record-level differential privacy"


DESCRIPTIONS: dict[Feature, str] = {
    Feature.ENCRYPTION: "a FLARE filter at the sites (CKKS)",
    Feature.SECURE_AGGREGATION: "masks that cancel in the sum, a filter at the sites",
    Feature.QUANTIZATION: "a FLARE filter at the sites",
    Feature.UPDATE_CHECKS: "always on; `federation.max_update_norm` is one of them",
    Feature.PRODUCTS: "`aggregation.mode` svd, fedex, stack, and hetlora weighted by norm",
    Feature.HETLORA: "`aggregation.mode: hetlora`, either weight",
    Feature.ROBUST: "`federation.robust.rule`, any but none",
    Feature.BY_COORDINATE: "the two robust rules that take the place of the mean",
    Feature.LORA: "jobs with `aggregation`",
    Feature.SITE_PRIVACY: "`privacy.level: site`",
    Feature.RECORD_PRIVACY: "`privacy.level: record`",
}


@dataclass(frozen=True)
class Exclusion:
    """Two features that cannot be in one run, why, and what to do about it."""

    first: Feature
    second: Feature
    reason: str
    cure: str


_OWN_SCALE = "each site's values have a scale of their own, and sums of them mean nothing"
_HIDDEN = "the server sees sums only, and could check no site's values"
_HIDDEN_ROBUST = "the server sees sums only, and cannot tell a bad update from a good one"
_HIDDEN_PRODUCTS = "the server sees sums only, and needs the factors of each site"
_PLAIN = "take the filter away; this server adds plain tensors"
_ROBUST_OR_HIDDEN = "take robust.rule none or the filter away: choose whom to mistrust"
_LINEAR = "take mode fedavg, ffa, fedsa or plora, or the filter away"

EXCLUSIONS: tuple[Exclusion, ...] = (
    Exclusion(Feature.ENCRYPTION, Feature.UPDATE_CHECKS, _HIDDEN, _PLAIN),
    Exclusion(Feature.ENCRYPTION, Feature.ROBUST, _HIDDEN_ROBUST, _ROBUST_OR_HIDDEN),
    Exclusion(Feature.ENCRYPTION, Feature.PRODUCTS, _HIDDEN_PRODUCTS, _LINEAR),
    Exclusion(Feature.SECURE_AGGREGATION, Feature.UPDATE_CHECKS, _HIDDEN, _PLAIN),
    Exclusion(Feature.SECURE_AGGREGATION, Feature.ROBUST, _HIDDEN_ROBUST, _ROBUST_OR_HIDDEN),
    Exclusion(Feature.SECURE_AGGREGATION, Feature.PRODUCTS, _HIDDEN_PRODUCTS, _LINEAR),
    Exclusion(Feature.QUANTIZATION, Feature.ENCRYPTION, _OWN_SCALE, "take one of both filters"),
    Exclusion(
        Feature.QUANTIZATION, Feature.SECURE_AGGREGATION, _OWN_SCALE, "take one of both filters"
    ),
    Exclusion(
        Feature.QUANTIZATION,
        Feature.UPDATE_CHECKS,
        "the server checks float32, and does not undo the filter",
        "take the filter away",
    ),
    Exclusion(
        Feature.BY_COORDINATE,
        Feature.PRODUCTS,
        "the mode joins products B A, and has no mean of factors that they could replace",
        "take clip, krum, multi_krum or cosine, or mode fedavg, ffa, fedsa or plora",
    ),
    Exclusion(
        Feature.ROBUST,
        Feature.HETLORA,
        "ranks differ, so that updates cannot be compared; weighted by norm, the larger update "
        "also counts more",
        "take mode svd or fedavg, where all sites have one rank, or robust.rule none",
    ),
    Exclusion(
        Feature.SITE_PRIVACY,
        Feature.PRODUCTS,
        "the noise of one factor multiplies that of the other, so that the product's is no longer "
        "the one stated",
        "take mode ffa (one factor only), fedavg, fedsa or plora",
    ),
    Exclusion(
        Feature.RECORD_PRIVACY,
        Feature.LORA,
        "their training has no gradient of each record alone",
        "take privacy.level site, or FedMPT",
    ),
)

_ALGORITHMS = {
    "CKKS": Feature.ENCRYPTION,
    "HE": Feature.ENCRYPTION,
    "SECURE_AGGREGATION": Feature.SECURE_AGGREGATION,
    "FLOAT16": Feature.QUANTIZATION,
    "BLOCKWISE8": Feature.QUANTIZATION,
    "FLOAT4": Feature.QUANTIZATION,
    "NORMFLOAT4": Feature.QUANTIZATION,
    "ADAQUANT": Feature.QUANTIZATION,
}
"""How FLARE's filters name themselves in a message, in capitals."""


def features_of(
    aggregation: LoraAggregation | None,
    robust: RobustAggregation,
    privacy: PrivacyConfig | None = None,
) -> frozenset[Feature]:
    """What a job switches on; the server does not know of its sites' `privacy`."""
    found = {Feature.UPDATE_CHECKS}
    if aggregation is not None:
        found.add(Feature.LORA)
    if privacy is not None and privacy.level == "site":
        found.add(Feature.SITE_PRIVACY)
    if privacy is not None and privacy.level == "record":
        found.add(Feature.RECORD_PRIVACY)
    if aggregation is not None and not aggregation.is_linear:
        found.add(Feature.PRODUCTS)
    if aggregation is not None and aggregation.mode == "hetlora":
        found.add(Feature.HETLORA)
    if robust.rule != "none":
        found.add(Feature.ROBUST)
    if robust.is_by_coordinate:
        found.add(Feature.BY_COORDINATE)
    return frozenset(found)


def feature_of_filter(algorithm: str) -> Feature | None:
    """What a site's filter does, by the name that it leaves in a message; None if not known."""
    return _ALGORITHMS.get(algorithm.upper())


def conflicts(features: Iterable[Feature]) -> tuple[Exclusion, ...]:
    """The lines of the table that these features run into, in its order."""
    active = set(features)
    return tuple(line for line in EXCLUSIONS if {line.first, line.second} <= active)


def check_features(features: Iterable[Feature], source: str) -> None:
    """Refuse what does not go together.

    Args:
        features: Of the job, and of the sites where they are known.
        source: What asks for them, for the message.

    Raises:
        ConfigError: Every conflict, its reason and its cure.
    """
    found = conflicts(features)
    if found:
        lines = "; ".join(
            f"{line.first} excludes {line.second}: {line.reason}; {line.cure}" for line in found
        )
        raise ConfigError(f"{source}: {lines} (docs/compatibility.md)")


def check_job(job: Mapping[str, Any], source: str) -> None:
    """Refuse a job whose parts do not go together; sites and server need not run for it.

    Raises:
        ConfigError: See `check_features`; or a part is wrong in itself.
    """
    aggregation, robust = job.get("aggregation"), job["federation"].get("robust")
    check_features(
        features_of(
            None
            if aggregation is None
            else from_mapping(LoraAggregation, aggregation, f"{source}: aggregation"),
            from_mapping(RobustAggregation, robust or {}, f"{source}: federation.robust"),
            from_mapping(PrivacyConfig, job.get("privacy") or {}, f"{source}: privacy"),
        ),
        source,
    )


def as_table() -> str:
    """The table in Markdown, as docs/compatibility.md shows it."""
    lines = ["| feature | what it is |", "|---|---|"]
    lines += [f"| {feature} | {DESCRIPTIONS[feature]} |" for feature in Feature]
    lines += ["", "| one | excludes | because | cure |", "|---|---|---|---|"]
    lines += [f"| {x.first} | {x.second} | {x.reason} | {x.cure} |" for x in EXCLUSIONS]
    return "\n".join(lines) + "\n"
