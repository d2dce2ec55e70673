"""The judge that a configuration names: the world's own, or a detector of transformers."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from vltune.backbones.center_detector import load_compact_judge
from vltune.backbones.checkpoint import BackboneConfig, BackboneError
from vltune.backbones.clip import load_clip
from vltune.backbones.colour_naming import ClipColour, NearestColour
from vltune.backbones.object_detector import load_detector_judge
from vltune.config import to_mapping
from vltune.files import sha256_file, sha256_json
from vltune.geneval import GenevalRules, Judge


@dataclass(frozen=True)
class JudgeConfig:
    """Which judge looks at generated pictures.

    Attributes:
        weights: Folder of a compact judge; or folder or hub id of a detector.
        kind: `compact` (drawn scenes) or `detector` (photographs).
        colours: How a detector's boxes get a colour: the nearest name, or a zero-shot CLIP.
        clip: That CLIP.
        rename: The detector's class -> the prompts' name of it.
        rules: Thresholds of a detector; None: GenEval's. A compact judge brings its own.
    """

    weights: str
    kind: Literal["compact", "detector"] = "compact"
    colours: Literal["nearest", "clip"] = "nearest"
    clip: BackboneConfig | None = None
    rename: dict[str, str] = field(default_factory=dict)
    rules: GenevalRules | None = None

    def __post_init__(self) -> None:
        if not self.weights.strip():
            raise ValueError("judge.weights is empty; give a folder")
        if self.kind == "compact" and (self.rename or self.rules or self.colours != "nearest"):
            raise ValueError(
                "rename, rules and colours are for `kind: detector`; a compact judge has its own"
            )
        if (self.colours == "clip") != (self.clip is not None):
            raise ValueError("`colours: clip` and `clip: {model, weights}` need each other")


def judge_hash(config: JudgeConfig) -> str:
    """Hex SHA-256 of what a judge's verdicts follow from: its settings and its files.

    Where the files are makes no difference. A hub id stands for its files.
    """
    settings = to_mapping(config)
    settings["weights"] = _content(config.weights)
    if config.clip is not None:
        settings["clip"] = {"model": config.clip.model, "weights": _content(config.clip.weights)}
    return sha256_json(settings)


def _content(weights: str) -> Any:
    """Hash of each file of a folder that is no text for people; else the name as it stands."""
    path = Path(weights).expanduser()
    if path.is_file():
        return sha256_file(path)
    if not path.is_dir():
        return weights
    files = sorted(path.glob("*.json")) + sorted(path.glob("*.safetensors"))
    return {file.name: sha256_file(file) for file in files if file.name != "card.json"}


def load_judge(config: JudgeConfig, device: torch.device | str = "cpu") -> Judge:
    """Load a judge.

    Raises:
        BackboneError: A file is missing, damaged or of another kind, or `rename` is wrong.
    """
    if config.kind == "compact":
        folder = Path(config.weights).expanduser()
        if not folder.is_dir():
            raise BackboneError(
                f"judge.weights {config.weights!r}: no such folder (looked at {folder.resolve()}). "
                "Give the folder of a judge, or `kind: detector`."
            )
        return load_compact_judge(folder, device)
    namer = NearestColour() if config.clip is None else ClipColour(load_clip(config.clip, device))
    return load_detector_judge(
        config.weights, namer, rename=config.rename, rules=config.rules, device=device
    )
