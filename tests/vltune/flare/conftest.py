"""A federation of tiny linear sites: numbers in files, no CLIP, seconds."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

# The sites' method lives beside the tests; FLARE's processes find it through PYTHONPATH.
sys.path.append(str(Path(__file__).parent))

from linear_site import make_job, write_site

torch.set_num_threads(1)

Sites = Callable[..., Path]


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


@pytest.fixture
def job() -> Callable[..., dict[str, Any]]:
    """Make a job of the linear method."""
    return make_job
