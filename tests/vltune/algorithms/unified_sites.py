"""Sites that answer, draw or do both, and a judge that knows dogs; written by tests."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from answer_files import write_lines
from safetensors.torch import save_file
from vqa_files import PATTERN, write_vqa

from vltune.backbones.center_detector import ARCHITECTURE, CenterDetector, DetectorConfig
from vltune.config import to_mapping

VQA = {"questions": "questions.json", "annotations": "annotations.json", "images": "images"}
CAPTIONS = {"files": ["captions.jsonl"]}
BOTH = {"vqa": VQA, "captions": CAPTIONS}
PROMPT = {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a dog"}


def write_site(root: Path, name: str, train: dict[str, Any], start: int = 0) -> Path:
    """Eight images with two questions and a caption each; two of them to measure on."""
    folder = root / name
    images = range(start, start + 8)
    write_vqa(folder, images)
    rows = [{"image": f"images/{PATTERN % n}", "caption": f"{n} dogs"} for n in images]
    write_lines(folder / "captions.jsonl", rows)
    write_lines(folder / "prompts.jsonl", [PROMPT])
    path = folder / "vltune_site.yaml"
    content = {
        "data": "unified",
        "train": train,
        "validation": {"share": 0.3, "prompts": "prompts.jsonl"},
        "test": {"prompts": "prompts.jsonl"},
        "threads": 1,
    }
    path.write_text(yaml.safe_dump(content))
    return path


def write_judge(folder: Path, classnames: tuple[str, ...] = ("dog",)) -> Path:
    """A detector with random weights for images of 16 pixels."""
    folder.mkdir()
    config = DetectorConfig(ARCHITECTURE, 16, (4, 5, 6, 7), classnames, ("red",))
    torch.manual_seed(1)
    state = CenterDetector(config).state_dict()
    save_file(
        {n: v.half() if v.is_floating_point() else v for n, v in state.items()},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps(to_mapping(config)))
    return folder
