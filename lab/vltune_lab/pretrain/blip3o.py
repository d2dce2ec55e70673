"""`vltune pretrain blip3o`: train blip3o-compact in three stages, each resumable.

1. decoder: frozen features to pixels. 2. understanding: projector and language model. 3. drawing:
image queries and flow transformer, and the language model beside them. The order is that of
BLIP3-o's sequential training (arXiv 2505.09568, section 4).
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vltune.backbones.blip3o import Blip3oBackbone, backbone_of
from vltune.backbones.blip3o_checkpoint import check_tokenizer, read_tokenizer
from vltune.backbones.blip3o_config import Blip3oSettings
from vltune.backbones.blip3o_model import Blip3oModel
from vltune.backbones.clip import BackboneConfig, load_clip
from vltune.backbones.patch_tower import standard_statistics
from vltune.config import to_mapping
from vltune.files import atomic_path
from vltune.seed import derive_seed, torch_generator
from vltune_lab.pretrain.blip3o_losses import decoder_loss, drawing_loss, understanding_loss
from vltune_lab.pretrain.blip3o_recipe import COMPACT, Blip3oRecipe, StageRecipe
from vltune_lab.pretrain.florence2 import normalise_pixels
from vltune_lab.pretrain.loop import follow_schedule, run_to_end, step_line, take_step
from vltune_lab.pretrain.prompt_stream import PromptMix, PromptStream
from vltune_lab.pretrain.question_stream import QuestionStream
from vltune_lab.pretrain.run_state import RunState, decayed_groups
from vltune_lab.pretrain.stream import StepStream, make_loader
from vltune_lab.scenes.library import PACKAGED_ASSETS, PRETRAINING_STYLES, Library, load_library

CLIP = PACKAGED_ASSETS / "clip-compact"
TOKENIZER = PACKAGED_ASSETS / "florence2-compact" / "tokenizer.json"
STATISTICS = "statistics.safetensors"
STAGES = ("decoder", "understanding", "drawing")
_PICTURES = ("statistics_images", "tags", "first_steps", "variety", "plain")
_QUESTIONS = ("questions", "captions", "kinds")
RELEVANT = {
    "decoder": ("seed", *_PICTURES, *_QUESTIONS),
    "understanding": ("seed", *_QUESTIONS),
    "drawing": ("seed", *_PICTURES, *_QUESTIONS, "text_share"),
}
"""What of the whole recipe a stage's checkpoint depends on."""
QUESTION_SHARE = 4
"""In stage 3 one image is asked about for so many that are drawn."""

Losses = Callable[[int], dict[str, Tensor]]
"""Step number -> terms; `loss` is minimised."""


@dataclass(frozen=True)
class Workshop:
    """What the stages share.

    Attributes:
        backbone: In training.
        recipe: All stages.
        library: Sprites of the pre-training styles.
        work: Holds a folder for each stage.
        workers: Rendering processes.
    """

    backbone: Blip3oBackbone
    recipe: Blip3oRecipe
    library: Library
    work: Path
    workers: int

    @property
    def image_size(self) -> int:
        """Pixels."""
        return self.backbone.image_size[0]

    def pictures(self, stage: str, batch_size: int) -> PromptStream:
        """GenEval-style prompts with true pictures of one stage; stages see different ones."""
        r = self.recipe
        return PromptStream(
            self.library,
            seed=derive_seed(r.seed, "", 0, stage),
            batch_size=batch_size,
            image_size=self.image_size,
            mix=PromptMix(to_mapping(r.tags), r.first_steps, r.variety, r.plain),
        )

    def questions(self, stage: str, batch_size: int) -> QuestionStream:
        """Scenes with questions and captions of one stage."""
        return QuestionStream(
            self.library,
            seed=derive_seed(self.recipe.seed, "", 1, stage),
            batch_size=batch_size,
            image_size=self.image_size,
            questions=self.recipe.questions,
            texts=min(self.recipe.captions, batch_size),
            kinds=to_mapping(self.recipe.kinds),
        )

    def images(self, stage: str, batch_size: int, first_step: int) -> Iterator[Tensor]:
        """Pictures of prompts and scenes, half and half, (B, 3, H, W), uint8."""
        half = batch_size // 2
        pictures = self.batches(self.pictures(stage, half), first_step)
        scenes = self.batches(self.questions(stage, batch_size - half), first_step)
        for drawn, scene in zip(pictures, scenes, strict=False):
            yield torch.cat([drawn.images, scene.images])

    def batches(self, stream: StepStream, first_step: int) -> Iterator[Any]:
        """Batches from a step on."""
        stream.first_step = first_step
        return make_loader(stream, self.workers)


def pretrain(
    recipe: Blip3oRecipe,
    *,
    work: Path,
    device: str = "cpu",
    workers: int = 1,
    settings: Blip3oSettings = COMPACT,
    stages: tuple[str, ...] = STAGES,
) -> tuple[Blip3oBackbone, dict[str, RunState]]:
    """Train, checkpointing in `work`; called again, it continues where it stopped.

    Args:
        recipe: The recipe.
        work: Holds statistics.safetensors and a folder with checkpoint and log for each stage.
        device: cpu or cuda.
        workers: Rendering processes.
        settings: Sizes; the tower must be clip-compact's trunk.
        stages: The first of `STAGES`, in order.

    Returns:
        The backbone, and what each stage's checkpoint holds.
    """
    if stages != STAGES[: len(stages)]:
        raise ValueError(f"stages are {STAGES} in this order, got {stages}")
    work.mkdir(parents=True, exist_ok=True)
    library = load_library(styles=PRETRAINING_STYLES)
    backbone = begin(settings, recipe.seed, device)
    shop = Workshop(backbone, recipe, library, work, workers)
    _set_statistics(shop)
    states = {stage: _run_stage(shop, stage) for stage in stages}
    return backbone, states


