"""A federation of tiny linear sites: numbers in files, no CLIP, seconds."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

# The sites' method lives beside the tests; FLARE's processes find it through PYTHONPATH.
sys.path.append(str(Path(__file__).parent))

torch.set_num_threads(1)

Sites = Callable[..., Path]
NUM_FEATURES, NUM_CLASSES = 5, 3


@pytest.fixture
def sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sites:
    """Write site folders with data and vltune_site.yaml and set VLTUNE_SITE_CONFIG."""

    def make(names: tuple[str, ...] = ("site-1", "site-2"), num_examples: int = 17) -> Path:
        root = tmp_path / "data of sites"
        for index, name in enumerate(names):
            write_site(root / name, name, num_examples + 6 * index, seed=index)
        monkeypatch.setenv("VLTUNE_SITE_CONFIG", str(root / "{site}" / "vltune_site.yaml"))
        return root

    return make


def write_site(folder: Path, name: str, num_examples: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(NUM_FEATURES, NUM_CLASSES, generator=torch.Generator().manual_seed(99))
    folder.mkdir(parents=True)
    for split, count in (("train", num_examples), ("validation", 41)):
        x = torch.randn(count, NUM_FEATURES, generator=generator)
        y = (x @ truth > 0).long()
        (folder / f"{split}.json").write_text(json.dumps({"x": x.tolist(), "y": y.tolist()}))
    content = {
        "site": name,
        "threads": 1,
        "train": {"images": "images", "annotations": "train.json"},
        "validation": {"images": "images", "annotations": "validation.json"},
    }
    (folder / "vltune_site.yaml").write_text(yaml.safe_dump(content))


def make_job(**changes: Any) -> dict[str, Any]:
    """A job of the linear method; `federation` keys are merged."""
    federation = {
        "rounds": 2,
        "min_sites": 2,
        "round_timeout_seconds": 60.0,
        "prepare_timeout_seconds": 60.0,
        "tensorboard": False,
    }
    federation |= changes.pop("federation", {})
    return {
        "name": "linear",
        "method": "linear",
        "seed": 34,
        "participant": "linear_site.build_participant",
        "learning_rate": 0.5,
        "federation": federation,
        **changes,
    }


@pytest.fixture
def job() -> Callable[..., dict[str, Any]]:
    """Make a job of the linear method."""
    return make_job
