"""Tiny random CLIP checkpoints, written as open_clip folders."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from vltune.backbones.clip import BackboneConfig, ClipBackbone, load_clip
from vltune.backbones.compact_vit import register_compact_towers

# Tests are budgeted on one core, and equal numbers need an equal number of threads.
torch.set_num_threads(1)

# D=11, W=20 (4 heads of 5), image 24x40 in patches of 8: 3 rows, 5 columns, M=15.
TINY_MODEL: dict[str, Any] = {
    "embed_dim": 11,
    "vision_cfg": {
        "image_size": [24, 40],
        "patch_size": 8,
        "width": 18,
        "head_width": 6,
        "layers": 2,
    },
    "text_cfg": {
        "context_length": 31,
        "vocab_size": 49408,
        "width": 20,
        "heads": 4,
        "layers": 3,
    },
}
TINY_PREPROCESS: dict[str, Any] = {
    "mean": [0.3, 0.4, 0.5],
    "std": [0.2, 0.3, 0.4],
    "resize_mode": "squash",
    "interpolation": "bilinear",
}

Folder = Callable[..., Path]


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    result = copy.deepcopy(base)
    for key, value in changes.items():
        result[key] = merged(result[key], value) if isinstance(value, dict) else value
    return result


def build_model(model_cfg: dict[str, Any]) -> torch.nn.Module:
    arguments = copy.deepcopy(model_cfg)
    custom = arguments.pop("custom_text", False)
    register_compact_towers()
    model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**arguments).eval()
    # open_clip starts biases at zero and norms at one: a path that forgot them would pass.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def clip_folder(tmp_path: Path) -> Folder:
    """Write a folder of a tiny model; keywords change its configuration."""

    def make(name: str = "tiny", preprocess: Any = None, **changes: Any) -> Path:
        torch.manual_seed(5)
        folder = tmp_path / name
        folder.mkdir()
        model_cfg = merged(TINY_MODEL, changes)
        state = {k: v.contiguous() for k, v in build_model(model_cfg).state_dict().items()}
        save_file(state, folder / "open_clip_model.safetensors")
        content = {"model_cfg": model_cfg, "preprocess_cfg": preprocess or TINY_PREPROCESS}
        (folder / "open_clip_config.json").write_text(json.dumps(content))
        return folder

    return make


@pytest.fixture
def tiny_clip(clip_folder: Folder) -> ClipBackbone:
    """A causal CLIP with D=11, W=20, M=15, 31 tokens."""
    return load_clip(BackboneConfig("tiny", str(clip_folder())))
