"""How well a unified backbone answers, and draws, a split."""

from collections.abc import Sequence

import torch

from vltune.algorithms.answer_metrics import batch_starts, generate
from vltune.algorithms.encoded_drawings import EncodedDrawings
from vltune.algorithms.encoded_records import EncodedRecords
from vltune.backbones.unified import UnifiedBackbone
from vltune.backbones.vision_language import VisionLanguageBackbone
from vltune.geneval import Judge, score_images
from vltune.geneval_prompts import GenevalPrompt
from vltune.participant import ShouldStop, never
from vltune.seed import torch_generator
from vltune.vqa_metrics import mean_vqa_accuracy


def measure_understanding(
    backbone: VisionLanguageBackbone,
    split: EncodedRecords,
    *,
    batch_size: int,
    max_tokens: int,
    should_stop: ShouldStop = never,
) -> dict[str, float]:
    """`vqa_accuracy`: mean soft accuracy of generated answers after the official normalisation."""
    texts = generate(
        backbone, split, batch_size=batch_size, max_tokens=max_tokens, should_stop=should_stop
    )
    accepted = [record.answers for record in split.records]
    return {"vqa_accuracy": mean_vqa_accuracy(texts, accepted)}


@torch.inference_mode()
def measure_drawing_loss(
    backbone: UnifiedBackbone,
    split: EncodedDrawings,
    *,
    batch_size: int,
    seed: int,
    should_stop: ShouldStop = never,
) -> dict[str, float]:
    """`generation_loss`: mean over the captions, with the same random draws for one seed."""
    generator = torch_generator(seed)
    total = 0.0
    for start in batch_starts(len(split), batch_size, should_stop):
        batch = split.batch_at(torch.arange(start, min(start + batch_size, len(split))))
        losses = backbone.generation_loss(batch.targets, batch.prompts, generator=generator)
        total += losses.double().sum().item()
    return {"generation_loss": total / len(split)}


def measure_drawings(
    backbone: UnifiedBackbone,
    judge: Judge,
    prompts: Sequence[GenevalPrompt],
    *,
    batch_size: int,
    seed: int,
    guidance: float | None,
    should_stop: ShouldStop = never,
) -> dict[str, float]:
    """`geneval`, the mean over the families, and `geneval_<family>`, of one picture a prompt."""
    generator = torch_generator(seed)
    drawn = [
        backbone.generate_images(
            [prompt.prompt for prompt in prompts[start : start + batch_size]],
            generator=generator,
            guidance=guidance,
        ).cpu()
        for start in batch_starts(len(prompts), batch_size, should_stop)
    ]
    scores = score_images(judge, torch.cat(drawn), prompts, batch_size=batch_size)
    return {"geneval": scores.overall} | {
        f"geneval_{tag}": share for tag, share in scores.by_tag.items()
    }
