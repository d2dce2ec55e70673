"""What pre-training trains and keeps: model, head, optimiser, and where the run stands."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from vltune.backbones.compact_vit import register_compact_towers
from vltune.config import ConfigError, read_mapping, to_mapping
from vltune.files import atomic_path
from vltune_lab.pretrain.objectives import Head
from vltune_lab.pretrain.recipe import EXTENDABLE, PretrainConfig


def build_model(folder: Path, seed: int) -> tuple[open_clip.CLIP, open_clip.SimpleTokenizer]:
    """Build an untrained model from `open_clip_config.json` in `folder`.

    Raises:
        ConfigError: The file is missing or holds no `model_cfg`.
    """
    register_compact_towers()
    source = folder / "open_clip_config.json"
    model_cfg = read_mapping(source).get("model_cfg")
    if not isinstance(model_cfg, dict):
        raise ConfigError(
            f"{source}: has no model_cfg. Give a folder with open_clip's configuration."
        )
    torch.manual_seed(seed)
    model = open_clip.CLIP(
        embed_dim=model_cfg["embed_dim"],
        vision_cfg=model_cfg["vision_cfg"],
        text_cfg=model_cfg["text_cfg"],
    )
    tokenizer = open_clip.SimpleTokenizer(context_length=model_cfg["text_cfg"]["context_length"])
    return model, tokenizer


@dataclass
class PretrainState:
    """All that a checkpoint holds.

    Attributes:
        recipe: The `PretrainConfig` as a mapping.
        step: Optimiser steps done.
        seconds: Spent in them.
        schedule: (first step, `steps` of the cosine from there on); one entry in a run of one go.
    """

    model: open_clip.CLIP
    head: Head
    optimizer: torch.optim.Optimizer
    trunk: Callable[[Tensor], Tensor]
    recipe: dict[str, Any]
    step: int = 0
    seconds: float = 0.0
    schedule: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.schedule = self.schedule or [[0, self.recipe["steps"]]]

    def save(self, path: Path) -> None:
        """Write atomically."""
        with atomic_path(path) as temporary:
            torch.save(
                {
                    "model": self.model.state_dict(),
                    "head": self.head.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "recipe": self.recipe,
                    "schedule": self.schedule,
                    "step": self.step,
                    "seconds": self.seconds,
                },
                temporary,
            )

    def load(self, path: Path) -> None:
        """Continue from `path`.

        Raises:
            ConfigError: It was begun under another recipe.
        """
        state = torch.load(path, map_location="cpu", weights_only=True)
        begun = state.get("recipe", {})
        changed = sorted(
            key
            for key in self.recipe
            if key not in EXTENDABLE and begun.get(key) != self.recipe[key]
        )
        if changed:
            key = changed[0]
            raise ConfigError(
                f"{path}: was begun with another recipe: {', '.join(changed)} differ ({key} was "
                f"{begun.get(key)}, is {self.recipe[key]}). Give the same values, or another --out."
            )
        self.schedule = state["schedule"]
        if self.schedule[-1][1] != self.recipe["steps"]:
            self.schedule.append([state["step"], self.recipe["steps"]])
        self.model.load_state_dict(state["model"])
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]


def start(
    config: PretrainConfig,
    model_folder: Path,
    checkpoint: Path,
    device: str,
    *,
    compile_trunk: bool = True,
) -> tuple[PretrainState, open_clip.SimpleTokenizer]:
    """Build the state, continuing from the checkpoint where there is one."""
    model, tokenizer = build_model(model_folder, config.seed)
    head = Head()
    modules = nn.ModuleList([model, head]).to(device)
    matrices = [p for p in modules.parameters() if p.ndim >= 2]
    others = [p for p in modules.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    # Fused: the token table alone is six million values, ten times slower one operation at a time.
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)
    # Compiled, the trunk's step is two to three times faster on CPU; the weights are the model's.
    trunk = model.visual.trunk.forward_features
    state = PretrainState(
        model,
        head,
        optimizer,
        torch.compile(trunk) if compile_trunk else trunk,
        recipe=to_mapping(config),
    )
    if checkpoint.exists():
        state.load(checkpoint)
    return state, tokenizer
