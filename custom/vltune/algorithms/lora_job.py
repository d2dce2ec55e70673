"""What a job says of LoRA to its sites."""

from dataclasses import dataclass

from vltune.config import ConfigError
from vltune.lora_factors import LoraSettings
from vltune.lora_modes import LoraAggregation
from vltune.training import TrainingConfig


@dataclass(frozen=True)
class LoraChoice:
    """The key `lora` of a job; see `LoraSettings`.

    Attributes:
        rank: Of the global factors; a site may say less.
        alpha: Scale times rank.
        target: Regular expression of whole module names; None: all that the backbone allows.
        dropout: Of the input of A while training.
    """

    rank: int = 8
    alpha: float = 16.0
    target: str | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        self.settings(".*")

    def settings(self, scope: str) -> LoraSettings:
        """The settings on a backbone whose own scope is `scope`."""
        target = scope if self.target is None else self.target
        return LoraSettings(self.rank, self.alpha, target, self.dropout)


@dataclass(frozen=True)
class LoraJob:
    """The part of a job that a site needs; the rest is for the server.

    Attributes:
        seed: Run seed.
        lora: Rank, scale and target.
        aggregation: Which factors travel, and how the server joins them.
        training: Optimiser and local schedule.
        num_rounds: The federation's, which a learning rate that falls over the rounds needs.
        keep_optimizer: Go on with the optimiser of the last round; False starts a new one each.
        warm_up_epochs: A site that trains its personal factors for the first time when others have
            trained already does so for this long before it trains what it sends.
        max_answer_tokens: Longest generated answer.
        batch_size: Records a pass while measuring, and images a pass through the vision tower.
    """

    seed: int
    lora: LoraChoice
    aggregation: LoraAggregation
    training: TrainingConfig
    num_rounds: int | None = None
    keep_optimizer: bool = True
    warm_up_epochs: int = 1
    max_answer_tokens: int = 24
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.warm_up_epochs < 0 or min(self.max_answer_tokens, self.batch_size) < 1:
            raise ConfigError(
                "expected warm_up_epochs >= 0 and max_answer_tokens and batch_size >= 1, got "
                f"{self.warm_up_epochs}, {self.max_answer_tokens} and {self.batch_size}"
            )


def own_rank(job: LoraJob, rank: int | None) -> int:
    """The rank of one site.

    Args:
        job: With the global rank.
        rank: What the site's file says; None: the job's.

    Raises:
        ConfigError: The aggregation needs one rank, or the site's is above the job's.
    """
    most, mode = job.lora.rank, job.aggregation.description
    if rank is None or rank == most:
        return most
    if not mode.has_mixed_ranks:
        raise ConfigError(
            f"lora_rank is {rank} at this site and {most} in the job, but aggregation mode "
            f"{mode.name} needs one rank. Remove lora_rank, or take svd, stack or hetlora."
        )
    if rank > most:
        raise ConfigError(f"lora_rank is {rank}, above the job's {most}. Lower it.")
    return rank
