"""What job.py measures itself once a multi-label run is complete: the test set that no site owns.

The set is named by the environment variable VLTUNE_GLOBAL_TEST: a folder with images/ and
instances.json (COCO). Without it the summary keeps the figures that the sites sent.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from vltune.algorithms.encoded_split import EncodedSplit, zero_shot_scores
from vltune.algorithms.fedmpt import FedMPT, build_participant
from vltune.algorithms.multilabel_site import MultiLabelParticipant
from vltune.metrics import MultiLabelMetrics, multilabel_metrics
from vltune.parameters import apply_shared, shared_state
from vltune.site_config import SiteConfig, Split
from vltune_lab.report.examples import write_examples
from vltune_lab.report.html import build_report
from vltune_lab.report.summary import write_summary

VARIABLE = "VLTUNE_GLOBAL_TEST"


def finish(run_folder: Path, job: dict[str, Any], summary: dict[str, Any]) -> dict[str, Any]:
    """Measure the final adapter on the global test set where one exists, and write the report.

    Args:
        run_folder: Holds global_adapter.safetensors.
        job: The resolved job.
        summary: What the sites' figures say.

    Returns:
        The summary, with `global_test`, `zero_shot_mAP`, `global_mAP` where they were measured.
    """
    place = os.environ.get(VARIABLE, "").strip()
    if place:
        summary = summary | measure(run_folder, job, Path(place))
    write_summary(run_folder, summary)
    build_report(run_folder)
    return summary | {"artefacts": {**summary["artefacts"], "report": "report.html"}}


def measure(run_folder: Path, job: Mapping[str, Any], place: Path) -> dict[str, Any]:
    """Measure zero-shot, the untrained and the trained model on the global test set."""
    files = Split(images=place / "images", annotations=place / "instances.json")
    site = SiteConfig(train=files, validation=files, cache_dir=place / "vltune_cache")
    participant = build_participant(job, site, "global", run_folder, threads=os.cpu_count() or 1)
    backbone = participant.load_model()
    model = participant.model
    initial = shared_state(model, model.shared_keys())
    split = participant.encode_split(files)
    zero_shot = {
        name: _score(scores, split, job, with_threshold=False)
        for name, scores in zero_shot_scores(backbone, split, job["classnames"]).items()
    }
    before = _reading(participant, model, initial, split, job)
    final = load_file(run_folder / "global_adapter.safetensors")
    federated = _reading(participant, model, final, split, job)
    write_examples(
        run_folder, model, backbone, split, participant.conditions.names, seed=job["seed"]
    )
    return {
        "global_test": {
            "num_examples": len(split.labels),
            "zero_shot_pooled": zero_shot["pooled"],
            "zero_shot_patch": zero_shot["patch"],
            "before_training": before,
            "federated": federated,
        },
        "zero_shot_mAP": max(reading["mAP"] for reading in zero_shot.values()),
        "global_mAP": federated["mAP"],
        "measured_on": "global_test",
    }


def _reading(
    participant: MultiLabelParticipant,
    model: FedMPT,
    shared: dict[str, Any],
    split: EncodedSplit,
    job: Mapping[str, Any],
) -> dict[str, Any]:
    apply_shared(model, shared, model.shared_keys())
    return _score(participant.predict(split), split, job, with_threshold=True)


def _score(
    scores: np.ndarray, split: EncodedSplit, job: Mapping[str, Any], *, with_threshold: bool
) -> dict[str, Any]:
    """A reading as summary.json holds it; no threshold means anything to zero-shot cosines."""
    metrics: MultiLabelMetrics = multilabel_metrics(
        scores, split.samples.labels, job.get("threshold", 0.5)
    )
    names = job["classnames"]
    return {
        "mAP": metrics.mAP,
        "CF1": metrics.CF1 if with_threshold else None,
        "OF1": metrics.OF1 if with_threshold else None,
        "per_class_ap": {
            name: None if np.isnan(ap) else float(ap)
            for name, ap in zip(names, metrics.per_class_ap, strict=True)
        },
    }
