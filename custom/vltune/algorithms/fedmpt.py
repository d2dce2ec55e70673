"""FedMPT: federated multi-label prompt tuning (arXiv 2605.28347), `variant: paper`.

One step a line: condition prompts -> text features (K, C, D); per-condition adapters on frozen
patch features -> similarities (B, K, M, C); condition-guided optimal transport -> scores psi
(B, K, C); a gate over conditions -> logits (B, C); asymmetric loss with unknown labels masked.
Prompts, adapters, gate and head are shared; nothing is personal; the two towers are frozen and
live outside the model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from vltune.adapters import ConditionAdapters
from vltune.algorithms.encoded_split import FeatureBatch
from vltune.algorithms.multilabel_site import MultiLabelParticipant, make_participant
from vltune.backbones.clip import ClipBackbone
from vltune.conditions import ConditionSet
from vltune.config import ConfigError, from_mapping
from vltune.gating import ConditionGate, combine
from vltune.losses import asymmetric_loss
from vltune.optimal_transport import TransportConfig, TransportResult, transport
from vltune.prompts import ConditionPrompts, condition_text_features
from vltune.seed import derive_seed, torch_generator
from vltune.site_config import AnySiteConfig, require_multilabel


@dataclass(frozen=True)
class LossConfig:
    """Asymmetric loss (Ridnik et al. 2021) with the values of the authors' runs."""

    gamma_neg: float = 2.0
    gamma_pos: float = 1.0
    clip: float = 0.05

    def __post_init__(self) -> None:
        if min(self.gamma_neg, self.gamma_pos) < 0 or not 0 <= self.clip < 1:
            raise ConfigError(
                "loss: needs gamma_neg and gamma_pos >= 0 and clip in [0, 1), got "
                f"{self.gamma_neg}, {self.gamma_pos} and {self.clip}"
            )


@dataclass(frozen=True)
class FedMPTConfig:
    """Architecture. Each part is one value, which gives the ablation of the paper.

    Attributes:
        variant: `paper` is the text of arXiv 2605.28347 with the smallest completion that works.
        prompts: Learn prompt contexts; False keeps "a photo of a CONDITION ... CLASS." frozen.
        adapters: Per-condition residual adapters on patch features.
        use_transport: Optimal transport; False pools patches by softmax instead.
        gate: Weigh conditions by the image; False takes their mean.
        condition_length: Learnable tokens before the condition's words, the paper's L_cond = 4.
        class_length: Learnable tokens before the class words, the paper's L_cls = 4.
        rank: Of the adapters, the paper's D_s = 32.
        alpha: Adapter scale is alpha / rank.
        gate_rank: Width of the low-rank router.
        gate_input: What the router sees.
        head_scale: Initial scale before the sigmoid; learnt. A unit-mass plan makes psi about
            sim / C, hence the factor C inside psi and a learnt scale and bias (spec: a working
            head needs them).
        head_bias: Initial bias; learnt.
        transport: Marginals, epsilon, solver.
        loss: Asymmetric loss.
    """

    variant: Literal["paper"] = "paper"
    prompts: bool = True
    adapters: bool = True
    use_transport: bool = True
    gate: bool = True
    condition_length: int = 4
    class_length: int = 4
    rank: int = 32
    alpha: float = 32.0
    gate_rank: int = 8
    gate_input: Literal["image", "image_and_psi"] = "image"
    head_scale: float = 10.0
    head_bias: float = -4.0
    transport: TransportConfig = field(default_factory=TransportConfig)
    loss: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        if min(self.condition_length, self.class_length, self.rank, self.gate_rank) < 1:
            raise ConfigError("condition_length, class_length, rank and gate_rank must be >= 1")
        if self.head_scale <= 0:
            raise ConfigError(f"head_scale must be > 0, got {self.head_scale}")
        if not (self.prompts or self.adapters or self.gate):
            raise ConfigError(
                "prompts, adapters and gate are all off: only the head would be trained"
            )


class FedMPTOutput(NamedTuple):
    """Predictions and what they are made of.

    Attributes:
        logits: (B, C).
        condition_logits: (B, K, C).
        gate: Weights of the conditions, (B, K), rows sum to 1.
        plan: Transport plan (B, K, M, C) with its convergence; None without transport.
    """

    logits: Tensor
    condition_logits: Tensor
    gate: Tensor
    plan: TransportResult | None


