"""The sites' shared tensors to the next global ones; what is not in order is refused, with reason.

A weighted mean of every tensor, or one of the ways to join LoRA's factors (`lora_modes`); either
under a rule against bad updates (`robust_aggregation`).
"""

import logging
from collections.abc import Mapping
from typing import Any

from nvflare.apis.dxo import MetaKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.aggregators.model_aggregator import ModelAggregator
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from torch import Tensor

from vltune.compatibility import check_features, feature_of_filter, features_of
from vltune.config import ConfigError, from_mapping
from vltune.flare.exchange import ExchangeError, to_arrays
from vltune.flare.failure import shown
from vltune.flare.federation import WeightBy
from vltune.flare.intake import read_update
from vltune.histograms import HistogramError
from vltune.lora_aggregation import aggregate
from vltune.lora_contract import LoraContract
from vltune.lora_exactness import Exactness
from vltune.lora_factors import LoraError
from vltune.lora_modes import LoraAggregation
from vltune.lora_ranks import cut_like
from vltune.lora_residual import split_residual
from vltune.parameters import LocalUpdate, ParameterError, check_shared, spec_of, update_norm
from vltune.robust_aggregation import Decision, RobustAggregation, combine, screen
from vltune.robust_rules import weighted_mean

META_SITE = "client_name"
"""Where FLARE's own controllers put the sender's name."""
SPARE_VALUES = 1_000_000


log = logging.getLogger(__name__)


class RejectedUpdateError(ValueError):
    """A site's update was refused; the round goes on without it. The text is safe to log."""

    def __init__(self, reason: str) -> None:
        super().__init__(shown(reason))


