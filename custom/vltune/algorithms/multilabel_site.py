"""One site's part of any multi-label method on frozen CLIP features, without FLARE.

A method supplies a function that builds its model; loading, encoding once, evaluation of what was
received and local training are the same for all of them.
"""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vltune import __version__
from vltune.algorithms.encoded_split import (
    EncodedSplit,
    encode_split,
    zero_shot_scores,
)
from vltune.algorithms.multilabel_job import ModelBuilder, MultiLabelJob
from vltune.backbones.clip import BackboneConfig, ClipBackbone, load_clip
from vltune.conditions import ConditionSet, conditions_from_mapping
from vltune.config import ConfigError, from_part
from vltune.evaluation import evaluate_scores, predict_scores
from vltune.metrics import multilabel_metrics
from vltune.parameters import (
    LocalUpdate,
    apply_shared,
    hash_tensors,
    personal_state,
    shared_state,
    spec_of,
)
from vltune.participant import Evaluation, Handshake, ShouldStop, never
from vltune.privacy_ledger import LEDGER_FILE, PrivacyLedger
from vltune.private_release import RECORD_DELTA, RECORD_EPSILON
from vltune.private_training import private_train
from vltune.seed import derive_seed
from vltune.site_config import SiteConfig, Split
from vltune.training import RoundPlan, local_train, round_span

log = logging.getLogger(__name__)


