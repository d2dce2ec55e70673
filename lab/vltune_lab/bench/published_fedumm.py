"""The dataflow of NVIDIA FLARE's research/fedumm: the yardstick of benchmark `fedumm-dataflow`.

A re-implementation from a description of what that example does, with none of its code:

* the model is BLIP for questions, frozen, with LoRA on query, key and value of both text towers;
* a site averages with the others both factors of LoRA, and starts a new optimiser each round (the
  job's `keep_optimizer: false`);
* each step opens and preprocesses its images and runs the frozen vision tower on them; so does each
  measurement, in which answers are generated from pixels;
* batches are transformers' own: the decoder reads the padding of shorter questions
  (docs/blip_vqa.md), and the loss is transformers' own.

Where the description is silent, what is better for it is taken: the decoder learns from the token
with which it starts writing, padding of answers does not count, the learning rate falls as in our
job. Federation, messages and loop are VLTune's in either case.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor

from vltune.algorithms.fedumm import read_job
from vltune.algorithms.lora_job import LoraJob
from vltune.algorithms.lora_site import LoraParticipant
from vltune.algorithms.unified_data import load_unified_data
from vltune.backbones.blip_vqa import BlipVqaBackbone, backbone_of
from vltune.backbones.blip_vqa_checkpoint import BlipVqaParts
from vltune.backbones.checkpoint import BackboneConfig
from vltune.config import ConfigError, read_mapping
from vltune.data.image_sources import read_source
from vltune.data.image_text import ImageTextSamples
from vltune.participant import ShouldStop, never
from vltune.site_config import AnySiteConfig, require_unified
from vltune.site_settings import UnifiedSiteConfig
from vltune.training import TrainingStopped
from vltune.vqa_metrics import mean_vqa_accuracy

IGNORED = -100
"""Label that torch's cross entropy leaves out."""


class PixelBatch(NamedTuple):
    """Some questions with their pictures, (B, 3, H, W)."""

    pixels: Tensor
    prompts: list[str]
    answers: list[str]


