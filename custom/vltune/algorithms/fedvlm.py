"""FedVLM: personalised LoRA of a vision-language model across sites (arXiv 2507.17088).

W = W0 + (alpha / r) B A_s. Each site trains both factors; `aggregation.mode: plora` averages B and
leaves A_s at its site, beside optimiser and random state. The other modes of `lora_modes` make the
same job a rival: fedavg, ffa, fedsa, svd, fedex, stack, hetlora.

Objective `sft` learns the chosen answer; `dpo` (Rafailov et al. 2023, arXiv 2305.18290, Eq. 7)
learns to prefer it, measured against the model without LoRA.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional as F

from vltune.algorithms.answer_task import AnswerTask, Objective
from vltune.algorithms.encoded_records import AnswerBatch, EncodedRecords
from vltune.algorithms.lora_job import LoraJob
from vltune.algorithms.lora_site import LoraParticipant
from vltune.backbones.checkpoint import BackboneConfig
from vltune.backbones.registry import load_backbone
from vltune.backbones.vision_language import VisionLanguageBackbone
from vltune.config import ConfigError, from_part
from vltune.lora import without_lora
from vltune.site_config import AnySiteConfig, require_answers


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is learnt.

    Attributes:
        name: `sft`, the chosen answer; or `dpo`, the preference.
        beta: Of DPO: how dear it is to leave the model without LoRA, > 0.
    """

    name: Literal["sft", "dpo"] = "sft"
    beta: float = 0.1

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ConfigError(f"objective: beta must be > 0, got {self.beta}")


@dataclass(frozen=True)
class FedVLMConfig:
    """The job's own keys; `LoraJob` has the rest.

    Attributes:
        backbone: The frozen model.
        objective: What is learnt.
    """

    backbone: BackboneConfig
    objective: ObjectiveConfig = ObjectiveConfig()


def sft_loss(backbone: VisionLanguageBackbone, batch: AnswerBatch) -> Tensor:
    """Mean over the batch of the mean negative log-likelihood of a chosen answer's tokens, nats."""
    return backbone.loss(batch.image_tokens, batch.prompts, batch.answers).mean()


def dpo_loss(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    r"""Direct preference optimisation, -mean log sigmoid(beta (m - m_ref)), m = log p_w - log p_l.

    Source: arXiv 2305.18290, Eq. 7.

    Args:
        policy: Log-likelihoods of the chosen and the rejected answer now, (B, 2), nats.
        reference: Of the model without LoRA, (B, 2).
        beta: Strength of the tie to the reference.
    """
    margins = (policy - reference) @ policy.new_tensor([1.0, -1.0])
    return -F.logsigmoid(beta * margins).mean()


class DpoObjective:
    """DPO with the reference's log-likelihoods computed once for all training records.

    Args:
        backbone: With LoRA on it.
        lora: The same model as peft sees it.
        records: Training records, each with a rejected answer.
        beta: See `ObjectiveConfig`.
        batch_size: Records a pass.

    Raises:
        ConfigError: A record has no rejected answer.
    """

    def __init__(
        self,
        backbone: VisionLanguageBackbone,
        lora: PeftModel,
        records: EncodedRecords,
        beta: float,
        batch_size: int = 64,
    ) -> None:
        lacking = sum(record.rejected is None for record in records.records)
        if lacking:
            raise ConfigError(
                f"objective dpo: {lacking} of {len(records)} training records have no rejected "
                "answer. Give `data: preference`, or take objective.name=sft."
            )
        self._backbone, self._beta = backbone, beta
        with torch.inference_mode(), without_lora(lora):
            parts = [
                self._log_likelihoods(records.batch_at(rows))
                for rows in torch.split(torch.arange(len(records)), batch_size)
            ]
        self._reference = torch.cat(parts).clone()

    def __call__(self, batch: AnswerBatch) -> Tensor:
        """Loss of one batch."""
        return dpo_loss(self._log_likelihoods(batch), self._reference[batch.indices], self._beta)

    def _log_likelihoods(self, batch: AnswerBatch) -> Tensor:
        """Chosen and rejected, (B, 2), nats."""
        rejected = [text for text in batch.rejected if text is not None]
        ask = self._backbone.log_likelihood
        chosen = ask(batch.image_tokens, batch.prompts, batch.answers)
        return torch.stack([chosen, ask(batch.image_tokens, batch.prompts, rejected)], dim=1)


def build_participant(
    job: Mapping[str, Any], site: AnySiteConfig, site_name: str, state_dir: Path, threads: int
) -> LoraParticipant:
    """Build one site's part of a FedVLM run; the executor finds this function by its dotted path.

    Args:
        job: What to train.
        site: Where the site's data are.
        site_name: FLARE name.
        state_dir: The site's own folder for this run.
        threads: CPU threads that this process may use.

    Raises:
        ConfigError: The job, or the site's kind of data, is wrong.
    """
    torch.set_num_threads(max(1, threads))
    config = from_part(FedVLMConfig, job, "the job")
    parsed = from_part(LoraJob, job, "the job")
    answers = require_answers(site)

    def objective(
        backbone: VisionLanguageBackbone, lora: PeftModel, records: EncodedRecords
    ) -> Objective:
        if config.objective.name == "dpo":
            return DpoObjective(backbone, lora, records, config.objective.beta)
        return lambda batch: sft_loss(backbone, batch)

    def load() -> VisionLanguageBackbone:
        found = answers.with_own_weights(config.backbone, config.backbone.model)
        return load_backbone(found, answers.device)

    build_task = partial(AnswerTask, parsed, answers, objective)
    return LoraParticipant(parsed, load, build_task, answers, site_name, state_dir)
