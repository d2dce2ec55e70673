"""One site's part of any run that tunes a vision-language model by LoRA, without FLARE.

Which factors leave the site, stay, or are never trained is the aggregation mode's to say
(`lora_modes`). What stays is kept as `personal_state`: personal factors and what the optimiser
remembers. Random draws need no memory: each round's seed follows from run, site and round.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from peft import PeftModel
from torch import Tensor, nn

from vltune import __version__
from vltune.algorithms.answer_data import load_answer_data
from vltune.algorithms.answer_metrics import measure_answers
from vltune.algorithms.encoded_records import (
    AnswerBatch,
    EncodedRecords,
    TokenCache,
    fitting,
)
from vltune.algorithms.lora_job import LoraJob
from vltune.algorithms.site_lora import SiteLora
from vltune.backbones.vision_language import VisionLanguageBackbone
from vltune.config import ConfigError
from vltune.data.image_text import ImageTextSamples
from vltune.files import OutputError, sha256_json
from vltune.parameters import LocalUpdate, hash_tensors, spec_of
from vltune.participant import Evaluation, Handshake, ShouldStop
from vltune.seed import derive_seed
from vltune.site_config import QuestionSiteConfig
from vltune.training import (
    RoundPlan,
    TrainingStopped,
    local_train,
    round_span,
)

log = logging.getLogger(__name__)

EXPORT_FOLDER = "peft_adapter"
ZERO_SHOT_TOLD = "zero_shot_told"


Objective = Callable[[AnswerBatch], Tensor]
ObjectiveBuilder = Callable[[VisionLanguageBackbone, PeftModel, EncodedRecords], Objective]


class LoraParticipant:
    """One site's part of a run.

    Args:
        job: What to train.
        load_backbone: Loads the frozen model; called once.
        objective: Backbone, its LoRA and the training records -> loss of a batch.
        site: Where the site's data are.
        site_name: FLARE name.
        state_dir: Where the site keeps what must survive a restart.
    """

    def __init__(
        self,
        job: LoraJob,
        load_backbone: Callable[[], VisionLanguageBackbone],
        objective: ObjectiveBuilder,
        site: QuestionSiteConfig,
        site_name: str,
        state_dir: Path,
    ) -> None:
        self.job, self.site, self.site_name, self.state_dir = job, site, site_name, state_dir
        self.mode = job.aggregation.description
        self._load_backbone, self._objective = load_backbone, objective

    def prepare(self, should_stop: ShouldStop) -> Handshake:
        """Load model and data, encode each image once, put LoRA on."""
        began = time.perf_counter()
        backbone = self.backbone = self._load_backbone()
        if self.job.max_answer_tokens > backbone.max_answer_tokens:
            raise ConfigError(
                f"max_answer_tokens is {self.job.max_answer_tokens}, the model has "
                f"{backbone.max_answer_tokens} positions. Lower it."
            )
        cache = TokenCache(self.site.cache_dir, backbone)

        def already_read(digest: bytes) -> bool:
            if should_stop():
                raise TrainingStopped("stopped while reading images")
            return cache.holds(digest)

        data = load_answer_data(self.site, already_read=already_read)

        def encode(samples: ImageTextSamples) -> EncodedRecords:
            kept = fitting(
                samples,
                backbone,
                max_share=self.site.max_skipped_share,
                max_answer_tokens=self.job.max_answer_tokens,
            )
            return cache.encode(kept, batch_size=self.job.batch_size, should_stop=should_stop)

        self.train_split, self.validation_split = encode(data.train), encode(data.validation)
        self.test_split = None if data.test is None else encode(data.test)
        self.lora = SiteLora(self.job, backbone.model, backbone.lora_scope, self.site.lora_rank)
        self.loss = self._objective(backbone, self.lora.model, self.train_split)
        initial = self.lora.initial()
        log.info("ready in %.1f s", time.perf_counter() - began)
        return Handshake(
            spec=spec_of(initial),
            initial=initial,
            initial_hash=hash_tensors(initial),
            num_examples=len(self.train_split),
            num_validation=len(self.validation_split),
            facts={
                "vltune": __version__,
                "backbone": backbone.fingerprint,
                "preprocessing": backbone.preprocess_fingerprint,
                "adapter": sha256_json(
                    [
                        asdict(self.lora.wanted),
                        asdict(self.job.aggregation),
                        backbone.tokenizer_fingerprint,
                    ]
                ),
            },
            own_spec=spec_of(self.lora.shared()),
        )

    def evaluate(self, shared: dict[str, Tensor]) -> Evaluation:
        """Measure the received factors with the site's own ones on its validation records."""
        metrics = {}
        told = self.state_dir / ZERO_SHOT_TOLD
        if not told.exists():
            told.touch()
            with self.lora.untouched():
                metrics["zero_shot_accuracy"] = self._measure(self.validation_split)["accuracy"]
        self.lora.receive(shared)
        return Evaluation(metrics | self._measure(self.validation_split))

    def train(
        self, shared: dict[str, Tensor], round_number: int, should_stop: ShouldStop
    ) -> LocalUpdate:
        """Train one round from the received factors and the site's own ones.

        A site whose personal factors are at their seeded start while others have trained for some
        rounds trains those alone first, or its first update would pull the others towards a start
        that they have left.
        """
        self.lora.receive(shared)
        seed = derive_seed(self.job.seed, self.site_name, round_number)
        metrics = {}
        if self.mode.personal and round_number > 0 and not self.lora.has_trained:
            metrics["steps_warm_up"] = float(self._warm_up(seed, should_stop))
        self.lora.model.train()
        result = local_train(
            self,
            num_examples=len(self.train_split),
            batch_at=self.train_split.batch_at,
            plan=RoundPlan(
                self.job.training,
                seed,
                round_span(self.job.training, round_number, self.job.num_rounds),
                self.lora.optimizer(),
            ),
            should_stop=should_stop,
        )
        self.lora.check_finite(round_number)
        self.lora.has_trained = True
        return LocalUpdate(
            tensors=self.lora.shared(),
            num_examples=len(self.train_split),
            metrics={
                **metrics,
                "loss": result.loss,
                "steps": float(result.steps),
                "seconds_train": result.seconds,
            },
        )

    def finish(self, shared: dict[str, Tensor]) -> dict[str, float]:
        """Write the site's final model, its own factors included, as a PEFT adapter folder.

        A site whose own factors were never trained has no model of its own: nothing is written or
        measured.

        Returns:
            Its metrics on the site's test records as `test_...`; empty without any.
        """
        if self.mode.personal and not self.lora.has_trained:
            log.warning("this site was never trained, so it has no personal model to keep")
            return {}
        self.lora.receive(shared)
        metrics = {}
        if self.test_split is not None:
            measured = self._measure(self.test_split)
            metrics = {f"test_{name}": value for name, value in measured.items()}
        try:
            self.lora.export(self.backbone.name, self.state_dir / EXPORT_FOLDER)
        except OutputError:
            log.exception("the adapter of this site could not be written")
        else:
            log.info("the adapter of this site is in its state folder, %s", EXPORT_FOLDER)
        return metrics

    def personal_state(self) -> dict[str, Tensor]:
        """The site's own factors and what its optimiser remembers; empty before any training."""
        return self.lora.kept()

    def load_personal_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `personal_state` returned."""
        self.lora.restore(tensors)

    def shared_keys(self) -> frozenset[str]:
        """Wire names of the factors that leave the site."""
        return frozenset(self.lora.shared())

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What the optimiser moves, shared and personal, in the order of their names."""
        return self.lora.parameters()

    def _warm_up(self, seed: int, should_stop: ShouldStop) -> int:
        """Train the personal factors alone; returns the number of steps."""
        if not self.job.warm_up_epochs:
            return 0
        self.lora.model.train()
        plan = RoundPlan(
            replace(self.job.training, local_epochs=self.job.warm_up_epochs, schedule="constant"),
            derive_seed(seed, self.site_name, 0, "warm-up"),
        )
        with self.lora.personal_alone():
            result = local_train(
                self,
                num_examples=len(self.train_split),
                batch_at=self.train_split.batch_at,
                plan=plan,
                should_stop=should_stop,
            )
        return result.steps

    def _measure(self, split: EncodedRecords) -> dict[str, float]:
        self.lora.model.eval()
        return measure_answers(
            self.backbone,
            split,
            batch_size=self.job.batch_size,
            max_tokens=self.job.max_answer_tokens,
        )