class PublishedTask:
    """Questions and answers of one site, as `lora_site.SiteTask`, from pixels in every step.

    Args:
        job: Most tokens of an answer, records a pass.
        site: Where the questions are.
        backbone: From `load_stock`.
        should_stop: Asked between images while they are read.

    Raises:
        ConfigError: The site has captions: this dataflow does not draw.
    """

    headlines: tuple[str, ...] = ("vqa_accuracy",)

    def __init__(
        self,
        job: LoraJob,
        site: UnifiedSiteConfig,
        backbone: BlipVqaBackbone,
        should_stop: ShouldStop,
    ) -> None:
        self._job, self._backbone = job, backbone
        self._model: Any = backbone.model

        def already_read(digest: bytes) -> bool:
            if should_stop():
                raise TrainingStopped("stopped while reading images")
            return False

        data = load_unified_data(site, already_read=already_read)
        self.train = _questions(data.train.understanding)
        self.validation = _questions(data.validation.samples.understanding)
        self.test = None if data.test is None else _questions(data.test.samples.understanding)

    @property
    def num_examples(self) -> int:
        """Training questions."""
        return len(self.train.records)

    @property
    def num_validation(self) -> int:
        """Validation questions."""
        return len(self.validation.records)

    def begin(self, lora: PeftModel) -> None:
        """LoRA is in the model already."""

    def start_round(self, seed: int) -> None:
        """Nothing is drawn but by torch's own generator."""

    def end_round(self) -> None:
        """Nothing to put back."""

    def batch_at(self, indices: Tensor) -> PixelBatch:
        """Open and preprocess the images of some training questions."""
        return self._batch(self.train, indices.tolist())

    def loss(self, batch: PixelBatch) -> Tensor:
        """The loss of a batch as transformers computes it; differentiable."""
        questions, question_mask = self._ids(batch.prompts)
        answers, answer_mask = self._ids(batch.answers)
        labels = answers.masked_fill(answer_mask == 0, IGNORED)
        answers[:, 0] = self._backbone.start_id
        output = self._model(
            pixel_values=batch.pixels.to(self._backbone.device),
            input_ids=questions,
            attention_mask=question_mask,
            decoder_input_ids=answers,
            decoder_attention_mask=answer_mask,
            labels=labels,
        )
        loss: Tensor = output.loss
        return loss

    def backward(self, batch: PixelBatch) -> Tensor:
        """Add the gradients of one batch; returns its loss."""
        loss = self.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call] # torch's stub
        return loss.detach()

    def round_metrics(self) -> dict[str, float]:
        """None beside the loop's own."""
        return {}

    def measure_validation(self, should_stop: ShouldStop = never) -> dict[str, float]:
        """`vqa_accuracy`, with the official normalisation so that figures compare."""
        return self._measure(self.validation, should_stop)

    def measure_test(self, should_stop: ShouldStop = never) -> dict[str, float]:
        """The same of the test data; empty without any."""
        return {} if self.test is None else self._measure(self.test, should_stop)

    def adapters(self) -> dict[str, slice | None]:
        """One."""
        return {"": None}

    @torch.inference_mode()
    def _measure(self, samples: ImageTextSamples, should_stop: ShouldStop) -> dict[str, float]:
        texts: list[str] = []
        size = self._job.batch_size
        for start in range(0, len(samples.records), size):
            if should_stop():
                raise TrainingStopped(f"stopped after {start} answers")
            rows = range(start, min(start + size, len(samples.records)))
            batch = self._batch(samples, list(rows))
            questions, mask = self._ids(batch.prompts)
            ids = self._model.generate(
                pixel_values=batch.pixels.to(self._backbone.device),
                input_ids=questions,
                attention_mask=mask,
                max_new_tokens=self._job.max_answer_tokens,
                num_beams=1,
                do_sample=False,
            )
            written = self._backbone.tokenizer.batch_decode(ids[:, 1:], skip_special_tokens=True)
            texts += [text.strip() for text in written]
        accepted = [record.answers for record in samples.records]
        return {"vqa_accuracy": mean_vqa_accuracy(texts, accepted)}

    def _batch(self, samples: ImageTextSamples, rows: list[int]) -> PixelBatch:
        chosen = [samples.records[row] for row in rows]
        images = [self._backbone.preprocess(read_source(samples.images[r.image])) for r in chosen]
        return PixelBatch(
            torch.stack(images), [r.prompt for r in chosen], [r.answers[0] for r in chosen]
        )

    def _ids(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Ids of some texts, padded on the right, and their mask; (B, L), int64."""
        found = self._backbone.tokenizer(
            texts, padding=True, return_tensors="pt", return_token_type_ids=False
        ).to(self._backbone.device)
        return found["input_ids"], found["attention_mask"]


def load_stock(config: BackboneConfig, device: str) -> BlipVqaBackbone:
    """The model as transformers loads it, without VLTune's mask of padded questions.

    Args:
        config: `weights` is a local folder.
        device: Where the model will run.
    """
    from transformers import AutoTokenizer, BlipForQuestionAnswering

    folder = Path(config.weights)
    model = BlipForQuestionAnswering.from_pretrained(folder)
    processor = read_mapping(folder / "preprocessor_config.json")
    side = int(processor["size"]["height"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    parts = BlipVqaParts(model, tokenizer, processor, side, "bicubic")
    return backbone_of(config.model, parts, model.eval().requires_grad_(False).to(device))


def build_published(
    job: Mapping[str, Any], site: AnySiteConfig, site_name: str, state_dir: Path, threads: int
) -> LoraParticipant:
    """Build one site of this dataflow; arguments as `vltune.algorithms.fedumm.build_participant`.

    Raises:
        ConfigError: The job, or the site's kind of data, is wrong.
    """
    torch.set_num_threads(max(1, threads))
    config, parsed, _ = read_job(job)
    data = require_unified(site)

    def build_task(backbone: Any, should_stop: ShouldStop) -> PublishedTask:
        return PublishedTask(parsed, data, backbone, should_stop)

    return LoraParticipant(
        parsed,
        lambda: load_stock(config.backbone, data.device),
        build_task,
        data,
        site_name,
        state_dir,
    )


def _questions(samples: ImageTextSamples | None) -> ImageTextSamples:
    if samples is None:
        raise ConfigError("this dataflow answers questions only: the site has none")
    return samples
