"""`vltune pretrain clip`: train clip-compact on scenes of the pre-training styles."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn

from vltune.backbones.compact_vit import register_compact_towers
from vltune.config import ConfigError, read_mapping, to_mapping
from vltune.files import atomic_path
from vltune_lab.pretrain.objectives import (
    Head,
    Objective,
    class_phrases,
    colour_loss,
    contrastive_loss,
    grounded_loss,
    presence_loss,
    spread_loss,
)
from vltune_lab.pretrain.phrases import encode_phrases
from vltune_lab.pretrain.stream import SceneBatch, SceneStream, make_loader
from vltune_lab.pretrain.text_warmup import warm_up_text
from vltune_lab.scenes.captions import article
from vltune_lab.scenes.library import PRETRAINING_STYLES, Library, load_library

EXTENDABLE = frozenset({"steps", "checkpoint_every"})
"""What a continued run may change: a longer schedule is recorded, all else is another recipe."""


@dataclass(frozen=True)
class PretrainConfig:
    """Recipe of clip-compact.

    Attributes:
        seed: Of weights and data.
        steps: Optimiser steps.
        batch_size: Images a step.
        learning_rate: Peak of AdamW; linear warm-up, then cosine to zero.
        text_warmup_steps: Steps of the text tower alone, before any image.
        text_warmup_rate: Their learning rate.
        max_colour_regions: Objects used in the colour term of a step.
        objective: Weights of the loss terms.
    """

    seed: int = 2026
    steps: int = 7000
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_steps: int = 300
    text_warmup_steps: int = 200
    text_warmup_rate: float = 1e-3
    max_colour_regions: int = 48
    objective: Objective = field(default_factory=Objective)
    checkpoint_every: int = 250

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 2 or not 0 < self.learning_rate < 1:
            raise ConfigError("pretrain: needs steps >= 1, batch_size >= 2, 0 < learning_rate < 1")


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


def normalise_pixels(images: Tensor) -> Tensor:
    """Pixels uint8 -> float in [-1, 1], as the model card's preprocessing (mean and std 0.5)."""
    return images.float().div_(127.5).sub_(1.0)


def batch_loss(
    state: "PretrainState",
    tokenizer: open_clip.SimpleTokenizer,
    batch: SceneBatch,
    classnames: tuple[str, ...],
    config: PretrainConfig,
    rng: np.random.Generator,
) -> dict[str, Tensor]:
    """All loss terms of one batch, unweighted."""
    model, head = state.model, state.head
    device = model.text_projection.device
    colours = batch.colours[: config.max_colour_regions]
    colour_texts = [article(f"{colour} {classnames[index]}") for _, index, colour in colours]
    distinct = {text: str(number) for number, text in enumerate(dict.fromkeys(colour_texts))}
    colours = [
        (row, index, distinct[text])
        for (row, index, _), text in zip(colours, colour_texts, strict=True)
    ]
    # Three passes: captions are three times as long as phrases, all texts of a pass are padded.
    phrases = encode_phrases(model, tokenizer, class_phrases(classnames, rng))
    captions = encode_phrases(model, tokenizer, batch.captions)
    colour_features = encode_phrases(model, tokenizer, list(distinct))
    tokens = model.visual.head(state.trunk(normalise_pixels(batch.images.to(device))))
    patch_features = F.normalize(tokens, dim=-1)
    similarity = patch_features @ phrases.T
    patch_labels = batch.patch_labels.to(device)
    # One scale for all softmax terms, so that the checkpoint's logit_scale fits its patches too.
    scale = model.logit_scale.exp()
    return {
        "contrastive": contrastive_loss(F.normalize(tokens.mean(dim=1), dim=-1), captions, scale),
        "grounded": grounded_loss(similarity, patch_labels, scale),
        "presence": presence_loss(similarity, patch_labels, batch.labels.to(device), head),
        "spread": spread_loss(phrases),
        "colours": colour_loss(patch_features, patch_labels, colours, colour_features, scale),
    }


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
        for group in self.optimizer.param_groups:
            group["fused"] = True  # a checkpoint brings its own setting along
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


def learning_rate_at(step: int, config: PretrainConfig) -> float:
    """Linear warm-up, then half a cosine to zero."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + float(np.cos(np.pi * min(1.0, progress))))


def pretrain(
    config: PretrainConfig,
    *,
    model_folder: Path,
    work: Path,
    device: str = "cpu",
    workers: int = 1,
    compile_trunk: bool = True,
) -> PretrainState:
    """Train to `config.steps`, checkpointing in `work`; called again, it continues.

    Args:
        config: The recipe.
        model_folder: Holds open_clip_config.json.
        work: Holds checkpoint.pt and log.jsonl.
        device: cpu or cuda.
        workers: Rendering processes.
        compile_trunk: Pays after some hundred steps; the same up to rounding.
    """
    work.mkdir(parents=True, exist_ok=True)
    library = load_library(styles=PRETRAINING_STYLES)
    checkpoint = work / "checkpoint.pt"
    state, tokenizer = start(config, model_folder, checkpoint, device, compile_trunk=compile_trunk)
    if state.step == 0:
        warm_up_text(
            state.model,
            tokenizer,
            library.classnames,
            steps=config.text_warmup_steps,
            learning_rate=config.text_warmup_rate,
            weight_decay=config.weight_decay,
            seed=config.seed,
        )
    stream = SceneStream(
        library,
        seed=config.seed,
        batch_size=config.batch_size,
        image_size=state.model.visual.image_size[0],
        patch=8,
        first_step=state.step,
    )
    batches = make_loader(stream, workers)
    state.model.train()
    columns = (
        TextColumn("pretrain clip"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, refresh_per_second=1) as progress:
        task = progress.add_task("", total=config.steps, completed=state.step, loss="")
        for line in _steps(state, tokenizer, batches, library, config):
            progress.update(task, completed=state.step, loss=f"loss {line['loss']:.3f}")
            if state.step % 50 == 0:
                with (work / "log.jsonl").open("a") as log:
                    log.write(json.dumps(line) + "\n")
            if state.step % config.checkpoint_every == 0 or state.step == config.steps:
                state.save(checkpoint)
    (work / "recipe.json").write_text(json.dumps(to_mapping(config), indent=2))
    return state


def _steps(
    state: PretrainState,
    tokenizer: open_clip.SimpleTokenizer,
    batches: Iterator[SceneBatch],
    library: Library,
    config: PretrainConfig,
) -> Iterator[dict[str, float]]:
    weights = to_mapping(config.objective)
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    autocast = torch.autocast("cuda", torch.bfloat16, enabled=parameters[0].is_cuda)
    while state.step < config.steps:
        began = time.perf_counter()
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate_at(state.step, config)
        rng = np.random.Generator(np.random.PCG64([config.seed, 77, state.step]))
        with autocast:
            terms = batch_loss(state, tokenizer, next(batches), library.classnames, config, rng)
            loss = sum(weights[name] * value for name, value in terms.items())
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        state.optimizer.step()
        with torch.no_grad():
            state.model.logit_scale.clamp_(0, np.log(100))
        state.step += 1
        state.seconds += time.perf_counter() - began
        yield {
            "step": state.step,
            "loss": loss.item(),
            **{name: value.item() for name, value in terms.items()},
            "images_per_second": config.batch_size / (time.perf_counter() - began),
        }
