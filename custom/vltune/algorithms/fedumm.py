"""FedUMM: LoRA of a model that understands and generates (arXiv 2601.15390, section 3).

Every site freezes the backbone and trains LoRA on its language model and generation parts; only
factors travel. A site may have questions, captioned images, or both. Beyond the paper: every
aggregation mode of `lora_modes`, a conflict meter, and directions of its own for each task.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vltune.algorithms.lora_job import LoraJob
from vltune.algorithms.lora_site import LoraParticipant
from vltune.algorithms.unified_task import TASKS, UnifiedChoice, UnifiedTask
from vltune.backbones.checkpoint import BackboneConfig
from vltune.backbones.judges import JudgeConfig, judge_hash, load_judge
from vltune.backbones.registry import load_backbone
from vltune.backbones.vision_language import VisionLanguageBackbone
from vltune.config import ConfigError, from_part
from vltune.participant import ShouldStop
from vltune.site_config import AnySiteConfig, require_unified
from vltune.task_routing import check_mode, directions_of

JUDGE = "judge"
"""Key under a site's `weights` of its own copy of the judge."""


@dataclass(frozen=True)
class TaskConfig:
    """The key `tasks` of a job.

    Attributes:
        understanding_weight: Of an answer's loss, > 0.
        generation_weight: Of a picture's loss, > 0.
        measures_conflict: Report the cosine of both tasks' updates.
        routing: Task -> number of LoRA's directions that are its own; empty: all are shared.
    """

    understanding_weight: float = 1.0
    generation_weight: float = 1.0
    measures_conflict: bool = True
    routing: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("understanding_weight", "generation_weight"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"tasks: {name} must be > 0, got {getattr(self, name)}")
        if self.routing and set(self.routing) != set(TASKS):
            raise ConfigError(
                f"tasks: routing needs {' and '.join(TASKS)}, got {sorted(self.routing)}"
            )


@dataclass(frozen=True)
class SamplesConfig:
    """The key `samples` of a job: pictures for the report, drawn where the job was started.

    Attributes:
        prompts: What is drawn; empty: nothing.
        rounds: At most so many of the run's rounds, and the untouched backbone.
    """

    prompts: tuple[str, ...] = ()
    rounds: int = 5

    def __post_init__(self) -> None:
        if self.rounds < 0 or any(not prompt.strip() for prompt in self.prompts):
            raise ConfigError("samples: expected rounds >= 0 and prompts that are not empty")


@dataclass(frozen=True)
class FedUMMConfig:
    """The job's own keys; `LoraJob` has the rest.

    Attributes:
        backbone: The frozen model.
        tasks: Weights, conflict meter, routing.
        judge: Who looks at drawn pictures; None where no site has prompts. A site may name its own
            copy under `weights: {judge: ...}`.
        guidance: Of the pictures that are judged; None: the backbone's default.
        samples: Pictures for the report.
    """

    backbone: BackboneConfig
    tasks: TaskConfig = TaskConfig()
    judge: JudgeConfig | None = None
    guidance: float | None = None
    samples: SamplesConfig = SamplesConfig()

    def __post_init__(self) -> None:
        if self.guidance is not None and not self.guidance > 1:
            raise ConfigError(f"guidance must be > 1, or null, got {self.guidance}")


def read_job(job: Mapping[str, Any]) -> tuple[FedUMMConfig, LoraJob, UnifiedChoice]:
    """Read a job and check what its parts ask of each other.

    Raises:
        ConfigError: A value is wrong, or the aggregation cannot keep routed tasks apart.
    """
    config = from_part(FedUMMConfig, job, "the job")
    parsed = from_part(LoraJob, job, "the job")
    directions = None
    if config.tasks.routing:
        check_mode(parsed.aggregation.description)
        ranks = {task: config.tasks.routing[task] for task in TASKS}
        directions = directions_of(ranks, parsed.lora.rank)
    choice = UnifiedChoice(
        config.tasks.understanding_weight,
        config.tasks.generation_weight,
        config.guidance,
        config.tasks.measures_conflict,
        directions,
    )
    return config, parsed, choice


def build_participant(
    job: Mapping[str, Any], site: AnySiteConfig, site_name: str, state_dir: Path, threads: int
) -> LoraParticipant:
    """Build one site's part of a FedUMM run; the executor finds this function by its dotted path.

    Args:
        job: What to train.
        site: Where the site's data are; `data: unified`.
        site_name: FLARE name.
        state_dir: The site's own folder for this run.
        threads: CPU threads that this process may use.

    Raises:
        ConfigError: The job, or the site's kind of data, is wrong.
    """
    torch.set_num_threads(max(1, threads))
    config, parsed, choice = read_job(job)
    data = require_unified(site)

    def load() -> VisionLanguageBackbone:
        found = data.with_own_weights(config.backbone, config.backbone.model)
        return load_backbone(found, data.device)

    chosen = None
    if config.judge is not None and data.prompt_files:
        chosen = data.with_own_weights(config.judge, JUDGE)

    def build_task(backbone: VisionLanguageBackbone, should_stop: ShouldStop) -> UnifiedTask:
        judge = None if chosen is None else load_judge(chosen, data.device)
        return UnifiedTask(parsed, choice, data, judge, backbone, should_stop)

    def own_facts() -> dict[str, str]:
        return {} if chosen is None else {"judge": judge_hash(chosen)}

    return LoraParticipant(parsed, load, build_task, data, site_name, state_dir, own_facts)
