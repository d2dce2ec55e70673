"""Weights that benchmark `fedumm-dataflow` starts from: a small BLIP for questions.

The published checkpoints cannot be fetched everywhere. This one is made by the benchmark itself:
transformers' architecture at 64 pixels, all of it trained for a minute or two on questions about
scenes in the styles of pre-training, so that a federation begins from a model that knows the form
of an answer and has seen scenes, but not those of the sites. It is a start for a comparison, not a
model to use.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vltune.backbones.blip_vqa import BlipVqaBackbone, backbone_of
from vltune.backbones.blip_vqa_checkpoint import load_parts
from vltune.backbones.checkpoint import BackboneConfig
from vltune.config import load_config
from vltune.data.image_sources import read_source
from vltune.data.image_text import ImageTextSamples
from vltune.data.multilabel import batches
from vltune.data.vqa import load_vqa
from vltune.files import sha256_json
from vltune.seed import torch_generator
from vltune.site_data import VqaFiles
from vltune_lab.pretrain.recipe import learning_rate_at
from vltune_lab.pretrain.run_state import decayed_groups
from vltune_lab.scenes.library import PACKAGED_ASSETS, PRETRAINING_STYLES
from vltune_lab.scenes.make_unified import make_unified_world
from vltune_lab.scenes.unified_world import UNIFIED_WORLD, Pool, UnifiedWorld
from vltune_lab.scenes.unified_writer import PATTERN

TOKENIZER = PACKAGED_ASSETS / "florence2-compact" / "tokenizer.json"
NAME = "blip-vqa-start"
START_TOKEN = "[DEC]"
LOG = "log.txt"


@dataclass(frozen=True)
class StartRecipe:
    """How the weights are made.

    Attributes:
        seed: Of weights, scenes and order.
        images: Scenes, with up to three questions each.
        epochs: Passes over their questions.
        learning_rate: Peak of AdamW; linear warm-up, then cosine to zero.
        width: Of all towers.
        vision_layers: Of the vision tower, patches of 8 pixels.
        text_layers: Of each text tower.
    """

    seed: int = 2026
    images: int = 2500
    epochs: int = 2
    batch_size: int = 32
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    width: int = 96
    vision_layers: int = 3
    text_layers: int = 2


QUICK = StartRecipe(images=16, epochs=1, batch_size=16, width=32, vision_layers=1, text_layers=1)


@dataclass(frozen=True)
class _Schedule:
    """`pretrain.recipe.Schedule` of so many steps."""

    steps: int
    warmup_steps: int
    learning_rate: float


def make_start(folder: Path, recipe: StartRecipe) -> Path:
    """Make the weights, or find those that an earlier call with this recipe made.

    Args:
        folder: Where folders of weights are.
        recipe: How; another recipe has another folder.

    Returns:
        A folder that `load_blip_vqa` loads.
    """
    identity = sha256_json(vars(recipe))[:12]
    place = folder / f"{NAME}-{identity}"
    if not place.is_dir():
        fresh = folder / f"{NAME}-{identity}.unfinished"
        shutil.rmtree(fresh, ignore_errors=True)
        write_untrained(fresh, recipe)
        _train(fresh, _questions(folder / f"start-world-{identity}", recipe), recipe)
        fresh.rename(place)
    return place


def write_untrained(folder: Path, recipe: StartRecipe) -> None:
    """Write random weights, tokenizer and preprocessing as transformers does."""
    from transformers import BlipConfig, BlipForQuestionAnswering, BlipImageProcessor

    tokenizer = _tokenizer()
    sizes = {
        "hidden_size": recipe.width,
        "intermediate_size": 4 * recipe.width,
        "num_attention_heads": 4,
    }
    side = load_config(UnifiedWorld, UNIFIED_WORLD).image_size
    config = BlipConfig(
        vision_config={
            **sizes, "num_hidden_layers": recipe.vision_layers, "image_size": side, "patch_size": 8,
            "initializer_range": 0.02,
        },
        text_config={
            **sizes, "num_hidden_layers": recipe.text_layers, "vocab_size": len(tokenizer),
            "encoder_hidden_size": recipe.width, "max_position_embeddings": 48,
            "bos_token_id": tokenizer.convert_tokens_to_ids(START_TOKEN),
            "sep_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id, "is_decoder": True,
        },
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = BlipForQuestionAnswering(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    BlipImageProcessor(size={"height": side, "width": side}).save_pretrained(folder)


def _tokenizer() -> Any:
    """florence2-compact's, which frames a text by start and end, and the decoder's start."""
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer.from_file(str(TOKENIZER))
    inner.add_special_tokens([AddedToken(START_TOKEN, special=True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"dec_token": START_TOKEN},
        padding_side="right",
    )


def _questions(folder: Path, recipe: StartRecipe) -> ImageTextSamples:
    """Questions about scenes in the styles of pre-training, which no site has."""
    world = replace(
        load_config(UnifiedWorld, UNIFIED_WORLD),
        seed=recipe.seed,
        sites=1,
        tasks=("vqa",),
        partition="iid",
        styles=PRETRAINING_STYLES,
        pool=Pool(recipe.images, 4, 4),
        global_test=8,
        global_prompts=1,
    )
    make_unified_world(world, folder)
    part = folder / "site-1" / "train"
    return load_vqa(
        VqaFiles(part / "questions.json", part / "annotations.json", part / "images", PATTERN)
    )


def _train(folder: Path, samples: ImageTextSamples, recipe: StartRecipe) -> None:
    """Train all weights of `folder`, in place."""
    parts = load_parts(BackboneConfig("blip-vqa-start", str(folder)))
    model = parts.model.train()
    backbone = backbone_of(NAME, parts, model)
    pixels = torch.stack([backbone.preprocess(read_source(image)) for image in samples.images])
    parameters = list(model.parameters())
    groups = decayed_groups(model, 0.05)
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)
    steps = recipe.epochs * -(-len(samples.records) // recipe.batch_size)
    schedule = _Schedule(steps, recipe.warmup_steps, recipe.learning_rate)
    with (folder / LOG).open("w") as log:
        for step, indices in enumerate(_order(len(samples.records), recipe)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step, schedule)
            loss = _loss(backbone, model, pixels, samples, indices)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            if step % 50 == 0 or step == steps - 1:
                log.write(f"{step} {loss.item():.4f}\n")
                log.flush()
    model.eval().save_pretrained(folder)


def _order(count: int, recipe: StartRecipe) -> Iterator[Tensor]:
    generator = torch_generator(recipe.seed)
    for _ in range(recipe.epochs):
        yield from batches(count, recipe.batch_size, generator)


def _loss(
    backbone: BlipVqaBackbone,
    model: Any,
    pixels: Tensor,
    samples: ImageTextSamples,
    indices: Tensor,
) -> Tensor:
    """Mean loss of some questions; the vision tower learns too."""
    chosen = [samples.records[index] for index in indices.tolist()]
    images = pixels[[record.image for record in chosen]]
    tokens = model.vision_model(pixel_values=images).last_hidden_state
    return backbone.loss(
        tokens, [record.prompt for record in chosen], [record.answers[0] for record in chosen]
    ).mean()
