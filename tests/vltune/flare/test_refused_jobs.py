"""A class list that does not fit ends a run at the roll call, with every site's reason.

Controller, executor, builder and message formats are the real ones.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vltune.conditions import condition_cache_mapping
from vltune.flare.federation import FederationError
from vltune_lab.jobs.in_process import run_in_process

CLASSNAMES = ["cat", "wine glass", "dog"]
NAMES = ("site-1", "site-2")


@pytest.fixture
def fedmpt_job(sites: Any, job: Any, clip_folder: Callable[[], Path]) -> dict[str, Any]:
    """A FedMPT job for two sites."""
    sites(NAMES)
    made_by = {"method": "by hand", "date": "2026-01-01"}
    return job(
        participant="vltune.algorithms.fedmpt.build_participant",
        classnames=CLASSNAMES,
        conditions=condition_cache_mapping("three", CLASSNAMES, [("pose", "Posture.")], made_by),
        backbone={"model": "tiny", "weights": str(clip_folder())},
        model={"rank": 5, "gate_rank": 2, "condition_length": 2, "class_length": 2},
        training={"batch_size": 3, "local_epochs": 1, "learning_rate": 0.01},
    )


def test_a_cache_of_another_class_list_ends_the_run(
    tmp_path: Path, fedmpt_job: dict[str, Any]
) -> None:
    swapped = fedmpt_job | {"classnames": ["dog", "wine glass", "cat"]}
    with pytest.raises(FederationError, match="no site can take part: site-1: ") as raised:
        run_in_process(swapped, NAMES, tmp_path / "run")
    reason = "was made for another class list (the order differs): [0] job 'dog', cache 'cat'"
    assert str(raised.value).count(reason) == len(NAMES)


def test_data_without_a_class_of_the_cache_end_the_run(
    tmp_path: Path, fedmpt_job: dict[str, Any]
) -> None:
    """The sites know no dog, and do not say that they left it unlabelled."""
    for name in NAMES:
        for split in ("train", "validation"):
            content = {
                "images": [{"id": 1, "file_name": "1.jpg", "width": 40, "height": 24}],
                "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}],
                "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "wine glass"}],
            }
            path = tmp_path / "data of sites" / name / f"{split}.json"
            path.write_text(json.dumps(content))
            (path.parent / "images").mkdir(exist_ok=True)
    with pytest.raises(FederationError, match="no site can take part: site-1: ") as raised:
        run_in_process(fedmpt_job, NAMES, tmp_path / "run")
    reason = "1 of the job's classes are not among its 2 categories: <value>"
    assert str(raised.value).count(reason) == len(NAMES)