class ValidatingAggregator(ModelAggregator):
    """FedAvg over full shared tensors under a strict key set.

    x = sum_s w_s x_s / sum_s w_s, w_s = num_examples or 1. Updates are kept until the end of the
    round, sorted by site and accumulated in fp64, so that the order of arrival cannot change a bit
    and one site alone gets back exactly what it sent.

    Args:
        weight_by: Weights of the mean.
        max_update_norm: Euclidean distance from the global model beyond which an update is refused.
        aggregation: The job's `aggregation` (`LoraAggregation`) where the tensors are LoRA's
            factors; None takes the weighted mean of every tensor.
        robust: The job's `federation.robust` (`RobustAggregation`); None is rule none.

    Raises:
        ConfigError: A wrong key or value, or parts that do not go together (`compatibility`).
    """

    def __init__(
        self,
        weight_by: WeightBy = "num_examples",
        max_update_norm: float = 1000.0,
        aggregation: dict[str, Any] | None = None,
        robust: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.aggregation = aggregation
        self.robust = robust
        self._lora = lora_aggregation(aggregation, weight_by)
        self._robust = from_mapping(RobustAggregation, robust or {}, "the job's federation.robust")
        self._features = features_of(self._lora, self._robust)
        check_features(self._features, "the job")
        self.exactness: Exactness | None = None
        self.decisions: tuple[Decision, ...] = ()
        self.weight_by = weight_by
        self.max_update_norm = max_update_norm
        self._updates: dict[str, LocalUpdate] = {}
        self._global: dict[str, Tensor] = {}
        self._contract: LoraContract | None = None
        self._round: int | None = None
        self._announced: dict[str, int] = {}

    def start_round(
        self,
        round_number: int,
        global_tensors: Mapping[str, Tensor],
        announced: Mapping[str, int] | None = None,
    ) -> None:
        """Forget earlier updates and set what this round's are measured against.

        Args:
            round_number: Updates of another round are refused.
            global_tensors: The model that was sent out.
            announced: Site -> training images it named before round 0; others are refused.
        """
        self.reset_stats()
        self._round = round_number
        self._global = dict(global_tensors)
        self._contract = None
        self._announced = dict(announced or {})

    def accept(self, shareable: Shareable, fl_ctx: FLContext) -> bool:
        """Take an update on FLARE's ScatterAndGather path, where raising would end the round."""
        self.fl_ctx = fl_ctx
        peer = fl_ctx.get_peer_context()
        try:
            model = FLModelUtils.from_shareable(shareable)
            model.meta[META_SITE] = peer.get_identity_name() if peer else ""
            self.accept_model(model)
        except (RejectedUpdateError, ExchangeError) as error:
            self.warning(str(error))
            return False
        return True

    def accept_model(self, model: FLModel) -> LocalUpdate:
        """Check one update and keep it.

        Raises:
            RejectedUpdateError: Anything is not as agreed; the message names site and reason.
        """
        site = str(model.meta.get(META_SITE) or "")
        if not site:
            raise RejectedUpdateError("update without a sender")
        try:
            self._check_sender(site, model)
            update = read_update(model, site, self._most_values())
            self._check_values(site, update)
        except (ExchangeError, HistogramError, ParameterError) as error:
            raise RejectedUpdateError(str(error)) from error
        self._updates[site] = update
        return update

    def refuse_processed(self, site: str, model: FLModel) -> None:
        """Refuse tensors that a site's filter has encrypted or masked, and say why.

        FLARE's filters name themselves in the message's meta. What is linear in what the sites send
        would survive them, but this server checks and adds plain tensors.

        Raises:
            RejectedUpdateError: The message was processed.
        """
        algorithm = model.meta.get(MetaKey.PROCESSED_ALGORITHM)
        if algorithm is None or (isinstance(algorithm, str) and not algorithm):
            return
        if not isinstance(algorithm, str):
            raise RejectedUpdateError(f"{site}: names a filter by a {type(algorithm).__name__}")
        feature = feature_of_filter(algorithm)
        try:
            if self._lora is not None:
                self._lora.require_linear(algorithm)
            if feature is not None:
                check_features(self._features | {feature}, f"its filter {algorithm}")
        except (LoraError, ConfigError) as error:
            raise RejectedUpdateError(f"{site}: {error}") from error
        raise RejectedUpdateError(
            f"{site}: its tensors were processed by {algorithm}, but this server adds plain "
            "tensors; take the filter away."
        )

    def _most_values(self) -> int:
        """Beyond these an update is not looked at; below, its names and shapes tell the reason."""
        return SPARE_VALUES + 2 * sum(tensor.numel() for tensor in self._global.values())

    def _check_sender(self, site: str, model: FLModel) -> None:
        self.refuse_processed(site, model)
        if self._round is None:
            raise RejectedUpdateError(f"{site}: update before the first round")
        if model.current_round != self._round:
            raise RejectedUpdateError(
                f"{site}: update of round {model.current_round}, this is round {self._round}"
            )
        if site in self._updates:
            raise RejectedUpdateError(f"{site}: second update in round {self._round}")
        if self._announced and site not in self._announced:
            raise RejectedUpdateError(f"{site}: does not take part in this run")
        if model.params_type != ParamsType.FULL:
            raise RejectedUpdateError(f"{site}: expected full shared tensors")

    def _check_values(self, site: str, update: LocalUpdate) -> None:
        sent_out, _ = split_residual(self._global)
        if self._lora is None:
            check_shared(spec_of(self._global), update.tensors, site)
        else:
            if self._contract is None:
                self._contract = LoraContract(self._lora.description, sent_out)
            self._contract.check(site, update.tensors)
            if self._robust.rule != "none":  # updates of another rank cannot be compared
                check_shared(spec_of(sent_out), update.tensors, site)
            sent_out = cut_like(sent_out, update.tensors)
        if update.num_examples < 1:
            raise RejectedUpdateError(f"{site}: num_examples is {update.num_examples}, not >= 1")
        announced = self._announced.get(site, update.num_examples)
        if update.num_examples != announced:
            raise RejectedUpdateError(
                f"{site}: num_examples is {update.num_examples}, but it announced {announced}"
            )
        norm = update_norm(update.tensors, sent_out)
        if norm > self.max_update_norm:
            raise RejectedUpdateError(
                f"{site}: the update's norm is {norm:.6g}, max_update_norm is "
                f"{self.max_update_norm:.6g}"
            )

    @property
    def accepted(self) -> dict[str, LocalUpdate]:
        """Updates of this round by site, sorted."""
        return {site: self._updates[site] for site in sorted(self._updates)}

    def average(self) -> dict[str, Tensor]:
        """The next global model, fp32; without any update, the global model itself.

        With an `aggregation` it may hold a residual too, and `exactness` says how far its product
        is from the mean of what was kept of the sites' products. With a rule `decisions` says what
        was done to whom; where it leaves nobody, the global model stays.

        Raises:
            RobustError: Fewer updates than the rule needs.
        """
        updates, self.exactness, self.decisions = self.accepted, None, ()
        if not updates:
            return dict(self._global)
        reference, residual = split_residual(self._global)
        screened = screen(self._robust, reference, {s: u.tensors for s, u in updates.items()})
        self.decisions = screened.decisions
        for decision in self.decisions:
            log.warning("%s %s: %s", decision.site, decision.action, decision.reason)
        kept = screened.updates
        if not kept:
            return dict(self._global)
        counts = [updates[site].num_examples for site in kept]
        num_examples = dict(zip(kept, self._robust.weights(counts), strict=True))
        if self._robust.is_by_coordinate:
            return combine(self._robust, kept, num_examples)
        if self._lora is not None:
            joined = aggregate(self._lora, reference, kept, num_examples, residual)
            self.exactness = joined.exactness
            return joined.tensors | joined.residual
        uniform = self.weight_by == "uniform"
        weights = [1 if uniform else count for count in num_examples.values()]
        return weighted_mean(list(kept.values()), weights)

    def aggregate_model(self) -> FLModel:
        """The round's new global model in FLARE's own type."""
        round_number = self._round
        mean = self.average()
        self.reset_stats()
        return FLModel(
            params_type=ParamsType.FULL, params=to_arrays(mean), current_round=round_number
        )

    def reset_stats(self) -> None:
        """Forget the round's updates."""
        self._updates = {}


def lora_aggregation(
    aggregation: Mapping[str, Any] | None, weight_by: WeightBy
) -> LoraAggregation | None:
    """Read the job's `aggregation`; the federation's `weight_by` holds for it too."""
    if aggregation is None:
        return None
    if "weight_by" in aggregation:
        raise ConfigError("the job's aggregation: weight_by has its place under federation")
    return from_mapping(
        LoraAggregation, {**aggregation, "weight_by": weight_by}, "the job's aggregation"
    )
