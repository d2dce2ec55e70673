"""One site's part of a run, without FLARE: what the executor drives.

A method (`algorithms/`) supplies a builder `build_participant(job, site, site_name, state_dir,
threads) -> Participant`; the job names it by dotted path, so that the glue knows no method.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from vltune.parameters import LocalUpdate, SharedSpec
from vltune.site_config import AnySiteConfig
from vltune.training import TrainingStopped

__all__ = [
    "Builder",
    "Evaluation",
    "Handshake",
    "Participant",
    "ShouldStop",
    "TrainingStopped",
    "import_builder",
    "never",
]

ShouldStop = Callable[[], bool]


def never() -> bool:
    """Nobody asks to stop."""
    return False


@dataclass(frozen=True)
class Handshake:
    """What a site shows before round 0; the server leaves out sites that differ.

    Attributes:
        spec: Names and shapes of the shared tensors.
        initial: Seeded initial shared tensors, CPU fp32, the same at every site.
        initial_hash: Hex SHA-256 of `initial` (names, shapes and bytes).
        num_examples: Training images.
        num_validation: Validation images.
        facts: What must agree between sites: backbone and preprocessing fingerprints, class-list
            hash, condition hash, package version.
        own_spec: Names and shapes of what this site sends after training where they are smaller
            than `spec` (LoRA of a lower rank); it does not travel. None: those of `spec`.
    """

    spec: SharedSpec
    initial: dict[str, Tensor]
    initial_hash: str
    num_examples: int
    num_validation: int
    facts: dict[str, str]
    own_spec: SharedSpec | None = None


@dataclass(frozen=True)
class Evaluation:
    """The received model on local validation data.

    Attributes:
        metrics: mAP, CF1, OF1 in [0, 1] and other documented scalars.
        histograms: Wire tensors of `ScoreHistograms`, int32.
    """

    metrics: dict[str, float]
    histograms: dict[str, Tensor] = field(default_factory=dict)


class Participant(Protocol):
    """One site's part of a run."""

    def prepare(self, should_stop: ShouldStop) -> Handshake:
        """Load data, check class list and conditions, encode each image once."""

    def evaluate(self, shared: dict[str, Tensor], should_stop: ShouldStop = never) -> Evaluation:
        """Measure the received shared tensors on local validation data.

        Raises:
            TrainingStopped: `should_stop` returned True; where measuring takes long it is asked.
        """

    def train(
        self, shared: dict[str, Tensor], round_number: int, should_stop: ShouldStop
    ) -> LocalUpdate:
        """Train from the received shared tensors.

        Raises:
            TrainingStopped: `should_stop` returned True.
        """

    def finish(
        self, shared: dict[str, Tensor], should_stop: ShouldStop = never
    ) -> dict[str, float]:
        """The run is over and these are its last shared tensors: keep what the site will use.

        Returns:
            `test_...` metrics of the site's test data, if it has any.

        Raises:
            TrainingStopped: As `evaluate`.
        """

    def personal_state(self) -> dict[str, Tensor]:
        """Tensors that stay at the site and must survive a restart."""

    def load_personal_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `personal_state` returned."""


Builder = Callable[[Mapping[str, Any], AnySiteConfig, str, Path, int], Participant]


def import_builder(dotted: str, failure: type[ValueError], cure: str) -> Builder:
    """Import a method's builder.

    Args:
        dotted: As the job names it.
        failure: What the caller raises.
        cure: What its reader can do.

    Raises:
        ValueError: There is no such function; of the class `failure`.
    """
    module_name, _, name = dotted.rpartition(".")
    try:
        builder: Builder = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise failure(f"participant {dotted!r} cannot be imported: {error}. {cure}") from error
    return builder
