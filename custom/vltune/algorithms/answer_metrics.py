"""How well a vision-language model answers a split: generated text and preferences."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from vltune.algorithms.encoded_records import EncodedRecords
from vltune.backbones.vision_language import VisionLanguageBackbone
from vltune.participant import ShouldStop, TrainingStopped, never
from vltune.text_metrics import preference_accuracy, text_metrics


def batch_starts(count: int, batch_size: int, should_stop: ShouldStop) -> Iterator[int]:
    """First rows of the batches of `count` records.

    Raises:
        TrainingStopped: `should_stop`, asked before each batch, returned True.
    """
    for start in range(0, count, batch_size):
        if should_stop():
            raise TrainingStopped(f"stopped after measuring {start} of {count} records")
        yield start


@torch.inference_mode()
def generate(
    model: VisionLanguageBackbone,
    split: EncodedRecords,
    *,
    batch_size: int,
    max_tokens: int,
    should_stop: ShouldStop = never,
) -> list[str]:
    """The model's own answer to every record, in their order; see `batch_starts`."""
    texts: list[str] = []
    for start in batch_starts(len(split), batch_size, should_stop):
        batch = split.batch_at(torch.arange(start, min(start + batch_size, len(split))))
        texts += model.answer(batch.image_tokens, batch.prompts, max_tokens=max_tokens)
    return texts


@torch.inference_mode()
def preferences(
    model: VisionLanguageBackbone,
    split: EncodedRecords,
    *,
    batch_size: int,
    should_stop: ShouldStop = never,
) -> float | None:
    """Share of the pairs whose chosen answer is the likelier one; None without pairs."""
    rows = [index for index, record in enumerate(split.records) if record.rejected is not None]
    if not rows:
        return None
    chosen: list[Tensor] = []
    rejected: list[Tensor] = []
    for start in batch_starts(len(rows), batch_size, should_stop):
        batch = split.batch_at(torch.tensor(rows[start : start + batch_size]))
        worse = [text for text in batch.rejected if text is not None]
        for answers, found in ((batch.answers, chosen), (worse, rejected)):
            found.append(model.log_likelihood(batch.image_tokens, batch.prompts, answers))
    return preference_accuracy(_joined(chosen), _joined(rejected))


def measure_answers(
    model: VisionLanguageBackbone,
    split: EncodedRecords,
    *,
    batch_size: int,
    max_tokens: int,
    should_stop: ShouldStop = never,
) -> dict[str, float]:
    """Documented metrics of one split: accuracy, token_f1, rouge_l and what else it allows.

    `soft_accuracy` where a record has several accepted answers, `preference_accuracy` where one has
    a rejected answer. See `batch_starts`.
    """
    texts = generate(
        model, split, batch_size=batch_size, max_tokens=max_tokens, should_stop=should_stop
    )
    accepted = [record.answers for record in split.records]
    result = text_metrics(texts, accepted)
    metrics = {
        "accuracy": result.exact_match,
        "token_f1": result.token_f1,
        "rouge_l": result.rouge_l,
    }
    if any(len(answers) > 1 for answers in accepted):
        metrics["soft_accuracy"] = result.soft_accuracy
    preferred = preferences(model, split, batch_size=batch_size, should_stop=should_stop)
    if preferred is not None:
        metrics["preference_accuracy"] = preferred
    return metrics


def _joined(parts: list[Tensor]) -> np.ndarray:
    joined: np.ndarray = torch.cat(parts).cpu().double().numpy()
    return joined
