"""Choose a few images of the global test set and write down what the trained model sees in them."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vltune.algorithms.encoded_split import EncodedSplit
from vltune.algorithms.fedmpt import FedMPT
from vltune.backbones.clip import ClipBackbone
from vltune.data.multilabel import read_image
from vltune.seed import derive_seed, torch_generator
from vltune_lab.report.example_file import (
    Example,
    Prediction,
    RegionMap,
    encode_png,
    save_examples,
)

NUM_IMAGES = 6
MAX_MAPS = 5
MAX_OTHERS = 3
THUMBNAIL_PIXELS = 224


def write_examples(
    run_folder: Path,
    model: FedMPT,
    backbone: ClipBackbone,
    global_test: EncodedSplit,
    conditions: Sequence[str],
    *,
    seed: int,
    num_images: int = NUM_IMAGES,
) -> Path:
    """Write examples.json: images, scores, gate weights and region maps.

    Args:
        run_folder: Where it goes.
        model: The trained model.
        backbone: The frozen CLIP that made the features.
        global_test: The test set that the job owns. Never a site's data: the images are copied.
        conditions: K names.
        seed: Run seed; the same seed chooses the same images.
        num_images: How many, at most.

    Returns:
        The file's path.
    """
    chosen = choose_images(global_test.samples.labels, seed, num_images)
    examples = []
    if chosen:
        batch = global_test.batch_at(torch.tensor(chosen))
        model.eval()
        with torch.no_grad():
            output = model(batch.patch_features, batch.image_features)
        scores = torch.sigmoid(output.logits)  # (B, C)
        maps = None if output.plan is None else region_maps(output.plan.plan, output.gate)
        for row, index in enumerate(chosen):
            labels = global_test.samples.labels[index]
            image = read_image(global_test.samples.image_paths[index])
            examples.append(
                Example(
                    index=index,
                    image_png=encode_png(as_seen(backbone.preprocess, image)),
                    gate=tuple(_rounded(output.gate[row])),
                    predictions=_predictions(scores[row], labels, global_test.samples.classnames),
                    maps=()
                    if maps is None
                    else _maps_of(
                        maps[row], labels, global_test.samples.classnames, backbone.patch_grid
                    ),
                )
            )
    return save_examples(run_folder, seed, conditions, examples)


def choose_images(labels: NDArray[np.int8], seed: int, num_images: int) -> list[int]:
    """Draw images with two labels or more; where there are none, with one.

    Args:
        labels: (N, C), 1 present.
        seed: Run seed.
        num_images: How many, at most.

    Returns:
        Ascending rows.
    """
    present = (labels == 1).sum(axis=1)
    candidates = np.flatnonzero(present >= min(2, int(present.max(initial=0))))
    candidates = candidates[present[candidates] > 0]
    generator = torch_generator(derive_seed(seed, "server", 0, "examples"))
    order = torch.randperm(len(candidates), generator=generator)[:num_images]
    return sorted(int(candidates[int(place)]) for place in order)


def region_maps(plan: Tensor, gate: Tensor) -> Tensor:
    """Average the conditions' transport plans by the gate and normalise each class to 1.

    Args:
        plan: (B, K, M, C), >= 0.
        gate: (B, K), rows sum to 1.

    Returns:
        Shares of each class's mass by patch, (B, M, C); zero for a class without mass.
    """
    mass = torch.einsum("bk,bkmc->bmc", gate, plan)
    return mass / mass.sum(dim=1, keepdim=True).clamp_min(torch.finfo(mass.dtype).tiny)


def as_seen(preprocess: Callable[[Any], Tensor], image: Image.Image) -> bytes:
    """PNG of what the image tower gets: resized and cropped, with the colours undone.

    Preprocessing maps colours linearly, channel by channel; what it makes of black and of white
    says how, whatever the checkpoint's mean and standard deviation are.
    """
    pixels = preprocess(image)  # (3, H, W)
    middle = (slice(None), pixels.shape[1] // 2, pixels.shape[2] // 2)
    black = preprocess(Image.new("RGB", image.size, "black"))[middle][:, None, None]
    white = preprocess(Image.new("RGB", image.size, "white"))[middle][:, None, None]
    levels = ((pixels - black) / (white - black) * 255).round().clamp(0, 255)
    picture = Image.fromarray(levels.byte().permute(1, 2, 0).numpy())
    picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _predictions(
    scores: Tensor, labels: NDArray[np.int8], classnames: Sequence[str]
) -> tuple[Prediction, ...]:
    """Every present label and the strongest others, by falling score."""
    order = [int(column) for column in scores.argsort(descending=True, stable=True)]
    others = [column for column in order if labels[column] != 1][:MAX_OTHERS]
    kept = [column for column in order if labels[column] == 1 or column in others]
    return tuple(
        Prediction(classnames[column], round(float(scores[column]), 4), int(labels[column]))
        for column in kept
    )


def _maps_of(
    mass: Tensor,
    labels: NDArray[np.int8],
    classnames: Sequence[str],
    patch_grid: tuple[int, int],
) -> tuple[RegionMap, ...]:
    """Region maps of the present labels; a label that got no mass has none."""
    present = [column for column in np.flatnonzero(labels == 1) if mass[:, column].sum() > 0]
    return tuple(
        RegionMap(
            classnames[column],
            tuple(tuple(_rounded(row)) for row in mass[:, column].reshape(patch_grid)),
        )
        for column in present[:MAX_MAPS]
    )


def _rounded(values: Tensor) -> list[float]:
    return [round(min(max(float(value), 0.0), 1.0), 6) for value in values]
