"""The last look at an update before it leaves: is what the job promises of privacy kept?

A step of the executor and not a FLARE filter: a result's filter does not see the model that was
sent out, against which an update is clipped; and the allow-list behind this step then checks the
very tensors that leave.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vltune.config import from_mapping
from vltune.parameters import LocalUpdate
from vltune.privacy import PrivacyConfig, PrivacyError, privatise_update, secret_generator
from vltune.privacy_ledger import LEDGER_FILE, PrivacyLedger

SITE_EPSILON, SITE_DELTA = "site_epsilon", "site_delta"
RECORD_EPSILON, RECORD_DELTA = "record_epsilon", "record_delta"
PRIVACY_METRICS = frozenset({SITE_EPSILON, SITE_DELTA, RECORD_EPSILON, RECORD_DELTA})
PUBLIC_METRICS = PRIVACY_METRICS | {"steps", "seconds_train"}
"""What of training still leaves: a loss is calculated from the images themselves."""


class ReleaseGuard:
    """Keeps the job's promise at one site in one run.

    Args:
        config: The job's `privacy`.
        folder: The site's own folder of this run.
    """

    def __init__(self, config: PrivacyConfig, folder: Path) -> None:
        self.config = config
        self._ledger = (
            PrivacyLedger(folder / LEDGER_FILE, config) if config.level == "site" else None
        )

    @classmethod
    def of_job(cls, job: Mapping[str, Any], folder: Path) -> "ReleaseGuard":
        """The guard of a job's promise.

        Raises:
            ConfigError: The job's `privacy` is wrong.
        """
        config = from_mapping(PrivacyConfig, job.get("privacy") or {}, "the job's privacy")
        return cls(config, folder)

    def before_training(self) -> None:
        """Site level: charge the release that the round ends with.

        Raises:
            PrivacyError: The budget is spent.
        """
        if self._ledger is not None:
            self._ledger.charge(sample_rate=1.0, steps=1)

    def release(self, sent_out: Mapping[str, Tensor], update: LocalUpdate) -> LocalUpdate:
        """What may leave of an update.

        Raises:
            PrivacyError: The job promises record-level privacy, but this method's training did not
                keep it.
        """
        if self.config.level == "none":
            return update
        if self.config.level == "record" and not {RECORD_EPSILON, RECORD_DELTA} <= set(
            update.metrics
        ):
            raise PrivacyError(
                "the job promises privacy.level record, which this method's training does not "
                "keep; nothing leaves. Take level site, or FedMPT."
            )
        metrics = {name: v for name, v in update.metrics.items() if name in PUBLIC_METRICS}
        if self._ledger is None:
            return replace(update, metrics=metrics)
        noise_multiplier, clip_norm, delta = self.config.bounds
        tensors = privatise_update(
            sent_out,
            update.tensors,
            clip_norm=clip_norm,
            noise_multiplier=noise_multiplier,
            generator=secret_generator(),
        )
        spent = {SITE_EPSILON: self._ledger.epsilon, SITE_DELTA: delta}
        return replace(update, tensors=tensors, metrics=metrics | spent)
