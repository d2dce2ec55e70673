"""The frozen model and what is trained on it, as this site would build them; no data is touched."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from vltune.algorithms.lora_site import LoraParticipant
from vltune.algorithms.multilabel_site import MultiLabelParticipant
from vltune.algorithms.site_lora import SiteLora
from vltune.backbones.checkpoint import BackboneError
from vltune.backbones.judges import load_judge
from vltune.conditions import class_list_hash, conditions_from_mapping
from vltune.doctor_findings import HASH_SHOWN, Finding, failed
from vltune.doctor_job import ExportedJob
from vltune.geneval import check_judge
from vltune.geneval_prompts import read_prompts
from vltune.lora_factors import parse_factor_name
from vltune.parameters import SharedSpec, describe_difference, shared_state, spec_of
from vltune.site_config import AnySiteConfig, UnifiedSiteConfig

AnyParticipant = MultiLabelParticipant | LoraParticipant
WEIGHTS_CURE = (
    "Put the checkpoint that the job names here, and its path under `weights:` in vltune_site.yaml."
)


@dataclass(frozen=True)
class LoadedModel:
    """What later checks need of a model that loaded.

    Attributes:
        backbone: The frozen model.
        frozen: Its numbers.
        spec: Names and shapes of the job's shared tensors; None where they could not be made.
        trained: Numbers that the optimiser moves here.
        rank: Of this site's adapter; None where the method has no LoRA.
        residual: Most numbers that the server may send beside the shared tensors.
    """

    backbone: Any
    frozen: int
    spec: SharedSpec | None = None
    trained: int = 0
    rank: int | None = None
    residual: int = 0


def check_class_list(job: Mapping[str, Any], facts: Mapping[str, str]) -> list[Finding]:
    """The class list against its condition cache and against what the server will ask for.

    Returns:
        Findings `class list` and `conditions`; none for a job without classes.
    """
    names = job.get("classnames")
    if not isinstance(names, list):
        return []
    found = class_list_hash([str(name) for name in names])
    wanted = facts.get("class_list", "")
    cure = "Export the job again: its class list was changed after the export."
    is_same = found.startswith(wanted)
    shown = f"{len(names)} classes, {found[:HASH_SHOWN]}"
    classes = Finding(
        "class list",
        "ok" if is_same else "fail",
        shown,
        wanted[:HASH_SHOWN],
        "" if is_same else cure,
    )
    try:
        conditions = conditions_from_mapping(
            job.get("conditions") or {}, names, "the job's conditions"
        )
    except ValueError as error:
        remedy = "Export the job with the condition cache of its class list."
        return [classes, failed("conditions", error, remedy, expected="the job's class list")]
    value = f"{len(conditions.names)} conditions of {len(conditions.classnames)} classes"
    return [classes, Finding("conditions", "ok", value)]


def examine_model(
    participant: AnyParticipant, exported: ExportedJob
) -> tuple[list[Finding], LoadedModel | None]:
    """Load the backbone and build what is trained.

    Returns:
        Findings `backbone`, `preprocessing`, `tokenizer` and `adapter`; the model, or None where
        the backbone did not load.
    """
    try:
        backbone = participant.load_model()
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        cure = WEIGHTS_CURE if isinstance(error, BackboneError | OSError) else "See the message."
        return [failed("backbone", error, cure)], None
    inner: nn.Module = backbone.model
    frozen = sum(parameter.numel() for parameter in inner.parameters())
    findings = _identity(participant, backbone)
    try:
        loaded = _adapter(participant, backbone, frozen)
    except ValueError as error:
        cure = "Correct lora_rank in vltune_site.yaml, or the job's lora."
        return [*findings, failed("adapter", error, cure)], LoadedModel(backbone, frozen)
    return [*findings, check_adapter(loaded, exported)], loaded


def _identity(participant: AnyParticipant, backbone: Any) -> list[Finding]:
    wanted = exported_sha256(participant)
    own = backbone.fingerprint[:HASH_SHOWN]
    return [
        Finding(
            "backbone",
            "ok",
            f"{backbone.name} {own}",
            f"file {wanted[:HASH_SHOWN]}, compared" if wanted else "",
        ),
        Finding("preprocessing", "ok", backbone.preprocess_fingerprint[:HASH_SHOWN]),
        Finding("tokenizer", "ok", backbone.tokenizer_fingerprint[:HASH_SHOWN]),
    ]


def exported_sha256(participant: AnyParticipant) -> str:
    """The hash of the weights file that the job asks for, or ""; a loader has compared it."""
    config = getattr(participant.job, "backbone", None)
    return "" if config is None else str(config.sha256)


def _adapter(participant: AnyParticipant, backbone: Any, frozen: int) -> LoadedModel:
    if isinstance(participant, MultiLabelParticipant):
        model = participant.model
        spec = spec_of(shared_state(model, model.shared_keys()))
        trained = sum(parameter.numel() for parameter in model.trainable_parameters())
        return LoadedModel(backbone, frozen, spec, trained)
    lora = SiteLora(
        participant.job, backbone.model, backbone.lora_scope, participant.site.lora_rank
    )
    trained = sum(parameter.numel() for parameter in lora.parameters())
    spec, rank = spec_of(lora.initial()), lora.settings.rank
    residual = largest_residual(spec) if participant.mode.has_residual else 0
    return LoadedModel(backbone, frozen, spec, trained, rank, residual)


def largest_residual(spec: SharedSpec) -> int:
    """Numbers of a dense residual of every module, D_out x D_in; a smaller one is sent so."""
    sides: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    for name, shape in spec.items():
        module, kind = parse_factor_name(name)
        sides[module][kind] = shape
    return sum(pair["B"][0] * pair["A"][1] for pair in sides.values() if len(pair) == 2)


def check_adapter(loaded: LoadedModel, exported: ExportedJob) -> Finding:
    """Names and shapes of what is shared, against the adapter that a resumed run goes on from."""
    spec = loaded.spec or {}
    rank = "" if loaded.rank is None else f", rank {loaded.rank}"
    value = f"{len(spec)} shared tensors, {loaded.trained} trained numbers{rank}"
    path = exported.resume_adapter
    if path is None:
        return Finding("adapter", "ok", value)
    try:
        with safe_open(path, framework="pt") as content:
            there = {key: tuple(content.get_slice(key).get_shape()) for key in content.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        return failed("adapter", error, "Export the resumed job again.")
    difference = describe_difference(there, spec)
    if difference:
        cure = "Resume with the model, rank and class list that the run began with."
        return Finding("adapter", "fail", value, "the resumed run's tensors", cure, difference)
    return Finding("adapter", "ok", value, "the resumed run's tensors")


def examine_judge(job: Mapping[str, Any], site: AnySiteConfig) -> list[Finding]:
    """The judge of drawn pictures, where the site has prompts to draw for; else nothing."""
    if not isinstance(site, UnifiedSiteConfig):
        return []
    if not site.prompt_files:
        return []
    # Behind this is transformers, for which the other jobs should not wait.
    from vltune.algorithms.fedumm import JUDGE, read_job

    config, _, _ = read_job(job)
    if config.judge is None:
        cure = "Name a judge in the job, or remove `prompts` from vltune_site.yaml."
        return [Finding("judge", "fail", "none", "one, for the site's prompts", cure)]
    chosen = site.with_own_weights(config.judge, JUDGE)
    try:
        judge = load_judge(chosen, site.device)
    except ValueError as error:
        return [failed("judge", error, "Give its folder under `weights: {judge: ...}`.")]
    try:
        for path in site.prompt_files:
            check_judge(judge, read_prompts(path))
    except ValueError as error:
        cure = "Leave prompts out that it cannot judge, or take another judge."
        return [failed("judge", error, cure, expected="knows the classes of all prompts")]
    return [Finding("judge", "ok", chosen.kind)]
