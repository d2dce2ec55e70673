"""The losses of blip3o-compact's three stages, each by the backbone that sites will use."""

import math

import torch
from torch import Tensor

from vltune.backbones.blip3o import Blip3oBackbone
from vltune_lab.pretrain.florence2 import normalise_pixels
from vltune_lab.pretrain.prompt_stream import PromptBatch
from vltune_lab.pretrain.question_stream import QuestionBatch

CAPTION_WEIGHT = 0.5
"""Of a stage's captions beside its questions."""


def decoder_loss(backbone: Blip3oBackbone, images: Tensor) -> dict[str, Tensor]:
    """Absolute plus squared error of decoded pixels in [0, 1], and the decibels reached.

    Args:
        backbone: Its decoder is trained.
        images: (B, 3, H, W), uint8.
    """
    images = images.to(backbone.device)
    targets = backbone.encode_targets(normalise_pixels(images))
    decoder = backbone.model.feature_decoder
    if decoder is None:
        raise ValueError(f"{backbone.name} has no decoder to train")
    error = decoder(targets) - images.float() / 255
    squared = error.square().mean()
    return {
        "loss": error.abs().mean() + squared,
        "decibels": -10 / math.log(10) * squared.detach().log(),
    }


def understanding_loss(backbone: Blip3oBackbone, batch: QuestionBatch) -> dict[str, Tensor]:
    """Questions, and captions at half their weight; nats per token."""
    tokens = backbone.encode_images(normalise_pixels(batch.images.to(backbone.device)))
    terms = {}
    for name, triples in (("questions", batch.questions), ("texts", batch.texts)):
        rows, prompts, answers = zip(*triples, strict=True)
        terms[name] = backbone.loss(tokens[list(rows)], prompts, answers).mean()
    return {"loss": terms["questions"] + CAPTION_WEIGHT * terms["texts"], **terms}


def drawing_loss(
    backbone: Blip3oBackbone,
    pictures: PromptBatch,
    questions: QuestionBatch | None,
    text_share: float,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """The flow's squared error, and understanding beside it where the language model is trained."""
    targets = backbone.encode_targets(normalise_pixels(pictures.images.to(backbone.device)))
    flow = backbone.generation_loss(targets, pictures.prompts, generator=generator).mean()
    terms = {"loss": flow, "flow": flow}
    if questions is not None:
        reading = understanding_loss(backbone, questions)["loss"]
        terms |= {"loss": flow + text_share * reading, "reading": reading}
    return terms
