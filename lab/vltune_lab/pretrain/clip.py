"""`vltune pretrain clip`: train clip-compact on scenes of the pre-training styles."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from vltune.config import to_mapping
from vltune_lab.pretrain.loop import follow_schedule, run_to_end, step_line, take_step
from vltune_lab.pretrain.objectives import (
    class_phrases,
    colour_loss,
    contrastive_loss,
    grounded_loss,
    presence_loss,
    spread_loss,
)
from vltune_lab.pretrain.phrases import encode_phrases
from vltune_lab.pretrain.recipe import PretrainConfig
from vltune_lab.pretrain.state import PretrainState, start
from vltune_lab.pretrain.stream import SceneBatch, SceneStream, make_loader
from vltune_lab.pretrain.text_warmup import warm_up_text
from vltune_lab.scenes.captions import article
from vltune_lab.scenes.library import PRETRAINING_STYLES, Library, load_library


def normalise_pixels(images: Tensor) -> Tensor:
    """Pixels uint8 -> float in [-1, 1], as the model card's preprocessing (mean and std 0.5)."""
    return images.float().div_(127.5).sub_(1.0)


def batch_loss(
    state: PretrainState,
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
    lines = _steps(state, tokenizer, batches, library, config)
    run_to_end("pretrain clip", state, lines, work, config.checkpoint_every)
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
        follow_schedule(state, config)
        rng = np.random.Generator(np.random.PCG64([config.seed, 77, state.step]))
        with autocast:
            terms = batch_loss(state, tokenizer, next(batches), library.classnames, config, rng)
            loss = sum(weights[name] * value for name, value in terms.items())
        take_step(state, loss, parameters)
        with torch.no_grad():
            state.model.logit_scale.clamp_(0, np.log(100))
        figures = {"loss": loss.item(), **{name: value.item() for name, value in terms.items()}}
        yield step_line(state, began, config.batch_size, figures)