def begin(settings: Blip3oSettings, seed: int, device: str) -> Blip3oBackbone:
    """An untrained model around clip-compact's trunk, with florence2-compact's tokenizer."""
    torch.manual_seed(seed)
    model = Blip3oModel(settings)
    clip: Any = load_clip(BackboneConfig("clip-compact", str(CLIP))).model
    model.vision_tower.tower.load_state_dict(clip.visual.trunk.state_dict())
    model.eval().requires_grad_(False).to(device)
    tokenizer = read_tokenizer(TOKENIZER)
    check_tokenizer(tokenizer, settings, str(TOKENIZER))
    return backbone_of("blip3o-compact", model, tokenizer)


def _set_statistics(shop: Workshop) -> None:
    """Mean and deviation of the tower's features, measured once."""
    path, model = shop.work / STATISTICS, shop.backbone.model
    if not path.exists():
        images = shop.images("statistics", 64, 0)
        count = -(-shop.recipe.statistics_images // 64)
        device = shop.backbone.device
        features = [
            shop.backbone.encode_images(normalise_pixels(next(images).to(device))).cpu()
            for _ in range(count)
        ]
        mean, std = standard_statistics(torch.cat(features))
        with atomic_path(path) as temporary:
            save_file({"mean": mean, "std": std}, str(temporary))
    values = load_file(path)
    model.feature_mean.copy_(values["mean"])
    model.feature_std.copy_(values["std"])


def _run_stage(shop: Workshop, stage: str) -> RunState:
    """Train one stage to its end, or load it where it has ended."""
    recipe: StageRecipe = getattr(shop.recipe, stage)
    modules = _trained(shop.backbone.model, stage, shop.recipe)
    everything = nn.ModuleList(modules.values()).requires_grad_(True)
    optimizer = torch.optim.AdamW(
        decayed_groups(everything, recipe.weight_decay), lr=recipe.learning_rate, fused=True,
        betas=(0.9, 0.98),
    )  # fmt: skip
    whole = to_mapping(shop.recipe)
    kept = {key: whole[key] for key in RELEVANT[stage]} | to_mapping(recipe)
    state = RunState(modules, optimizer, kept)
    folder = shop.work / stage
    folder.mkdir(exist_ok=True)
    if (folder / "checkpoint.pt").exists():
        state.load(folder / "checkpoint.pt")
    if state.step < recipe.steps:
        lines = _steps(state, recipe, _losses(shop, stage, recipe, state.step))
        run_to_end(f"blip3o {stage}", state, lines, folder, shop.recipe.checkpoint_every)
    everything.requires_grad_(False)
    return state


def _trained(model: Blip3oModel, stage: str, recipe: Blip3oRecipe) -> dict[str, nn.Module]:
    """What a stage trains, by its name in the checkpoint."""
    reading: dict[str, nn.Module] = {
        "projector": model.projector,
        "language_model": model.language_model,
    }
    if stage == "understanding":
        return reading
    if stage == "decoder":
        if model.feature_decoder is None:
            raise ValueError("the settings have no decoder to train")
        return {"feature_decoder": model.feature_decoder}
    drawing: dict[str, nn.Module] = {
        "image_queries": nn.ParameterList([model.image_queries]),
        "flow_transformer": model.flow_transformer,
    }
    return drawing | (reading if recipe.text_share else {})


def _losses(shop: Workshop, stage: str, recipe: StageRecipe, first_step: int) -> Losses:
    """Terms of a stage's steps, drawn in order."""
    backbone, size = shop.backbone, recipe.batch_size
    if stage == "understanding":
        scenes = shop.batches(shop.questions(stage, size), first_step)
        return lambda step: understanding_loss(backbone, next(scenes))
    if stage == "decoder":
        images = shop.images(stage, size, first_step)
        return lambda step: decoder_loss(backbone, next(images))
    pictures = shop.batches(shop.pictures(stage, size), first_step)
    share, asked = shop.recipe.text_share, max(1, size // QUESTION_SHARE)
    beside = shop.batches(shop.questions(stage, asked), first_step) if share else None

    def draw(step: int) -> dict[str, Tensor]:
        generator = torch_generator(derive_seed(shop.recipe.seed, "", step, "flow"))
        questions = next(beside) if beside is not None else None
        return drawing_loss(backbone, next(pictures), questions, share, generator)

    return draw


def _steps(state: RunState, recipe: StageRecipe, losses: Losses) -> Iterator[dict[str, float]]:
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    while state.step < recipe.steps:
        began = time.perf_counter()
        follow_schedule(state, recipe)
        terms = losses(state.step)
        take_step(state, terms["loss"], parameters)
        figures = {name: value.item() for name, value in terms.items()}
        yield step_line(state, began, recipe.batch_size, figures)
