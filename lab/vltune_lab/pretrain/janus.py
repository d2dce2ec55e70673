"""`vltune pretrain janus`: train janus-compact on scenes of the pre-training styles, in stages.

1. `tokenizer`: images -> codes -> images (`pixel_tokenizer`); `decoder` trains its second half on
   (`pixel_decoder`) and may come at any time after it.
2. `vision`: the vision tower, from clip-compact (`janus_vision`). Needs no other stage.
3. `language`: the language model draws prompts, code by code, and from `reading_from` on answers
   questions too. It takes what the other stages have learnt; both stay as they are.

Each stage has a folder of its own with checkpoint.pt and log.jsonl, and goes on where it was left.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, JanusConfig, JanusForConditionalGeneration

from vltune.backbones.janus import JanusBackbone, backbone_of
from vltune.backbones.janus_checkpoint import JanusParts, check_parts
from vltune.backbones.janus_pixels import set_norm_groups
from vltune.backbones.janus_settings import read_settings
from vltune.backbones.transformers_checkpoint import PREPROCESSOR
from vltune.config import ConfigError, read_mapping, to_mapping
from vltune.seed import derive_seed
from vltune_lab.pretrain.grounding import GroundingHead
from vltune_lab.pretrain.janus_packing import packed_losses
from vltune_lab.pretrain.janus_recipe import JanusRecipe
from vltune_lab.pretrain.loop import follow_schedule, run_to_end, take_step
from vltune_lab.pretrain.prompt_stream import PromptBatch, PromptMix, PromptStream
from vltune_lab.pretrain.question_stream import QuestionBatch, QuestionStream
from vltune_lab.pretrain.run_state import RunState, decayed_groups
from vltune_lab.pretrain.stream import make_loader
from vltune_lab.pretrain.word_alignment import align_words
from vltune_lab.scenes.library import PRETRAINING_STYLES, load_library
from vltune_lab.scenes.world import load_priors

FROZEN = ("model.vision_model.", "model.vqmodel.")


@dataclass
class JanusRun(RunState):
    """A run of the last stage; `modules` holds `model`.

    Attributes:
        backbone: The model in training as a backbone: its losses are those that sites will use.
    """

    backbone: JanusBackbone | None = None

    @property
    def model(self) -> JanusForConditionalGeneration:
        """The model in training."""
        return self.modules["model"]


def build_backbone(folder: Path, seed: int) -> JanusBackbone:
    """Build an untrained model from the files in `folder` (see `janus_folder`).

    Raises:
        ConfigError: A file is missing.
    """
    if not (folder / "tokenizer.json").is_file():
        raise ConfigError(
            f"{folder}/tokenizer.json: no such file. Run pretrain with the full clone."
        )
    torch.manual_seed(seed)
    # As JSON: YAML reads 1e-06 as a word.
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = JanusForConditionalGeneration(JanusConfig.from_dict(values))
    settings = read_settings(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    parts = JanusParts(model, tokenizer, read_mapping(folder / PREPROCESSOR), settings, str(folder))
    check_parts(parts)
    set_norm_groups(model.model.vqmodel, settings.norm_groups)
    model.eval()
    return backbone_of(folder.name, parts)


def take_words(backbone: JanusBackbone, other: Path) -> None:
    """Begin the word table as florence2-compact's, whose tokenizer is the same, in place."""
    from safetensors.torch import load_file

    table = backbone._janus.get_input_embeddings().weight
    known = load_file(other / "model.safetensors")["model.language_model.shared.weight"]
    with torch.no_grad():
        table[: len(known)] = known.float()
        # transformers keeps the padding row at zero, which a norm turns into nothing as well.
        table[backbone.tokenizer.pad_token_id] = 0.0


def take_stage(work: Path, names: dict[str, nn.Module]) -> int:
    """Load modules of another stage's checkpoint; return its steps.

    Raises:
        ConfigError: The stage has no checkpoint.
    """
    path = work / "checkpoint.pt"
    if not path.is_file():
        raise ConfigError(f"{path}: no such file. Run the stage {work.name!r} first.")
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, module in names.items():
        module.load_state_dict(state[name])
    return int(state["step"])