class MultiLabelParticipant:
    """One site's part of a multi-label run.

    Args:
        job: What to train.
        conditions: The job's condition set.
        build_model: Builds the method's model on the loaded backbone.
        site: Where the site's data are.
        site_name: FLARE name.
        state_dir: Where the site keeps count of its privacy in this run.
    """

    def __init__(
        self,
        job: MultiLabelJob,
        conditions: ConditionSet,
        build_model: ModelBuilder,
        site: SiteConfig,
        site_name: str,
        state_dir: Path,
    ) -> None:
        self.job = job
        self.conditions = conditions
        self.build_model = build_model
        self.site = site
        self.site_name = site_name
        self.state_dir = state_dir
        self.model: Any = None
        self.backbone: ClipBackbone | None = None
        self.train_split: EncodedSplit | None = None
        self.validation_split: EncodedSplit | None = None
        self._told_zero_shot = False

    def prepare(self, should_stop: ShouldStop) -> Handshake:
        """Load backbone and data, encode each image once, build the model from the run's seed."""
        began = time.perf_counter()
        backbone = self.load_model()
        self.train_split = self.encode_split(self.site.train, should_stop)
        self.validation_split = self.encode_split(self.site.validation, should_stop)
        initial = shared_state(self.model, self.model.shared_keys())
        encoded = self.train_split.features.num_encoded + self.validation_split.features.num_encoded
        log.info("ready in %.1f s; %d images encoded", time.perf_counter() - began, encoded)
        return Handshake(
            spec=spec_of(initial),
            initial=initial,
            initial_hash=hash_tensors(initial),
            num_examples=len(self.train_split.labels),
            num_validation=len(self.validation_split.labels),
            facts={
                "vltune": __version__,
                "backbone": backbone.fingerprint,
                "preprocessing": backbone.preprocess_fingerprint,
                "class_list": self.conditions.class_list_hash,
                "conditions": ", ".join(self.conditions.names),
            },
        )

    def load_model(self) -> ClipBackbone:
        """Load the backbone and build the model at its seeded start; no data is touched."""
        self.backbone = load_clip(self._backbone_config())
        self.model = self.build_model(self.backbone, self.conditions, self.job.seed)
        return self.backbone

    def evaluate(self, shared: dict[str, Tensor], should_stop: ShouldStop = never) -> Evaluation:
        """Measure the received model on the site's validation images; a matter of seconds."""
        model, _, validation = self._ready()
        apply_shared(model, shared, model.shared_keys())
        result = evaluate_scores(
            self.predict(validation),
            validation.samples.labels,
            threshold=self.job.threshold,
            min_cell=self.job.min_cell,
            min_interval=self.job.min_interval,
        )
        metrics = {
            "mAP": result.metrics.mAP,
            "CF1": result.metrics.CF1,
            "OF1": result.metrics.OF1,
            "num_classes_scored": float(result.metrics.num_classes_scored),
            "num_withheld": float(result.histograms.num_withheld),
        }
        if not self._told_zero_shot:
            self._told_zero_shot = True
            metrics["zero_shot_mAP"] = self._zero_shot_mAP(validation)
        return Evaluation(metrics=metrics, histograms=result.histograms.to_tensors())

    def train(
        self, shared: dict[str, Tensor], round_number: int, should_stop: ShouldStop
    ) -> LocalUpdate:
        """Train one round from the received shared tensors."""
        model, train, _ = self._ready()
        apply_shared(model, shared, model.shared_keys())
        model.train()
        plan = RoundPlan(
            self.job.training,
            derive_seed(self.job.seed, self.site_name, round_number),
            round_span(self.job.training, round_number, self.job.num_rounds),
        )
        if self.job.privacy.level == "record":
            metrics = self._train_privately(plan, should_stop)
        else:
            result = local_train(
                model,
                num_examples=len(train.labels),
                batch_at=train.batch_at,
                plan=plan,
                should_stop=should_stop,
            )
            metrics = {
                "loss": result.loss,
                "steps": float(result.steps),
                "seconds_train": result.seconds,
            }
        return LocalUpdate(
            tensors=shared_state(model, model.shared_keys()),
            num_examples=len(train.labels),
            metrics=metrics,
        )

    def _train_privately(self, plan: RoundPlan, should_stop: ShouldStop) -> dict[str, float]:
        """DP-SGD; returns what may be known of it."""
        model, train, _ = self._ready()
        if not hasattr(model, "example_losses"):
            raise ConfigError(
                f"privacy.level record needs a model with example_losses, {type(model).__name__} "
                "has none. Take level site."
            )
        privacy = self.job.privacy
        ledger = PrivacyLedger(self.state_dir / LEDGER_FILE, privacy)
        result = private_train(
            model,
            num_examples=len(train.labels),
            batch_at=train.batch_at,
            plan=plan,
            privacy=privacy,
            ledger=ledger,
            should_stop=should_stop,
        )
        return {
            "steps": float(result.steps),
            "seconds_train": result.seconds,
            RECORD_EPSILON: ledger.epsilon,
            RECORD_DELTA: ledger.delta,
        }

    def finish(
        self, shared: dict[str, Tensor], should_stop: ShouldStop = never
    ) -> dict[str, float]:
        """The global adapter is all there is; the server keeps it."""
        return {}

    def personal_state(self) -> dict[str, Tensor]:
        """Trained tensors that stay here; none in FedMPT."""
        model, _, _ = self._ready()
        return personal_state(model, model.shared_keys())

    def load_personal_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `personal_state` returned."""
        model, _, _ = self._ready()
        personal = set(model.state_dict()) - model.shared_keys()
        apply_shared(model, tensors, personal)

    def _ready(self) -> tuple[Any, EncodedSplit, EncodedSplit]:
        if self.model is None or self.train_split is None or self.validation_split is None:
            self.prepare(lambda: False)
        assert self.train_split is not None  # prepare() sets all three
        assert self.validation_split is not None
        return self.model, self.train_split, self.validation_split

    def _zero_shot_mAP(self, split: EncodedSplit) -> float:
        """MAP of CLIP as it is, the better of its pooled and its patch reading."""
        assert self.backbone is not None  # _ready() came first
        readings = zero_shot_scores(self.backbone, split, self.job.classnames)
        labels = split.samples.labels
        return max(
            multilabel_metrics(scores, labels, self.job.threshold).mAP
            for scores in readings.values()
        )

    def _backbone_config(self) -> BackboneConfig:
        return self.site.with_own_weights(self.job.backbone, self.job.backbone.model)

    def encode_split(self, split: Split, should_stop: ShouldStop = lambda: False) -> EncodedSplit:
        """Read a split of this site; see `encoded_split.encode_split`."""
        assert self.backbone is not None  # prepare() loads it first
        return encode_split(
            self.backbone,
            self.site,
            split,
            self.job.classnames,
            batch_size=self.job.encode_batch_size,
            should_stop=should_stop,
        )

    def predict(self, split: EncodedSplit) -> NDArray[np.float64]:
        """Probabilities (N, C) of the model as it is now."""
        model = self.model
        model.eval()
        with torch.no_grad():
            predict = model.predictor()

        def logits_of(indices: Tensor) -> Tensor:
            batch = split.batch_at(indices)
            logits: Tensor = predict(batch.patch_features, batch.image_features)
            return logits

        return predict_scores(logits_of, len(split.labels))


def make_participant(
    job: Mapping[str, Any],
    build_model: ModelBuilder,
    site: SiteConfig,
    site_name: str,
    state_dir: Path,
) -> MultiLabelParticipant:
    """Read a job's mapping and check its conditions against its class list.

    Raises:
        ConfigError: The job is wrong.
        ConditionError: The condition cache was made for another class list.
    """
    parsed = from_part(MultiLabelJob, job, "the job")
    conditions = conditions_from_mapping(
        parsed.conditions, parsed.classnames, "the job's conditions"
    )
    return MultiLabelParticipant(parsed, conditions, build_model, site, site_name, state_dir)
