"""A hand-made run: two rounds, three sites, five classes, a rejected update, a site left out."""

import json
from pathlib import Path
from typing import Any

import pytest

CLASSES = ("cat", "dog", "traffic light", "kite", "cup")
SITES = ("site-1", "site-2", "site-3")


def reading(aps: list[float | None]) -> dict[str, Any]:
    known = [ap for ap in aps if ap is not None]
    return {
        "mAP": sum(known) / len(known),
        "CF1": 0.41,
        "OF1": 0.43,
        "per_class_ap": dict(zip(CLASSES, aps, strict=True)),
    }


def per_round() -> list[dict[str, Any]]:
    rows = [(0, 0.30, 0.25, None), (1, 0.41, 0.33, 3.2), (2, 0.52, 0.47, 2.1)]
    return [
        {
            "round": number,
            "mAP": mAP,
            "worst_site_mAP": worst,
            "loss": loss,
            "seconds": 4.0 + number,
            "overhead_seconds": 0.31,
            "bytes_up": 3 * 40_000,
            "bytes_down": 3 * 41_000,
            "rejected": int(number == 2),
        }
        for number, mAP, worst, loss in rows
    ]


@pytest.fixture
def summary() -> dict[str, Any]:
    federated = reading([0.9, 0.5, 0.7, None, 0.3])
    return {
        "schema_version": 1,
        "job": "fedmpt-demo",
        "method": "FedMPT",
        "sites": 3,
        "rounds": 2,
        "seed": 7,
        "zero_shot_mAP": 0.45,
        "global_mAP": federated["mAP"],
        "worst_site_mAP": 0.47,
        "bytes_up_per_site_per_round": 40_000,
        "wall_seconds": 83.5,
        "config": {"model": {"rank": 32, "transport": {"epsilon": 0.2}}, "classnames": [*CLASSES]},
        "seeds": {"run": 7, "world": 7},
        "versions": {"vltune": "0.1.0", "torch": "2.15.0"},
        "per_round": per_round(),
        "per_site": [
            {
                "site": site,
                "num_examples": 300,
                "zero_shot_mAP": 0.40,
                "mAP": mAP,
                "CF1": 0.5,
                "OF1": 0.6,
                "num_validation": 200,
            }
            for site, mAP in zip(SITES, (0.55, 0.47, 0.61), strict=True)
        ],
        "thresholds": {"CF1": 0.5, "OF1": 0.5},
        "bytes_per_site_per_round": [
            {"site": site, "round": number, "bytes_up": 40_000, "bytes_down": 41_000}
            for number in (1, 2)
            for site in SITES
        ],
        "wall_seconds_by_phase": {"prepare": 12.5, "train": 60.0, "evaluate": 11.0},
        "rejected_updates": [
            {"round": 2, "site": "site-2", "reason": "site-2: head_bias holds NaN or infinity"}
        ],
        "robust_decisions": [
            {"round": 1, "site": "site-3", "action": "left_out", "reason": "Krum score 7"},
            {"round": 2, "site": "site-1", "action": "clipped", "reason": "norm 5 cut to 2"},
        ],
        "measured_on": "global_test",
        "global_test": {
            "num_examples": 1000,
            "federated": federated,
            "zero_shot_pooled": reading([0.5, 0.4, 0.6, None, 0.3]),
            "zero_shot_patch": reading([0.4, 0.4, 0.5, None, 0.3]),
            "before_training": reading([0.5, 0.4, 0.5, None, 0.3]),
        },
        "artefacts": {"adapter": "global_adapter.safetensors", "metrics": "metrics.jsonl"},
        "left_out_sites": {"site-4": "differs from the majority: class_list"},
        "environment": "sim",
        "started": "2026-05-04T10:11:12+00:00",
        "hardware": "2 CPU cores",
    }


@pytest.fixture
def run_folder(tmp_path: Path, summary: dict[str, Any]) -> Path:
    folder = tmp_path / "runs" / "demo"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder
