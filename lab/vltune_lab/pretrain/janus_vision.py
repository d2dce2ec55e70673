"""Stage two of janus-compact: its vision tower, begun from clip-compact's.

Janus' tower is a plain vision transformer: the blocks of clip-compact fit into it, its stem of
convolutions does not. Two new blocks behind a linear patch embedding learn to give what the stem
gives (mean squared error against the stem's tokens and against the trunk's output), and linear
heads on the aligner's output say where things are (`grounding`).
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vltune.backbones.checkpoint import BackboneConfig
from vltune.backbones.clip import load_clip
from vltune.backbones.janus import JanusBackbone
from vltune.config import to_mapping
from vltune_lab.pretrain.grounding import GroundingHead
from vltune_lab.pretrain.janus_recipe import VisionRecipe
from vltune_lab.pretrain.loop import follow_schedule, run_to_end, step_line, take_step
from vltune_lab.pretrain.question_stream import Places, QuestionStream
from vltune_lab.pretrain.run_state import RunState, decayed_groups
from vltune_lab.pretrain.stream import make_loader
from vltune_lab.scenes.library import PRETRAINING_STYLES, load_library
from vltune_lab.scenes.world import load_priors

CELL = 2
"""Image tokens along a side of a cell of the grounding terms."""


def load_teacher(folder: Path) -> Any:
    """clip-compact's trunk, frozen."""
    clip = load_clip(BackboneConfig(folder.name, str(folder)))
    return clip.model.visual.trunk


def copy_blocks(trunk: Any, tower: Any) -> None:
    """Write the trunk's blocks and norm into the last blocks of Janus' tower, in place."""
    with torch.no_grad():
        for block, layer in zip(
            trunk.blocks, tower.encoder.layers[-len(trunk.blocks) :], strict=True
        ):
            attention = layer.self_attn
            for kind in ("weight", "bias"):
                parts = getattr(block.attn.qkv, kind).chunk(3)
                for name, part in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True):
                    getattr(getattr(attention, name), kind).copy_(part)
            for ours, theirs in (
                (attention.projection_layer, block.attn.proj),
                (layer.layer_norm1, block.norm1),
                (layer.layer_norm2, block.norm2),
                (layer.mlp.fc1, block.mlp.fc1),
                (layer.mlp.fc2, block.mlp.fc2),
            ):
                ours.load_state_dict(theirs.state_dict())
        tower.post_layernorm.load_state_dict(trunk.norm.state_dict())


def read_tower(tower: Any, pixels: Tensor, num_new: int) -> tuple[Tensor, Tensor]:
    """What the new blocks give, and the tower's output; both (B, M, D)."""
    hidden = tower.embeddings(pixels)
    first = hidden
    for number, layer in enumerate(tower.encoder.layers, start=1):
        hidden = layer(hidden, None)
        if number == num_new:
            first = hidden
    return first, tower.post_layernorm(hidden)


@torch.no_grad()
def read_teacher(trunk: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """What the stem gives with its positions, and the trunk's output; both (B, M, D)."""
    first = trunk.patch_embed(pixels) + trunk.pos_embed
    return first, trunk.norm(trunk.blocks(first))


def ground(head: GroundingHead, tokens: Tensor, places: Places) -> dict[str, Tensor]:
    """Grounding terms of image tokens (B, M, D): their mean is the pooled one, cells are means."""
    B, M, D = tokens.shape
    side = int(M**0.5)
    maps = tokens.transpose(1, 2).view(B, D, side, side)
    cells = F.avg_pool2d(maps, CELL).flatten(2).transpose(1, 2)
    return head(maps, torch.cat([tokens.mean(dim=1, keepdim=True), cells], dim=1), places)


def vision_modules(backbone: JanusBackbone, num_classes: int) -> dict[str, nn.Module]:
    """What stage two trains: tower, aligner and the grounding head."""
    inner = backbone._janus.model
    width = backbone.image_token_width
    head = GroundingHead(width, width, num_classes, len(load_priors().scenes))
    return {"vision_model": inner.vision_model, "aligner": inner.aligner, "head": head}


def train_vision(
    recipe: VisionRecipe,
    backbone: JanusBackbone,
    teacher: Path,
    work: Path,
    *,
    device: str = "cpu",
    workers: int = 1,
) -> RunState:
    """Train to `recipe.steps`, checkpointing in `work`; called again, it continues.

    Args:
        recipe: The recipe.
        backbone: Untrained.
        teacher: Folder of clip-compact.
        work: Of this stage.
        device: cpu or cuda.
        workers: Rendering processes.
    """
    work.mkdir(parents=True, exist_ok=True)
    library = load_library(styles=PRETRAINING_STYLES)
    trunk = load_teacher(teacher).to(device)
    modules = vision_modules(backbone, len(library.classnames))
    copy_blocks(trunk, modules["vision_model"])
    for module in modules.values():
        module.requires_grad_(True).to(device)
    groups = decayed_groups(nn.ModuleList(modules.values()), recipe.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)
    state = RunState(modules, optimizer, to_mapping(recipe))
    if (work / "checkpoint.pt").exists():
        state.load(work / "checkpoint.pt")
    stream = QuestionStream(
        library,
        seed=recipe.seed,
        batch_size=recipe.batch_size,
        image_size=backbone.image_size[0],
        questions=1,
        texts=1,
        kinds={"place": 1.0},
    )
    stream.first_step = state.step
    lines = _steps(state, make_loader(stream, workers), recipe, trunk, device)
    run_to_end("pretrain janus vision", state, lines, work, recipe.checkpoint_every)
    return state


def _steps(
    state: RunState, batches: Iterator[Any], recipe: VisionRecipe, trunk: Any, device: str
) -> Iterator[dict[str, float]]:
    weights = to_mapping(recipe.losses)
    tower: Any = state.modules["vision_model"]
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    num_new = len(tower.encoder.layers) - len(trunk.blocks)
    while state.step < recipe.steps:
        began = time.perf_counter()
        follow_schedule(state, recipe)
        batch = next(batches)
        pixels = batch.images.to(device).float().div_(127.5).sub_(1.0)
        first, last = read_tower(tower, pixels, num_new)
        wanted_first, wanted = read_teacher(trunk, pixels)
        terms = ground(state.modules["head"], state.modules["aligner"](last), batch.places)
        terms["stem"] = F.mse_loss(first, wanted_first) / wanted_first.var()
        terms["trunk"] = F.mse_loss(last, wanted) / wanted.var()
        loss = sum(weights[name] * value for name, value in terms.items())
        take_step(state, loss, parameters)
        figures = {"loss": loss.item(), **{name: value.item() for name, value in terms.items()}}
        yield step_line(state, began, recipe.batch_size, figures)