def start(recipe: JanusRecipe, backbone: JanusBackbone, work: Path, device: str) -> JanusRun:
    """Build the state, continuing from the checkpoint where there is one.

    Args:
        recipe: The recipe.
        backbone: Untrained, its words as they shall begin.
        work: Folder of all stages.
        device: cpu or cuda.
    """
    model: Any = backbone.model.to(device)
    trained = nn.ParameterList(
        [p for name, p in model.named_parameters() if not name.startswith(FROZEN)]
    )
    model.requires_grad_(False)
    trained.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        decayed_groups(trained, recipe.weight_decay),
        lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True,
    )  # fmt: skip
    state = JanusRun({"model": model}, optimizer, to_mapping(recipe), backbone=backbone)
    checkpoint = work / "language" / "checkpoint.pt"
    if checkpoint.exists():
        state.load(checkpoint)
    else:
        take_stage(work / "tokenizer", {"vq": model.model.vqmodel})
        # Codes begin as the codebook's entries: like codes look alike.
        codebook = model.model.vqmodel.quantize.embedding.weight
        model.model.generation_embeddings.weight.data.copy_(codebook)
    return state


def begin_reading(state: JanusRun, work: Path, num_classes: int, classnames: Any) -> None:
    """Take the vision tower, and let the words for what it sees point where its tokens point."""
    model: Any = state.model
    width = state.backbone.image_token_width
    head = GroundingHead(width, width, num_classes, len(load_priors().scenes))
    take_stage(
        work / "vision",
        {"vision_model": model.model.vision_model, "aligner": model.model.aligner, "head": head},
    )
    align_words(model.get_input_embeddings().weight, state.backbone.tokenizer, head, classnames)


def drawing_loss(state: JanusRun, batch: PromptBatch, seed: int) -> Tensor:
    """Nats per code of a batch."""
    backbone = state.backbone
    codes = backbone.encode_targets(normalise_pixels(batch.images))
    generator = torch.Generator().manual_seed(seed)
    return backbone.generation_loss(codes, batch.prompts, generator=generator).mean()


def reading_loss(state: JanusRun, batch: QuestionBatch) -> Tensor:
    """Nats per token of the answers of a batch; the aligner is trained, the tower is not."""
    inner = state.backbone._janus.model
    pixels = normalise_pixels(batch.images).to(state.backbone.device)
    with torch.no_grad():
        seen = inner.vision_model(pixels).last_hidden_state
    return packed_losses(state.backbone, inner.aligner(seen), batch.questions).mean()


def normalise_pixels(images: Tensor) -> Tensor:
    """Pixels uint8 -> float in [-1, 1], as the folder's preprocessing (mean and std 0.5)."""
    return images.float().div_(127.5).sub_(1.0)


def train_language(
    recipe: JanusRecipe,
    backbone: JanusBackbone,
    work: Path,
    *,
    device: str = "cpu",
    workers: int = 1,
) -> JanusRun:
    """Train to `recipe.steps`, checkpointing in `work`/language; called again, it continues."""
    (work / "language").mkdir(parents=True, exist_ok=True)
    library = load_library(styles=PRETRAINING_STYLES)
    state = start(recipe, backbone, work, device)
    size = backbone.image_size[0]
    mix = PromptMix(to_mapping(recipe.tags), recipe.first_steps, recipe.variety, recipe.plain)
    pictures = PromptStream(
        library, seed=recipe.seed, batch_size=recipe.drawing_batch, image_size=size, mix=mix
    )
    questions = QuestionStream(
        library, seed=recipe.seed, batch_size=recipe.reading_batch, image_size=size,
        questions=recipe.questions, texts=1, kinds=to_mapping(recipe.kinds),
    )  # fmt: skip
    pictures.first_step = state.step
    questions.first_step = max(state.step, recipe.reading_from)
    lines = _steps(
        state, make_loader(pictures, workers), make_loader(questions, workers), recipe, work,
        library.classnames,
    )  # fmt: skip
    run_to_end("pretrain janus language", state, lines, work / "language", recipe.checkpoint_every)
    return state


def _steps(
    state: JanusRun,
    pictures: Iterator[PromptBatch],
    questions: Iterator[QuestionBatch],
    recipe: JanusRecipe,
    work: Path,
    classnames: tuple[str, ...],
) -> Iterator[dict[str, float]]:
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    while state.step < recipe.steps:
        began = time.perf_counter()
        if state.step == recipe.reading_from:
            begin_reading(state, work, len(classnames), classnames)
        follow_schedule(state, recipe)
        drawing = drawing_loss(state, next(pictures), derive_seed(recipe.seed, "drop", state.step))
        loss, line = drawing, {"drawing": drawing.item()}
        if state.step >= recipe.reading_from:
            reading = reading_loss(state, next(questions))
            loss = loss + recipe.reading_weight * reading
            line["reading"] = reading.item()
        take_step(state, loss, parameters)
        seconds = time.perf_counter() - began
        state.seconds += seconds
        yield {"step": state.step, "loss": loss.item(), **line, "seconds": seconds}
