"""A site's task of answering questions about images: data, objective, measurement."""

from collections.abc import Callable

from peft import PeftModel
from torch import Tensor

from vltune.algorithms.answer_data import load_answer_data
from vltune.algorithms.answer_metrics import measure_answers
from vltune.algorithms.encoded_records import AnswerBatch, EncodedRecords, TokenCache, fitting
from vltune.algorithms.lora_job import LoraJob
from vltune.backbones.vision_language import VisionLanguageBackbone
from vltune.data.image_text import ImageTextSamples
from vltune.participant import ShouldStop, never
from vltune.site_config import QuestionSiteConfig
from vltune.training import TrainingStopped

Objective = Callable[[AnswerBatch], Tensor]
ObjectiveBuilder = Callable[[VisionLanguageBackbone, PeftModel, EncodedRecords], Objective]


class AnswerTask:
    """Questions and answers of one site, as `lora_site.SiteTask`.

    Args:
        job: Most tokens of an answer, records a pass.
        site: Where the data are.
        objective: Backbone, its LoRA and the training records -> loss of a batch.
        backbone: Frozen; its image tokens are kept in the site's cache.
        should_stop: Asked between images.

    Raises:
        RecordError: The data are wrong.
        TrainingStopped: `should_stop` returned True.
    """

    headlines: tuple[str, ...] = ("accuracy",)

    def __init__(
        self,
        job: LoraJob,
        site: QuestionSiteConfig,
        objective: ObjectiveBuilder,
        backbone: VisionLanguageBackbone,
        should_stop: ShouldStop,
    ) -> None:
        self._job, self._objective, self._backbone = job, objective, backbone
        cache = TokenCache(site.cache_dir, backbone)

        def already_read(digest: bytes) -> bool:
            if should_stop():
                raise TrainingStopped("stopped while reading images")
            return cache.holds(digest)

        data = load_answer_data(site, already_read=already_read)

        def encode(samples: ImageTextSamples) -> EncodedRecords:
            kept = fitting(
                samples,
                backbone,
                max_share=site.max_skipped_share,
                max_answer_tokens=job.max_answer_tokens,
            )
            return cache.encode(kept, batch_size=job.batch_size, should_stop=should_stop)

        self.train, self.validation = encode(data.train), encode(data.validation)
        self.test = None if data.test is None else encode(data.test)

    @property
    def num_examples(self) -> int:
        """Training records."""
        return len(self.train)

    @property
    def num_validation(self) -> int:
        """Validation records."""
        return len(self.validation)

    def begin(self, lora: PeftModel) -> None:
        """Build the objective, which may ask the model without its LoRA."""
        self._batch_loss = self._objective(self._backbone, lora, self.train)

    def batch_at(self, indices: Tensor) -> AnswerBatch:
        """Some training records with their image tokens."""
        return self.train.batch_at(indices)

    def loss(self, batch: AnswerBatch) -> Tensor:
        """The objective's."""
        return self._batch_loss(batch)

    def backward(self, batch: AnswerBatch) -> Tensor:
        """Add the gradients of one batch; returns its loss."""
        loss = self.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call] # torch's stub
        return loss.detach()

    def start_round(self, seed: int) -> None:
        """Nothing in these losses is random but torch's own dropout, which the loop seeds."""

    def end_round(self) -> None:
        """Nothing to put back."""

    def round_metrics(self) -> dict[str, float]:
        """None beside the loop's own."""
        return {}

    def measure_validation(self, should_stop: ShouldStop = never) -> dict[str, float]:
        """Accuracy and what else `measure_answers` says."""
        return self._measure(self.validation, should_stop)

    def measure_test(self, should_stop: ShouldStop = never) -> dict[str, float]:
        """The same of the test records; empty without any."""
        return {} if self.test is None else self._measure(self.test, should_stop)

    def adapters(self) -> dict[str, slice | None]:
        """One."""
        return {"": None}

    def _measure(self, split: EncodedRecords, should_stop: ShouldStop) -> dict[str, float]:
        return measure_answers(
            self._backbone,
            split,
            batch_size=self._job.batch_size,
            max_tokens=self._job.max_answer_tokens,
            should_stop=should_stop,
        )
