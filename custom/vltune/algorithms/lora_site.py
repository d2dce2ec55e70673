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

import torch
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
from vltune.algorithms.lora_job import LoraJob, own_rank
from vltune.backbones.vision_language import VisionLanguageBackbone
from vltune.config import ConfigError
from vltune.data.image_text import ImageTextSamples
from vltune.files import OutputError, sha256_json
from vltune.lora import (
    add_lora,
    read_factors,
    seeded_factors,
    set_residual,
    train_factors,
    without_lora,
    write_factors,
)
from vltune.lora_export import export_peft
from vltune.lora_factors import Kind
from vltune.lora_ranks import truncate_factors
from vltune.lora_residual import split_residual
from vltune.optimizer_state import PREFIX, load_optimizer_tensors, optimizer_tensors
from vltune.parameters import LocalUpdate, hash_tensors, spec_of
from vltune.participant import Evaluation, Handshake, ShouldStop
from vltune.seed import derive_seed
from vltune.site_config import QuestionSiteConfig
from vltune.training import (
    DivergedError,
    RoundPlan,
    TrainingStopped,
    local_train,
    make_optimizer,
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
        self._has_trained = False
        self._optimizer: torch.optim.Optimizer | None = None
        self._residual: dict[str, Tensor] = {}

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
        wanted = self.job.lora.settings(backbone.lora_scope)
        self.settings = wanted.at_rank(own_rank(self.job, self.site.lora_rank))
        seed = derive_seed(self.job.seed, "", 0, "lora")
        self.lora = add_lora(backbone.model, self.settings, seed, allowed=backbone.lora_scope)
        train_factors(self.lora, self._trained_kinds)
        self.loss = self._objective(backbone, self.lora, self.train_split)
        own = read_factors(self.lora, self.mode.shared)
        initial = seeded_factors(own, wanted.rank, seed)
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
                        asdict(wanted),
                        asdict(self.job.aggregation),
                        backbone.tokenizer_fingerprint,
                    ]
                ),
            },
            own_spec=spec_of(own),
        )

    def evaluate(self, shared: dict[str, Tensor]) -> Evaluation:
        """Measure the received factors with the site's own ones on its validation records."""
        metrics = {}
        told = self.state_dir / ZERO_SHOT_TOLD
        if not told.exists():
            told.touch()
            with without_lora(self.lora):
                set_residual(self.lora, {}, self.settings)
                metrics["zero_shot_accuracy"] = self._measure(self.validation_split)["accuracy"]
        self._receive(shared)
        return Evaluation(metrics | self._measure(self.validation_split))

    def train(
        self, shared: dict[str, Tensor], round_number: int, should_stop: ShouldStop
    ) -> LocalUpdate:
        """Train one round from the received factors and the site's own ones.

        A site whose personal factors are at their seeded start while others have trained for some
        rounds trains those alone first, or its first update would pull the others towards a start
        that they have left.
        """
        self._receive(shared)
        seed = derive_seed(self.job.seed, self.site_name, round_number)
        metrics = {}
        if self.mode.personal and round_number > 0 and not self._has_trained:
            metrics["steps_warm_up"] = float(self._warm_up(seed, should_stop))
        self.lora.train()
        result = local_train(
            self,
            num_examples=len(self.train_split),
            batch_at=self.train_split.batch_at,
            plan=RoundPlan(
                self.job.training,
                seed,
                round_span(self.job.training, round_number, self.job.num_rounds),
                self._optimizer_for_round(),
            ),
            should_stop=should_stop,
        )
        self._check_finite(round_number)
        self._has_trained = True
        return LocalUpdate(
            tensors=read_factors(self.lora, self.mode.shared),
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
        if self.mode.personal and not self._has_trained:
            log.warning("this site was never trained, so it has no personal model to keep")
            return {}
        self._receive(shared)
        metrics = {}
        if self.test_split is not None:
            measured = self._measure(self.test_split)
            metrics = {f"test_{name}": value for name, value in measured.items()}
        try:
            export_peft(
                read_factors(self.lora),
                self.settings,
                self.backbone.name,
                self.state_dir / EXPORT_FOLDER,
                self._residual,
            )
        except OutputError:
            log.exception("the adapter of this site could not be written")
        else:
            log.info("the adapter of this site is in its state folder, %s", EXPORT_FOLDER)
        return metrics

    def personal_state(self) -> dict[str, Tensor]:
        """The site's own factors and what its optimiser remembers; empty before any training."""
        if not self._has_trained:
            return {}
        kept = read_factors(self.lora, self.mode.personal) if self.mode.personal else {}
        if self._optimizer is not None and self._keeps_optimizer:
            kept |= optimizer_tensors(self._optimizer, self._trained_names())
        return kept

    def load_personal_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `personal_state` returned."""
        memory = {name: value for name, value in tensors.items() if name.startswith(PREFIX)}
        own = {name: value for name, value in tensors.items() if name not in memory}
        if self.mode.personal:
            write_factors(self.lora, own, self.mode.personal, "this site's state folder")
        if self._keeps_optimizer:
            self._optimizer = make_optimizer(self.trainable_parameters(), self.job.training)
            load_optimizer_tensors(self._optimizer, self._trained_names(), memory)
        self._has_trained = True

    def shared_keys(self) -> frozenset[str]:
        """Wire names of the factors that leave the site."""
        return frozenset(read_factors(self.lora, self.mode.shared))

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What the optimiser moves, shared and personal, in the order of their names."""
        return [parameter for _, parameter in self._trained()]

    @property
    def _trained_kinds(self) -> frozenset[Kind]:
        return self.mode.shared | self.mode.personal

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return sorted(
            (name, value) for name, value in self.lora.named_parameters() if value.requires_grad
        )

    def _trained_names(self) -> list[str]:
        return [name for name, _ in self._trained()]

    def _receive(self, shared: dict[str, Tensor]) -> None:
        factors, self._residual = split_residual(shared)
        if self.settings.rank < self.job.lora.rank:
            factors = truncate_factors(factors, self.settings.rank).tensors
        write_factors(self.lora, factors, self.mode.shared)
        set_residual(self.lora, self._residual, self.settings)

    def _check_finite(self, round_number: int) -> None:
        """Refuse to keep or send what the last step may have broken."""
        broken = [n for n, p in self._trained() if not bool(torch.isfinite(p).all())]
        if broken:
            raise DivergedError(
                f"round {round_number}: {len(broken)} factors are NaN or infinite after training; "
                f"lower learning_rate (now {self.job.training.learning_rate})"
            )

    @property
    def _keeps_optimizer(self) -> bool:
        # After svd and stack the coordinates are others, and so moments of the last round mean
        # nothing.
        return self.job.keep_optimizer and self.mode.keeps_basis

    def _optimizer_for_round(self) -> torch.optim.Optimizer:
        if self._optimizer is None or not self._keeps_optimizer:
            self._optimizer = make_optimizer(self.trainable_parameters(), self.job.training)
        return self._optimizer

    def _warm_up(self, seed: int, should_stop: ShouldStop) -> int:
        """Train the personal factors alone; returns the number of steps."""
        if not self.job.warm_up_epochs:
            return 0
        train_factors(self.lora, self.mode.personal)
        self.lora.train()
        try:
            result = local_train(
                self,
                num_examples=len(self.train_split),
                batch_at=self.train_split.batch_at,
                plan=RoundPlan(
                    replace(
                        self.job.training,
                        local_epochs=self.job.warm_up_epochs,
                        schedule="constant",
                    ),
                    derive_seed(seed, self.site_name, 0, "warm-up"),
                ),
                should_stop=should_stop,
            )
        finally:
            train_factors(self.lora, self._trained_kinds)
        return result.steps

    def _measure(self, split: EncodedRecords) -> dict[str, float]:
        self.lora.eval()
        return measure_answers(
            self.backbone,
            split,
            batch_size=self.job.batch_size,
            max_tokens=self.job.max_answer_tokens,
        )
