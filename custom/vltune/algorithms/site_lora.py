"""The LoRA of one site: its factors, its optimiser's memory and the residual it was sent.

What is shared, personal or never trained is the aggregation mode's to say (`lora_modes`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from vltune.algorithms.lora_job import LoraJob, own_rank
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
from vltune.lora_factors import Kind, parse_factor_name
from vltune.lora_ranks import truncate_factors
from vltune.lora_residual import split_residual
from vltune.optimizer_state import PREFIX, load_optimizer_tensors, optimizer_tensors
from vltune.seed import derive_seed
from vltune.training import DivergedError, make_optimizer


class SiteLora:
    """LoRA on a backbone, injected in place.

    Args:
        job: Rank, target, aggregation, optimiser and seed.
        model: Frozen.
        scope: Regular expression of the modules that LoRA may adapt.
        rank: This site's own, at most the job's; None: the job's.

    Attributes:
        model: The backbone as peft sees it.
        wanted: What the job asks for.
        settings: The same at this site's rank.
        has_trained: Whether the factors have left their start.

    Raises:
        ConfigError: The mode does not take this rank.
        LoraError: The target hits nothing, or modules outside `scope`.
    """

    def __init__(self, job: LoraJob, model: nn.Module, scope: str, rank: int | None = None) -> None:
        self._job, self._mode = job, job.aggregation.description
        self.wanted = job.lora.settings(scope)
        self.settings = self.wanted.at_rank(own_rank(job, rank))
        self._seed = derive_seed(job.seed, "", 0, "lora")
        self.model = add_lora(model, self.settings, self._seed, allowed=scope)
        self.has_trained = False
        self._optimizer: torch.optim.Optimizer | None = None
        self._residual: dict[str, Tensor] = {}
        train_factors(self.model, self._trained_kinds)

    def shared(self) -> dict[str, Tensor]:
        """Copies of the factors that leave the site, by wire name."""
        return read_factors(self.model, self._mode.shared)

    def initial(self) -> dict[str, Tensor]:
        """The shared factors' start at the job's rank, the same at every site."""
        return seeded_factors(self.shared(), self.wanted.rank, self._seed)

    def receive(self, shared: dict[str, Tensor]) -> None:
        """Take the server's factors, cut to this site's rank, and its residual."""
        factors, self._residual = split_residual(shared)
        if self.settings.rank < self.wanted.rank:
            factors = truncate_factors(factors, self.settings.rank).tensors
        write_factors(self.model, factors, self._mode.shared)
        set_residual(self.model, self._residual, self.settings)

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """The backbone as it came, without factors; the next `receive` brings a residual back."""
        with without_lora(self.model):
            set_residual(self.model, {}, self.settings)
            yield

    def parameters(self) -> list[nn.Parameter]:
        """What the optimiser moves, shared and personal, in the order of their names."""
        return [parameter for _, parameter in self._trained()]

    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser of a round: the last round's where it is kept, else a new one."""
        if self._optimizer is None or not self._keeps_optimizer:
            self._optimizer = make_optimizer(self.parameters(), self._job.training)
        return self._optimizer

    @contextmanager
    def personal_alone(self) -> Iterator[None]:
        """Only the personal factors ask for a gradient."""
        train_factors(self.model, self._mode.personal)
        try:
            yield
        finally:
            train_factors(self.model, self._trained_kinds)

    def check_finite(self, round_number: int) -> None:
        """Refuse to keep or send what the last step may have broken.

        Raises:
            DivergedError: A trained factor is NaN or infinite.
        """
        broken = [n for n, p in self._trained() if not bool(torch.isfinite(p).all())]
        if broken:
            raise DivergedError(
                f"round {round_number}: {len(broken)} factors are NaN or infinite after training; "
                f"lower learning_rate (now {self._job.training.learning_rate})"
            )

    def kept(self) -> dict[str, Tensor]:
        """Personal factors and what the optimiser remembers; empty before any training."""
        if not self.has_trained:
            return {}
        kept = read_factors(self.model, self._mode.personal) if self._mode.personal else {}
        if self._optimizer is not None and self._keeps_optimizer:
            kept |= optimizer_tensors(self._optimizer, self._trained_names())
        return kept

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `kept` returned."""
        memory = {name: value for name, value in tensors.items() if name.startswith(PREFIX)}
        own = {name: value for name, value in tensors.items() if name not in memory}
        if self._mode.personal:
            write_factors(self.model, own, self._mode.personal, "this site's state folder")
        if self._keeps_optimizer:
            self._optimizer = make_optimizer(self.parameters(), self._job.training)
            load_optimizer_tensors(self._optimizer, self._trained_names(), memory)
        self.has_trained = True

    def export(self, name: str, folder: Path, directions: slice | None = None) -> None:
        """Write factors, personal ones included, and residual as a PEFT adapter folder.

        Args:
            name: Of the backbone.
            folder: Where to.
            directions: Rows of A and columns of B, at the same scale; None: all.

        Raises:
            OutputError: It cannot be written.
        """
        factors, settings = read_factors(self.model), self.settings
        if directions is not None:
            factors = {
                key: (
                    value[directions] if parse_factor_name(key)[1] == "A" else value[:, directions]
                ).contiguous()
                for key, value in factors.items()
            }
            settings = settings.at_rank(len(range(settings.rank)[directions]))
        export_peft(factors, settings, name, folder, self._residual)

    @property
    def _trained_kinds(self) -> frozenset[Kind]:
        return self._mode.shared | self._mode.personal

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return sorted(
            (name, value) for name, value in self.model.named_parameters() if value.requires_grad
        )

    def _trained_names(self) -> list[str]:
        return [name for name, _ in self._trained()]

    @property
    def _keeps_optimizer(self) -> bool:
        # After svd and stack the coordinates are others, and so moments of the last round mean
        # nothing.
        return self._job.keep_optimizer and self._mode.keeps_basis
