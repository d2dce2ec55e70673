"""A site's task where it answers, draws, or does both: data, losses, measurement.

The records of both tasks are one pool, and a batch is drawn from all of it, so that a site's mix of
tasks is its mix of records. Over a batch of B records,

    L = (w_u sum_i L_u(i) + w_g sum_j L_g(j)) / B.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from peft import PeftModel
from torch import Tensor

from vltune.algorithms.encoded_drawings import DrawingBatch
from vltune.algorithms.encoded_records import AnswerBatch
from vltune.algorithms.lora_job import LoraJob
from vltune.algorithms.unified_metrics import (
    measure_drawing_loss,
    measure_drawings,
    measure_understanding,
)
from vltune.algorithms.unified_splits import Encoded, encode_splits
from vltune.backbones.unified import UnifiedBackbone
from vltune.backbones.vision_language import VisionLanguageBackbone
from vltune.geneval import Judge
from vltune.participant import ShouldStop, never
from vltune.seed import derive_seed, torch_generator
from vltune.site_settings import UnifiedSiteConfig
from vltune.task_conflict import OVERALL, ConflictMeter
from vltune.task_routing import TaskRouting

UNDERSTANDING = "understanding"
GENERATION = "generation"
TASKS = (UNDERSTANDING, GENERATION)


@dataclass(frozen=True)
class UnifiedChoice:
    """What of a job decides how both tasks are trained and measured.

    Attributes:
        understanding_weight: w_u, > 0.
        generation_weight: w_g, > 0.
        guidance: Of the pictures that are judged; None: the backbone's default.
        measures_conflict: Whether the conflict meter runs.
        directions: Task -> its rows of every A; None: both tasks share all.
    """

    understanding_weight: float = 1.0
    generation_weight: float = 1.0
    guidance: float | None = None
    measures_conflict: bool = True
    directions: dict[str, slice] | None = None


class UnifiedBatch(NamedTuple):
    """Some records of the pool; None where the batch has none of a task."""

    understanding: AnswerBatch | None
    drawing: DrawingBatch | None
    size: int


class UnifiedTask:
    """Both tasks of one site, as `lora_site.SiteTask`.

    Args:
        job: Seed, most tokens of an answer, records a pass.
        choice: Weights, routing, meter.
        site: Where the data are.
        judge: Of drawn prompts; needed only by a site that has some.
        backbone: Frozen; a site without captions and prompts may have one that cannot draw.
        should_stop: Asked between images.

    Raises:
        ConfigError: The data need a backbone that draws, or a judge.
        RecordError: The data are wrong.
        TrainingStopped: `should_stop` returned True.
    """

    headlines: tuple[str, ...] = ("vqa_accuracy", "generation_loss", "geneval")

    def __init__(
        self,
        job: LoraJob,
        choice: UnifiedChoice,
        site: UnifiedSiteConfig,
        judge: Judge | None,
        backbone: VisionLanguageBackbone,
        should_stop: ShouldStop,
    ) -> None:
        self._job, self._choice, self._judge, self._backbone = job, choice, judge, backbone
        # Asked once: the check of a protocol reads every property, and each step needs the answer.
        self._drawer = backbone if isinstance(backbone, UnifiedBackbone) else None
        splits = encode_splits(job, site, judge, backbone, should_stop)
        self.train, self.validation, self.test = splits.train, splits.validation, splits.test
        self._routing: TaskRouting | None = None
        self._meter: ConflictMeter | None = None
        self._sums: dict[str, tuple[float, int]] = {}

    @property
    def num_examples(self) -> int:
        """Training records of both tasks."""
        return len(self.train)

    @property
    def num_validation(self) -> int:
        """Validation records of both tasks, and prompts."""
        return len(self.validation) + len(self.validation.prompts)

    def begin(self, lora: PeftModel) -> None:
        """Set up masks and meter on the factors."""
        if self._choice.directions is not None:
            self._routing = TaskRouting(lora, self._choice.directions)
        has_both = self.train.understanding is not None and self.train.drawing is not None
        if has_both and self._choice.measures_conflict:
            self._meter = ConflictMeter(
                {name: value for name, value in lora.named_parameters() if value.requires_grad}
            )

    def start_round(self, seed: int) -> None:
        """Draw this round's times, noise and dropped prompts from `seed`."""
        self._generator = torch_generator(derive_seed(seed, "", 0, "drawing"))
        self._sums = {}
        if self._meter is not None:
            self._meter.reset()
        if self._routing is not None:
            parts = (self.train.understanding, self.train.drawing)
            idle = [task for task, part in zip(TASKS, parts, strict=True) if part is None]
            self._routing.hold(idle)

    def end_round(self) -> None:
        """Give the directions of a task that the site has no data for back as they were."""
        if self._routing is not None:
            self._routing.release()

    def batch_at(self, indices: Tensor) -> UnifiedBatch:
        """Some training records: rows of the questions first, then those of the captions."""
        split = self.train.num_understanding
        asked, drawn = indices[indices < split], indices[indices >= split] - split
        understanding, drawing = self.train.understanding, self.train.drawing
        return UnifiedBatch(
            understanding.batch_at(asked) if understanding is not None and len(asked) else None,
            drawing.batch_at(drawn) if drawing is not None and len(drawn) else None,
            len(indices),
        )

    def loss(self, batch: UnifiedBatch) -> Tensor:
        """Weighted mean over the batch's records of both tasks; differentiable."""
        return torch.stack([term for _, term in self._terms(batch)]).sum()

    def backward(self, batch: UnifiedBatch) -> Tensor:
        """Add both tasks' gradients one after the other, which the meter watches."""
        total = torch.zeros(())
        for task, term in self._terms(batch):
            term.backward()  # type: ignore[no-untyped-call] # torch's stub
            if self._meter is not None:
                self._meter.took(task)
            total = total + term.detach().cpu()
        if self._meter is not None:
            self._meter.end_step()
        return total

    def _terms(self, batch: UnifiedBatch) -> Iterator[tuple[str, Tensor]]:
        """Each task of a batch with its share of the loss, computed when it is asked for."""
        asked, drawn = batch.understanding, batch.drawing
        if asked is not None:
            with self._only(UNDERSTANDING):
                losses = self._backbone.loss(asked.image_tokens, asked.prompts, asked.answers)
            yield UNDERSTANDING, self._count(UNDERSTANDING, losses) / batch.size
        if drawn is not None:
            with self._only(GENERATION):
                losses = self._artist.generation_loss(
                    drawn.targets, drawn.prompts, generator=self._generator
                )
            yield GENERATION, self._count(GENERATION, losses) / batch.size

    def round_metrics(self) -> dict[str, float]:
        """Mean training loss of each task, and the cosine of their updates."""
        metrics = {f"loss_{task}": total / count for task, (total, count) in self._sums.items()}
        if self._meter is not None:
            cosines = self._meter.cosines(UNDERSTANDING, GENERATION)
            if OVERALL in cosines:
                metrics["task_cosine"] = cosines[OVERALL]
            for number, layer in enumerate(self._meter.layers, 1):
                if layer in cosines:
                    metrics[f"task_cosine_{number}"] = cosines[layer]
        return metrics

    def measure_validation(self, should_stop: ShouldStop = never) -> dict[str, float]:
        """`vqa_accuracy`, `generation_loss` and `geneval...`: what the site has data for."""
        return self._measure(self.validation, should_stop)

    def measure_test(self, should_stop: ShouldStop = never) -> dict[str, float]:
        """The same of the test data; empty without any."""
        return {} if self.test is None else self._measure(self.test, should_stop)

    def adapters(self) -> dict[str, slice | None]:
        """One of both tasks, or one of each where they are routed."""
        return {"": None} if self._routing is None else dict(self._routing.rows)

    def _measure(self, part: Encoded, should_stop: ShouldStop) -> dict[str, float]:
        seed = derive_seed(self._job.seed, "", 0, "measured drawings")
        size = self._job.batch_size
        metrics: dict[str, float] = {}
        if part.understanding is not None:
            with self._only(UNDERSTANDING):
                metrics |= measure_understanding(
                    self._backbone,
                    part.understanding,
                    batch_size=size,
                    max_tokens=self._job.max_answer_tokens,
                    should_stop=should_stop,
                )
        with self._only(GENERATION):
            if part.drawing is not None:
                metrics |= measure_drawing_loss(
                    self._artist,
                    part.drawing,
                    batch_size=size,
                    seed=seed,
                    should_stop=should_stop,
                )
            if part.prompts and self._judge is not None:
                metrics |= measure_drawings(
                    self._artist,
                    self._judge,
                    part.prompts,
                    batch_size=size,
                    seed=seed,
                    guidance=self._choice.guidance,
                    should_stop=should_stop,
                )
        return metrics

    def _only(self, task: str) -> AbstractContextManager[None]:
        return nullcontext() if self._routing is None else self._routing.only(task)

    def _count(self, task: str, losses: Tensor) -> Tensor:
        """The sum of some records' losses under their task's weight; keeps the plain mean."""
        total, count = self._sums.get(task, (0.0, 0))
        summed = losses.sum()
        self._sums[task] = (total + summed.item(), count + len(losses))
        is_asked = task == UNDERSTANDING
        weight = self._choice.understanding_weight if is_asked else self._choice.generation_weight
        return weight * summed

    @property
    def _artist(self) -> UnifiedBackbone:
        """The backbone where it draws: captions and prompts were refused otherwise."""
        assert self._drawer is not None
        return self._drawer
