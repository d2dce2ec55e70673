"""Endless, seeded batches of pre-training scenes, rendered while the model trains.

Batch number n depends on (seed, n) alone, so that a resumed run sees what an undisturbed one sees.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from vltune_lab.scenes.captions import caption
from vltune_lab.scenes.library import PRETRAINING_STYLES, Library
from vltune_lab.scenes.plan import plan_scene, scene_rng
from vltune_lab.scenes.render import Scene, render_scene
from vltune_lab.scenes.world import Split, load_priors


@dataclass(frozen=True)
class SceneBatch:
    """One batch.

    Attributes:
        images: (B, 3, H, W), uint8.
        labels: Classes in each image, (B, C), bool.
        patch_labels: Class index of the object that fills most of each patch, -1 where none fills
            a quarter of it, (B, M), int64.
        captions: B sentences.
        colours: (image, class index, colour name) of single coloured objects.
    """

    images: Tensor
    labels: Tensor
    patch_labels: Tensor
    captions: list[str]
    colours: list[tuple[int, int, str]]


class StepStream(IterableDataset):
    """Batches `first_step`, `first_step + 1`, ... ; workers take turns, so the order is fixed."""

    def __init__(self, library: Library, *, seed: int, batch_size: int, image_size: int) -> None:
        self.library = library
        self.seed = seed
        self.batch_size = batch_size
        self.image_size = image_size
        self.first_step = 0

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        step, stride = (
            (self.first_step + worker.id, worker.num_workers) if worker else (self.first_step, 1)
        )
        while True:
            yield self.batch(step)
            step += stride

    def batch(self, step: int) -> Any:
        """Make batch number `step`."""
        raise NotImplementedError

    def scenes(self, step: int) -> Iterator[tuple[Scene, np.random.Generator]]:
        """Render the scenes of batch number `step`, each with the rest of its own random stream."""
        for index in range(self.batch_size):
            rng = scene_rng(self.seed, "pretrain", step * self.batch_size + index)
            plan = plan_scene(
                self.library, pretraining_split(), rng, 0.0, mix_styles=bool(rng.random() < 0.5)
            )
            yield (
                render_scene(self.library, plan, self.image_size, rng, is_held_out=False),
                rng,
            )


def pretraining_split() -> Split:
    """All scene types alike, in the styles of pre-training."""
    return Split(
        "pretrain", 0, PRETRAINING_STYLES, dict.fromkeys(load_priors().scenes, 1.0), drawings="all"
    )


class SceneStream(StepStream):
    """Batches of clip-compact."""

    def __init__(
        self,
        library: Library,
        *,
        seed: int,
        batch_size: int,
        image_size: int,
        patch: int,
        first_step: int,
    ) -> None:
        super().__init__(library, seed=seed, batch_size=batch_size, image_size=image_size)
        self.patch = patch
        self.first_step = first_step

    def batch(self, step: int) -> SceneBatch:
        """Render batch number `step`."""
        scenes, captions, images = [], [], []
        for scene, rng in self.scenes(step):
            scenes.append(scene)
            captions.append(caption(scene, rng))
            images.append(vary_colours(scene.image, rng))
        return describe_batch(
            self.library.classnames, scenes, np.stack(images), captions, self.patch
        )


def describe_batch(
    classnames: tuple[str, ...],
    scenes: list[Scene],
    images: np.ndarray,
    captions: list[str],
    patch: int,
) -> SceneBatch:
    """Turn scenes into tensors with image and patch labels."""
    index_of = {name: index for index, name in enumerate(classnames)}
    labels = torch.zeros(len(scenes), len(classnames), dtype=torch.bool)
    patch_labels, colours = [], []
    for row, scene in enumerate(scenes):
        classes = np.array([index_of[item.classname] for item in scene.objects], dtype=np.int64)
        labels[row, torch.from_numpy(classes)] = True
        patch_labels.append(label_patches(scene.owner, classes, patch))
        colours += [(row, index_of[item.classname], item.colour) for item in scene.objects]
    return SceneBatch(
        torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
        labels,
        torch.from_numpy(np.stack(patch_labels)),
        captions,
        colours,
    )


def label_patches(owner: np.ndarray, classes: np.ndarray, patch: int) -> np.ndarray:
    """Class index of the object that fills most of each patch, -1 where none fills a quarter."""
    side = owner.shape[0] // patch
    tiles = (
        owner.reshape(side, patch, side, patch)
        .transpose(0, 2, 1, 3)
        .reshape(side * side, patch * patch)
    )
    counts = np.stack(
        [(tiles == index).sum(axis=1) for index in range(len(classes))] or [np.zeros(side * side)]
    )
    best = counts.argmax(axis=0)
    filled = counts.max(axis=0) >= patch * patch / 4
    if not len(classes):
        return np.full(side * side, -1, dtype=np.int64)
    return np.where(filled, classes[best], -1)


def vary_colours(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Colour changes that leave shapes alone: unseen styles differ in palette above all."""
    draw = rng.random()
    if draw < 0.12:
        grey = image @ np.array([0.3, 0.59, 0.11], dtype=np.float32)
        return np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)
    if draw < 0.22:
        return np.ascontiguousarray(image[..., rng.permutation(3)])
    if draw < 0.52:
        mix = np.eye(3, dtype=np.float32) + rng.normal(0, 0.18, (3, 3)).astype(np.float32)
        return np.clip(image.astype(np.float32) @ mix, 0, 255).astype(np.uint8)
    return image


def make_loader(stream: StepStream, workers: int) -> Iterator[Any]:
    """Render in `workers` background processes (0: in this one), in step order."""
    return iter(
        DataLoader(
            stream, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None
        )
    )
