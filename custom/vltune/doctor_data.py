"""A site's data as its job will read them: every image is checked, none is encoded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from vltune.algorithms.answer_data import load_answer_data
from vltune.algorithms.encoded_drawings import TargetCache
from vltune.algorithms.encoded_records import TokenCache, count_too_long, fitting, fitting_prompts
from vltune.algorithms.unified_data import UnifiedPart, load_unified_data
from vltune.backbones.unified import UnifiedBackbone
from vltune.data.image_text import ImageTextSamples
from vltune.data.images import ImageError
from vltune.data.multilabel import load_coco_instances
from vltune.data.unified import UnifiedSamples
from vltune.doctor_findings import Finding, failed
from vltune.features import FeatureCache
from vltune.site_config import AnySiteConfig, SiteConfig, Split, UnifiedSiteConfig

IMAGE_CURE = (
    "Replace the files that the site's own table names, or say on_bad_image: skip in "
    "vltune_site.yaml."
)
RECORD_CURE = "Correct what the site's own table names; see docs/site_config.md."
LONG_CURE = "Shorten the records, or raise max_skipped_share in vltune_site.yaml."


@dataclass(frozen=True)
class ExaminedData:
    """What was found.

    Attributes:
        findings: One for each part, or one error.
        cache_bytes: What encoding will add to the feature cache; None where unknown.
    """

    findings: tuple[Finding, ...]
    cache_bytes: int | None = None


def examine_data(
    site: AnySiteConfig, job: Mapping[str, Any], backbone: Any | None, *, decodes: bool = True
) -> ExaminedData:
    """Read every part of the site's data as training will.

    Args:
        site: The site's file.
        job: Its class list, and whether it wants rejected answers.
        backbone: Says what is encoded already and which records are too long; None: did not load.
        decodes: Whether images are decoded that are not encoded yet; False only sees that they are
            there.
    """
    if isinstance(site, SiteConfig):
        return _labels(site, job, backbone, decodes)
    if isinstance(site, UnifiedSiteConfig):
        return _records(site, lambda changed: _unified(changed, job, backbone, decodes))
    return _records(site, lambda changed: _answers(changed, job, backbone, decodes))


def _decoded(holds: Callable[[Any], bool] | None, decodes: bool) -> Callable[[Any], bool] | None:
    """What the readers ask of an image before they decode it."""
    return holds if decodes else lambda image: True


def _labels(
    site: SiteConfig, job: Mapping[str, Any], backbone: Any | None, decodes: bool
) -> ExaminedData:
    cache = None if backbone is None else FeatureCache(site.cache_dir, backbone)
    splits = {"train": site.train, "validation": site.validation, "test": site.test}
    findings, new = [], 0
    for name, split in splits.items():
        if split is None:
            continue
        finding, paths = _label_split(f"data {name}", site, split, job, cache, decodes)
        findings.append(finding)
        new += paths
    return ExaminedData(tuple(findings), None if cache is None else cache.estimate_bytes(new))


def _label_split(
    name: str,
    site: SiteConfig,
    split: Split,
    job: Mapping[str, Any],
    cache: FeatureCache | None,
    decodes: bool,
) -> tuple[Finding, int]:
    """One split, and how many of its images are not encoded yet."""

    def read(on_bad_image: str) -> Any:
        return load_coco_instances(
            split.annotations,
            split.images,
            [str(classname) for classname in job.get("classnames") or ()],
            unlabelled=site.unlabelled,
            rename=site.rename,
            on_bad_image=on_bad_image,  # type: ignore[arg-type] # one of its words
            already_read=_decoded(None if cache is None else cache.holds, decodes),
        )

    try:
        samples = read(site.on_bad_image)
    except ImageError as error:
        return _unreadable(name, error, lambda: read("skip").num_skipped), 0
    except ValueError as error:
        return failed(name, error, RECORD_CURE), 0
    new = [path for path in samples.image_paths if cache is None or not cache.holds(path)]
    value = f"{len(samples.labels)} images"
    return _skipped(name, value, samples.num_skipped), len(new)


def _unreadable(name: str, error: ImageError, count: Callable[[], int]) -> Finding:
    """Count what stopped the reading, where that can be read."""
    try:
        value = f"{count()} images missing or unreadable"
    except ValueError:
        value = "images missing or unreadable"
    return Finding(name, "fail", value, "none", IMAGE_CURE, str(error))


def _skipped(name: str, value: str, num_skipped: int) -> Finding:
    if num_skipped:
        value = f"{value}, {num_skipped} left out as missing or unreadable"
        return Finding(name, "warn", value, "none left out", "Replace those files.")
    return Finding(name, "ok", value)


def _records(site: Any, examine: Callable[[Any], ExaminedData]) -> ExaminedData:
    """Read with the site's own policy; where images stop it, read on to count them."""
    try:
        return examine(site)
    except ImageError as error:
        tolerant = replace(site, on_bad_image="skip", max_skipped_share=1.0)
        try:
            found = examine(tolerant)
        except ValueError:
            return ExaminedData((failed("data", error, IMAGE_CURE),))
        fail = Finding(
            "data", "fail", "images missing or unreadable", "fewer", IMAGE_CURE, str(error)
        )
        return ExaminedData((fail, *found.findings), found.cache_bytes)
    except ValueError as error:
        return ExaminedData((failed("data", error, RECORD_CURE),))


