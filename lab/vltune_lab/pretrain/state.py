"""What pre-training trains and keeps: model, head, optimiser, and where the run stands."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import open_clip
import torch
from torch import Tensor, nn

from vltune.backbones.compact_vit import register_compact_towers
from vltune.config import ConfigError, read_mapping, to_mapping
from vltune_lab.pretrain.objectives import Head
from vltune_lab.pretrain.recipe import PretrainConfig
from vltune_lab.pretrain.run_state import RunState, decayed_groups


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
class PretrainState(RunState):
    """A run of clip-compact.

    Attributes:
        trunk: The image trunk's forward, compiled where that pays.
    """

    trunk: Callable[[Tensor], Tensor] = field(kw_only=True)

    @property
    def model(self) -> open_clip.CLIP:
        """The model in training."""
        return self.modules["model"]

    @property
    def head(self) -> Head:
        """Its learnt scales."""
        return self.modules["head"]


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
    groups = decayed_groups(modules, config.weight_decay)
    # Fused: the token table alone is six million values, ten times slower one operation at a time.
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)
    # Compiled, the trunk's step is two to three times faster on CPU; the weights are the model's.
    trunk = model.visual.trunk.forward_features
    state = PretrainState(
        {"model": model, "head": head},
        optimizer,
        to_mapping(config),
        trunk=torch.compile(trunk) if compile_trunk else trunk,
    )
    if checkpoint.exists():
        state.load(checkpoint)
    return state, tokenizer