class FedMPT(nn.Module):
    """The trained part of FedMPT; its state dict holds shared tensors only.

    Args:
        config: Architecture.
        backbone: Frozen CLIP.
        conditions: K condition names.
        classnames: C class names.
        seed: Run seed; the same at every site, so that all start from the same tensors.
    """

    def __init__(
        self,
        config: FedMPTConfig,
        backbone: ClipBackbone,
        conditions: Sequence[str],
        classnames: Sequence[str],
        seed: int,
    ) -> None:
        super().__init__()
        self.config = config
        self.logit_scale = backbone.logit_scale
        generator = torch_generator(derive_seed(seed, "server", 0, "initial"))
        K, D = len(conditions), backbone.embed_dim
        self.prompts: ConditionPrompts | None = None
        if config.prompts:
            self.prompts = ConditionPrompts(
                backbone,
                conditions,
                classnames,
                condition_length=config.condition_length,
                class_length=config.class_length,
                generator=generator,
            )
        else:
            frozen = condition_text_features(backbone, conditions, classnames)
            self.register_buffer("frozen_text", frozen, persistent=False)
        self.adapters: ConditionAdapters | None = None
        if config.adapters:
            self.adapters = ConditionAdapters(K, D, config.rank, config.alpha, generator)
        self.gate: ConditionGate | None = None
        if config.gate:
            psi_classes = len(classnames) if config.gate_input == "image_and_psi" else 0
            self.gate = ConditionGate(D, K, config.gate_rank, psi_classes, generator)
        self.head_scale = nn.Parameter(torch.tensor(config.head_scale).log())
        self.head_bias = nn.Parameter(torch.tensor(config.head_bias))

    def text_features(self) -> Tensor:
        """Text features of every condition and class, (K, C, D), unit norm."""
        if self.prompts is not None:
            features: Tensor = self.prompts()
            return features
        return self.get_buffer("frozen_text")

    def forward(
        self, patch_features: Tensor, image_features: Tensor, text_features: Tensor | None = None
    ) -> FedMPTOutput:
        """Predict.

        Args:
            patch_features: (B, M, D), unit norm.
            image_features: (B, D), unit norm.
            text_features: (K, C, D) from `text_features()`, to encode texts once for many batches.
        """
        text = self.text_features() if text_features is None else text_features
        if self.adapters is not None:
            similarity = self.adapters.cosine_similarity(patch_features, text)
        else:
            similarity = torch.einsum("bmd,kcd->bkmc", patch_features, text)
        psi, plan = self._scores(similarity)
        condition_logits = self.head_scale.exp() * psi + self.head_bias
        if self.gate is not None:
            uses_psi = self.config.gate_input == "image_and_psi"
            gate = self.gate(image_features, psi if uses_psi else None)
        else:
            gate = psi.new_full(psi.shape[:2], 1 / psi.shape[1])
        return FedMPTOutput(combine(condition_logits, gate), condition_logits, gate, plan)

    def _scores(self, similarity: Tensor) -> tuple[Tensor, TransportResult | None]:
        """Pool patches: similarity (B, K, M, C) -> psi (B, K, C)."""
        if self.config.use_transport:
            return transport(similarity, self.logit_scale, self.config.transport)
        weights = (self.logit_scale * similarity).softmax(dim=-2)
        return (weights * similarity).sum(dim=-2), None

    def loss(self, batch: FeatureBatch) -> Tensor:
        """Asymmetric loss of one batch, scalar."""
        logits = self(batch.patch_features, batch.image_features).logits
        loss = self.config.loss
        return asymmetric_loss(
            logits,
            batch.labels,
            gamma_neg=loss.gamma_neg,
            gamma_pos=loss.gamma_pos,
            clip=loss.clip,
        )

    def example_losses(self, batch: FeatureBatch) -> list[Tensor]:
        """Loss of each image alone, B scalars, over one encoding of the texts.

        Their mean is `loss` but for the transport, which stops when all of its batch converged.
        """
        text, weights = self.text_features(), self.config.loss
        losses = []
        for row in range(len(batch.labels)):
            one = FeatureBatch(*(part[row : row + 1] for part in batch))
            logits = self(one.patch_features, one.image_features, text).logits
            losses.append(
                asymmetric_loss(
                    logits,
                    one.labels,
                    gamma_neg=weights.gamma_neg,
                    gamma_pos=weights.gamma_pos,
                    clip=weights.clip,
                )
            )
        return losses

    def predictor(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Encode texts once; return (patch_features, image_features) -> logits (B, C)."""
        text = self.text_features()
        return lambda patches, images: self(patches, images, text).logits

    def shared_keys(self) -> frozenset[str]:
        """All of the state dict: FedMPT shares prompts, adapters, gate and head."""
        return frozenset(self.state_dict())

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Parameters in a fixed order."""
        return [parameter for _, parameter in sorted(self.named_parameters())]


def build_participant(
    job: Mapping[str, Any], site: AnySiteConfig, site_name: str, state_dir: Path, threads: int
) -> MultiLabelParticipant:
    """Build one site's part of a FedMPT run; the executor finds this function by its dotted path.

    Args:
        job: Seed, classnames, conditions, backbone, model, training.
        site: Where the site's data are.
        site_name: FLARE name.
        state_dir: Where the site keeps count of its privacy; FedMPT keeps nothing personal.
        threads: CPU threads of this process.
    """
    torch.set_num_threads(threads)
    config = from_mapping(FedMPTConfig, job.get("model", {}), "the job's model")

    def build_model(backbone: ClipBackbone, conditions: ConditionSet, seed: int) -> FedMPT:
        return FedMPT(config, backbone, conditions.names, conditions.classnames, seed)

    return make_participant(job, build_model, require_multilabel(site), site_name, state_dir)