def _answers(
    site: Any, job: Mapping[str, Any], backbone: Any | None, decodes: bool
) -> ExaminedData:
    cache = None if backbone is None else TokenCache(site.cache_dir, backbone)
    known = _decoded(None if cache is None else cache.holds, decodes)
    data = load_answer_data(site, already_read=known)
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    findings, new = [], 0
    for name, samples in parts.items():
        if samples is None:
            continue
        findings.append(_answer_part(f"data {name}", samples, site, job, backbone))
        new += sum(cache is None or not cache.holds(digest) for digest in samples.digests)
    wants_rejected = (job.get("objective") or {}).get("name") == "dpo"
    lacking = sum(record.rejected is None for record in data.train.records)
    if wants_rejected and lacking:
        cure = "Give `data: preference`, or export the job with objective.name=sft."
        findings.append(
            Finding("objective", "fail", f"{lacking} records without a rejected answer", "0", cure)
        )
    return ExaminedData(tuple(findings), None if cache is None else cache.estimate_bytes(new))


def _answer_part(
    name: str,
    samples: ImageTextSamples,
    site: Any,
    job: Mapping[str, Any],
    backbone: Any | None,
) -> Finding:
    """Counts of one part; records that are too long for the model are counted too."""
    value = f"{len(samples.records)} records of {len(samples.images)} images"
    if samples.num_duplicates:
        value += f", {samples.num_duplicates} twice"
    return _fit(
        name,
        value,
        samples,
        None
        if backbone is None
        else lambda: fitting(
            samples,
            backbone,
            max_share=site.max_skipped_share,
            max_answer_tokens=int(job.get("max_answer_tokens", backbone.max_answer_tokens)),
        ),
    )


def _fit(
    name: str,
    value: str,
    samples: ImageTextSamples,
    fit: Callable[[], ImageTextSamples] | None,
) -> Finding:
    """Count records that are too long for the model; `fit` leaves them out or refuses."""
    if fit is not None:
        try:
            num_long = len(samples.records) - len(fit().records)
        except ValueError as error:
            return Finding(name, "fail", f"{value}, too many too long", "", LONG_CURE, str(error))
        if num_long:
            return Finding(name, "warn", f"{value}, {num_long} too long", "0", LONG_CURE)
    return _skipped(name, value, samples.num_skipped)


def _unified(
    site: UnifiedSiteConfig, job: Mapping[str, Any], backbone: Any | None, decodes: bool
) -> ExaminedData:
    tokens = None if backbone is None else TokenCache(site.cache_dir, backbone)
    targets = (
        TargetCache(site.cache_dir, backbone) if isinstance(backbone, UnifiedBackbone) else None
    )

    def already_read(digest: bytes) -> bool:
        caches = (tokens, targets)
        return any(cache is not None and cache.holds(digest) for cache in caches)

    data = load_unified_data(site, already_read=_decoded(already_read, decodes))
    parts = {"train": UnifiedPart(data.train), "validation": data.validation, "test": data.test}
    findings, needed = [], 0
    for name, part in parts.items():
        if part is None:
            continue
        findings += _unified_part(name, part, site, job, backbone)
        needed += _new_bytes(part.samples, tokens, targets)
    has_drawings = any(part is not None and part.samples.drawing for part in parts.values())
    if backbone is not None and targets is None and has_drawings:
        cure = "Take a job on janus or blip3o, or remove `captions` from vltune_site.yaml."
        findings.append(Finding("drawing", "fail", "the backbone cannot draw", "it can", cure))
    return ExaminedData(tuple(findings), None if tokens is None else needed)


def _unified_part(
    name: str, part: UnifiedPart, site: Any, job: Mapping[str, Any], backbone: Any | None
) -> list[Finding]:
    findings = []
    if part.samples.understanding is not None:
        asked = part.samples.understanding
        findings.append(_answer_part(f"data {name}, questions", asked, site, job, backbone))
    if part.samples.drawing is not None:
        drawn = part.samples.drawing
        value = f"{len(drawn.records)} captions of {len(drawn.images)} images"
        fit = None
        if isinstance(backbone, UnifiedBackbone):
            fit = partial(fitting_prompts, drawn, backbone, max_share=site.max_skipped_share)
        findings.append(_fit(f"data {name}, captions", value, drawn, fit))
    if part.prompts:
        findings.append(_prompts(f"data {name}, prompts", part, backbone))
    return findings


def _prompts(name: str, part: UnifiedPart, backbone: Any | None) -> Finding:
    """Prompts to draw for; none may be left out, or sites would be judged on other ones."""
    value = f"{len(part.prompts)} prompts"
    if backbone is not None:
        num_long, _ = count_too_long([prompt.prompt for prompt in part.prompts], backbone)
        if num_long:
            return Finding(name, "fail", f"{value}, {num_long} too long", "0", "Shorten them.")
    return Finding(name, "ok", value)


def _new_bytes(
    samples: UnifiedSamples, tokens: TokenCache | None, targets: TargetCache | None
) -> int:
    """What encoding one part will add to both caches."""
    total = 0
    for cache, task in ((tokens, samples.understanding), (targets, samples.drawing)):
        if cache is not None and task is not None:
            total += cache.estimate_bytes(sum(not cache.holds(digest) for digest in task.digests))
    return total
