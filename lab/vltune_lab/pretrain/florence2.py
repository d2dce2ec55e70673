"""`vltune pretrain florence2`: train florence2-compact on scenes of the pre-training styles."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, Florence2Config, Florence2ForConditionalGeneration

from vltune.backbones.florence2 import Florence2Backbone, backbone_of
from vltune.backbones.florence2_checkpoint import PREPROCESSOR, Florence2Parts
from vltune.config import ConfigError, read_mapping, to_mapping
from vltune_lab.pretrain.attention_start import aim_attention
from vltune_lab.pretrain.florence2_recipe import Florence2Recipe
from vltune_lab.pretrain.grounding import GroundingHead, read_image
from vltune_lab.pretrain.loop import run_to_end, step_line, take_step
from vltune_lab.pretrain.question_stream import QuestionBatch, QuestionStream
from vltune_lab.pretrain.recipe import learning_rate_at
from vltune_lab.pretrain.run_state import RunState, decayed_groups
from vltune_lab.pretrain.stream import make_loader
from vltune_lab.pretrain.word_alignment import align_words
from vltune_lab.scenes.library import PRETRAINING_STYLES, Library, load_library
from vltune_lab.scenes.world import load_priors

VISION = ("model.vision_tower.", "model.multi_modal_projector.")


@dataclass
class Florence2Run(RunState):
    """A run of florence2-compact; `modules` holds `model` and `head`.

    Attributes:
        backbone: The model in training as a backbone: its losses are those that sites will use.
    """

    backbone: Florence2Backbone | None = None

    @property
    def model(self) -> Florence2ForConditionalGeneration:
        """The model in training."""
        return self.modules["model"]

    @property
    def head(self) -> GroundingHead:
        """The grounding head."""
        return self.modules["head"]


def build_backbone(folder: Path, seed: int) -> Florence2Backbone:
    """Build an untrained model from config.json and the tokenizer in `folder`.

    Raises:
        ConfigError: A file is missing.
    """
    settings = Florence2Config.from_dict(read_mapping(folder / "config.json"))
    if not (folder / "tokenizer.json").is_file():
        raise ConfigError(
            f"{folder}/tokenizer.json: no such file. Run pretrain with the full clone."
        )
    torch.manual_seed(seed)
    model = Florence2ForConditionalGeneration(settings)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    parts = Florence2Parts(model, tokenizer, read_mapping(folder / PREPROCESSOR), str(folder))
    return backbone_of(folder.name, parts, model)


def start(
    recipe: Florence2Recipe, folder: Path, checkpoint: Path, library: Library, device: str
) -> Florence2Run:
    """Build the state, continuing from the checkpoint where there is one."""
    backbone = build_backbone(folder, recipe.seed)
    model: Any = backbone.model.to(device)
    widths = model.config.vision_config.embed_dim
    head = GroundingHead(
        widths[-2], backbone.image_token_width, len(library.classnames), len(load_priors().scenes)
    ).to(device)
    vision = nn.ParameterList(
        [p for name, p in model.named_parameters() if name.startswith(VISION)]
        + list(head.parameters())
    )
    language = nn.ParameterList(
        [p for name, p in model.named_parameters() if not name.startswith(VISION)]
    )
    groups = [
        {**group, "is_language": part is language}
        for part in (vision, language)
        for group in decayed_groups(part, recipe.weight_decay)
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)
    state = Florence2Run(
        {"model": model, "head": head}, optimizer, to_mapping(recipe), backbone=backbone
    )
    if checkpoint.exists():
        state.load(checkpoint)
    return state


def normalise_pixels(images: Tensor) -> Tensor:
    """Pixels uint8 -> float in [-1, 1], as the folder's preprocessing (mean and std 0.5)."""
    return images.float().div_(127.5).sub_(1.0)


def batch_loss(
    state: Florence2Run, batch: QuestionBatch, *, with_language: bool
) -> dict[str, Tensor]:
    """All loss terms of one batch, unweighted."""
    backbone = state.backbone
    patches, tokens = read_image(state.model, normalise_pixels(batch.images.to(backbone.device)))
    terms = state.head(patches, tokens, batch.places)
    if with_language:
        for name, triples in (("questions", batch.questions), ("texts", batch.texts)):
            rows, prompts, answers = zip(*triples, strict=True)
            terms[name] = backbone.loss(tokens[list(rows)], prompts, answers).mean()
    return terms


def pretrain(
    recipe: Florence2Recipe,
    *,
    model_folder: Path,
    work: Path,
    device: str = "cpu",
    workers: int = 1,
) -> Florence2Run:
    """Train to `recipe.steps`, checkpointing in `work`; called again, it continues.

    Args:
        recipe: The recipe.
        model_folder: Holds config.json, preprocessor_config.json and the tokenizer.
        work: Holds checkpoint.pt and log.jsonl.
        device: cpu or cuda.
        workers: Rendering processes.
    """
    work.mkdir(parents=True, exist_ok=True)
    library = load_library(styles=PRETRAINING_STYLES)
    state = start(recipe, model_folder, work / "checkpoint.pt", library, device)
    stream = QuestionStream(
        library,
        seed=recipe.seed,
        batch_size=recipe.batch_size,
        image_size=state.backbone.image_size[0],
        questions=recipe.questions,
        texts=recipe.texts,
        kinds=to_mapping(recipe.kinds),
    )
    stream.first_step = state.step
    state.model.train()
    lines = _steps(state, make_loader(stream, workers), recipe, library.classnames)
    run_to_end("pretrain florence2", state, lines, work, recipe.checkpoint_every)
    state.model.eval()
    return state


def _steps(
    state: Florence2Run,
    batches: Iterator[QuestionBatch],
    recipe: Florence2Recipe,
    classnames: tuple[str, ...],
) -> Iterator[dict[str, float]]:
    weights = to_mapping(recipe.losses)
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    while state.step < recipe.steps:
        began = time.perf_counter()
        with_language = state.step >= recipe.grounding_steps
        if state.step == recipe.grounding_steps:
            _start_language(state, recipe.seed, classnames)
        _set_rates(state, recipe)
        terms = batch_loss(state, next(batches), with_language=with_language)
        loss = sum(weights[name] * value for name, value in terms.items())
        take_step(state, loss, parameters)
        figures = {"loss": loss.item(), **{name: value.item() for name, value in terms.items()}}
        yield step_line(state, began, recipe.batch_size, figures)


def _start_language(state: Florence2Run, seed: int, classnames: tuple[str, ...]) -> None:
    """Hand what the tower has learnt to the language model's words and first head."""
    tokenizer = state.backbone.tokenizer
    align_words(state.model.get_input_embeddings().weight, tokenizer, state.head, classnames)
    side = int((state.backbone.num_image_tokens - 1) ** 0.5)
    aim_attention(state.model, tokenizer, state.head, side=side, seed=seed)


def _set_rates(state: Florence2Run, recipe: Florence2Recipe) -> None:
    """One cosine for all; the language model warms up when its turn comes."""
    rate = learning_rate_at(state.step, recipe)
    risen = (state.step - recipe.grounding_steps + 1) / max(1, recipe.language_warmup_steps)
    for group in state.optimizer.param_groups:
        factor = recipe.language_rate * min(1.0, max(0.0, risen)) if group["is_language"] else 1.0
        group["lr"] = rate * factor
