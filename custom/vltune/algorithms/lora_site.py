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
from typing import Any, Protocol

from peft import PeftModel
from torch import Tensor, nn

from vltune import __version__
from vltune.algorithms.lora_job import LoraJob
from vltune.algorithms.site_lora import SiteLora
from vltune.backbones.vision_language import VisionLanguageBackbone
from vltune.config import ConfigError
from vltune.files import OutputError, sha256_json
from vltune.parameters import LocalUpdate, hash_tensors, spec_of
from vltune.participant import Evaluation, Handshake, ShouldStop, never
from vltune.seed import derive_seed
from vltune.site_settings import AnswerSettings
from vltune.training import (
    RoundPlan,
    local_train,
    round_span,
)

log = logging.getLogger(__name__)

EXPORT_FOLDER = "peft_adapter"
ZERO_SHOT_TOLD = "zero_shot_told"


class SiteTask(Protocol):
    """What a site learns and how it measures it, whatever kind of data it has.

    Attributes:
        headlines: Metrics of validation that the untouched model is measured by too.
    """

    headlines: tuple[str, ...]

    @property
    def num_examples(self) -> int:
        """Training records."""

    @property
    def num_validation(self) -> int:
        """Validation records."""

    def begin(self, lora: PeftModel) -> None:
        """LoRA is on the backbone now."""

    def batch_at(self, indices: Tensor) -> Any:
        """Some training records, by their rows (B,) int64."""

    def loss(self, batch: Any) -> Tensor:
        """Scalar loss of one batch; differentiable."""

    def backward(self, batch: Any) -> Tensor:
        """Add the gradients of `loss`; returns its value."""

    def start_round(self, seed: int) -> None:
        """Everything random in this round's losses follows from `seed`."""

    def end_round(self) -> None:
        """The round's training is over; its factors are read next."""

    def round_metrics(self) -> dict[str, float]:
        """Documented figures of the round that was trained, beside the loop's own."""

    def measure_validation(self, should_stop: ShouldStop = never) -> dict[str, float]:
        """Documented metrics of the model as it is now.

        Raises:
            TrainingStopped: `should_stop`, asked between batches, returned True.
        """

    def measure_test(self, should_stop: ShouldStop = never) -> dict[str, float]:
        """The same of the test records; empty without any."""

    def adapters(self) -> dict[str, slice | None]:
        """Folder of each adapter to export, "" for the one of all, -> its directions."""


TaskBuilder = Callable[[VisionLanguageBackbone, ShouldStop], SiteTask]


class LoraParticipant:
    """One site's part of a run.

    Args:
        job: What to train.
        load_backbone: Loads the frozen model; called once.
        build_task: Loads the site's data and encodes each image once.
        site: Where the site's data are.
        site_name: FLARE name.
        state_dir: Where the site keeps what must survive a restart.
        own_facts: The method's own facts of the handshake, asked once.
    """

    def __init__(
        self,
        job: LoraJob,
        load_backbone: Callable[[], VisionLanguageBackbone],
        build_task: TaskBuilder,
        site: AnswerSettings,
        site_name: str,
        state_dir: Path,
        own_facts: Callable[[], dict[str, str]] = dict,
    ) -> None:
        self.job, self.site, self.site_name, self.state_dir = job, site, site_name, state_dir
        self.mode = job.aggregation.description
        self._load_backbone, self._build_task = load_backbone, build_task
        self._own_facts = own_facts

    def prepare(self, should_stop: ShouldStop) -> Handshake:
        """Load model and data, encode each image once, put LoRA on."""
        began = time.perf_counter()
        backbone = self.backbone = self.load_model()
        self.task = self._build_task(backbone, should_stop)
        self.lora = SiteLora(self.job, backbone.model, backbone.lora_scope, self.site.lora_rank)
        self.task.begin(self.lora.model)
        initial = self.lora.initial()
        log.info("ready in %.1f s", time.perf_counter() - began)
        return Handshake(
            spec=spec_of(initial),
            initial=initial,
            initial_hash=hash_tensors(initial),
            num_examples=self.task.num_examples,
            num_validation=self.task.num_validation,
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
                **self._own_facts(),
            },
            own_spec=spec_of(self.lora.shared()),
        )

    def load_model(self) -> VisionLanguageBackbone:
        """Load the frozen model; neither LoRA nor data are touched.

        Raises:
            BackboneError: It cannot be loaded.
            ConfigError: The job asks for longer answers than it has positions.
        """
        backbone = self._load_backbone()
        if self.job.max_answer_tokens > backbone.max_answer_tokens:
            raise ConfigError(
                f"max_answer_tokens is {self.job.max_answer_tokens}, the model has "
                f"{backbone.max_answer_tokens} positions. Lower it."
            )
        return backbone

    def evaluate(self, shared: dict[str, Tensor], should_stop: ShouldStop = never) -> Evaluation:
        """Measure the received factors with the site's own ones on its validation records."""
        metrics = {}
        told = self.state_dir / ZERO_SHOT_TOLD
        if not told.exists():
            with self.lora.untouched():
                self.lora.model.eval()
                untouched = self.task.measure_validation(should_stop)
            told.touch()
            metrics = {
                f"zero_shot_{n}": untouched[n] for n in self.task.headlines if n in untouched
            }
        self.lora.receive(shared)
        self.lora.model.eval()
        return Evaluation(metrics | self.task.measure_validation(should_stop))

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
        self.task.start_round(seed)
        result = local_train(
            self,
            num_examples=self.task.num_examples,
            batch_at=self.task.batch_at,
            plan=RoundPlan(
                self.job.training,
                seed,
                round_span(self.job.training, round_number, self.job.num_rounds),
                self.lora.optimizer(),
            ),
            should_stop=should_stop,
            backward=self.task.backward,
        )
        self.task.end_round()
        self.lora.check_finite(round_number)
        self.lora.has_trained = True
        return LocalUpdate(
            tensors=self.lora.shared(),
            num_examples=self.task.num_examples,
            metrics={
                **metrics,
                **self.task.round_metrics(),
                "loss": result.loss,
                "steps": float(result.steps),
                "seconds_train": result.seconds,
            },
        )

    def finish(
        self, shared: dict[str, Tensor], should_stop: ShouldStop = never
    ) -> dict[str, float]:
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
        self.lora.model.eval()
        metrics = {
            f"test_{name}": value for name, value in self.task.measure_test(should_stop).items()
        }
        try:
            for part, directions in self.task.adapters().items():
                folder = self.state_dir / EXPORT_FOLDER / part
                self.lora.export(self.backbone.name, folder, directions)
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

    def loss(self, batch: Any) -> Tensor:
        """Scalar loss of one batch."""
        return self.task.loss(batch)

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
        warm_up = derive_seed(seed, self.site_name, 0, "warm-up")
        self.task.start_round(warm_up)
        plan = RoundPlan(
            replace(self.job.training, local_epochs=self.job.warm_up_epochs, schedule="constant"),
            warm_up,
        )
        with self.lora.personal_alone():
            result = local_train(
                self,
                num_examples=self.task.num_examples,
                batch_at=self.task.batch_at,
                plan=plan,
                should_stop=should_stop,
                backward=self.task.backward,
            )
        return result.steps
