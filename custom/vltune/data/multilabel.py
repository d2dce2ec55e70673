"""Images with multi-label truth from COCO instances JSON, the one loader of demo and production."""

import logging
import math
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vltune.data.coco import AnnotationError, CocoInstances, job_names, read_coco
from vltune.data.images import ImageError, bad_images, image_path, read_image
from vltune.data.label_matrix import PRESENT, class_columns, label_matrix

__all__ = [
    "AnnotationError",
    "Box",
    "ImageError",
    "MultiLabelSamples",
    "batches",
    "load_boxes",
    "load_coco_instances",
    "read_image",
]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MultiLabelSamples:
    """Images of one split and their labels, by ascending image id.

    Attributes:
        image_paths: N files.
        labels: (N, C) int8, 1 present, 0 absent, -1 unknown; columns in the order of `classnames`.
        classnames: The C classes of the job.
        num_skipped: Images left out because their file is missing or unreadable.
        num_ignored: Annotations of categories that the job does not use.
        image_ids: N ids of the annotation file.
    """

    image_paths: tuple[Path, ...]
    labels: NDArray[np.int8]
    classnames: tuple[str, ...]
    num_skipped: int = 0
    num_ignored: int = 0
    image_ids: tuple[int, ...] = ()


class Box(NamedTuple):
    """An object: its class column; left, top, width and height in pixels of the annotated image."""

    class_index: int
    x: float
    y: float
    width: float
    height: float


def load_coco_instances(
    annotations: Path,
    images: Path,
    classnames: Sequence[str],
    *,
    unlabelled: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    on_bad_image: Literal["stop", "skip"] = "stop",
    already_read: Callable[[Path], bool] | None = None,
) -> MultiLabelSamples:
    """Read the labels of the job's classes (rules: `label_matrix`) and check every image file.

    Args:
        annotations: COCO instances JSON.
        images: Folder that the `file_name`s are relative to.
        classnames: Classes of the job, C distinct names in order.
        unlabelled: Classes that this site never labelled: without an annotation they are unknown.
            Names that the job does not use are allowed, since one site file serves many jobs.
        rename: The file's category name -> the job's class name; several may lead to one class.
        on_bad_image: What a missing or unreadable image does: stop everything, or be left out.
        already_read: Says of an existing file whether it was decoded before (a feature cache knows)
            and needs no check; by default every file is decoded once. It is called for each image
            and may raise to end a long check.

    Returns:
        Samples by ascending image id.

    Raises:
        AnnotationError: The file is wrong (`read_coco`), lacks a class, contradicts itself, or
            leaves no present label or no readable image.
        ImageError: A name leaves the folder, the folder is missing, or `stop` met bad images.
    """
    coco = read_coco(annotations)
    columns = class_columns(coco, classnames, rename or {}, unlabelled)
    labels, num_ignored = label_matrix(coco, columns, classnames, unlabelled)
    if not (labels == PRESENT).any():
        raise AnnotationError(
            f"{annotations}: no annotation is of one of the job's {len(classnames)} classes. "
            "Check that this is the right file."
        )
    paths = _paths(coco, images)
    bad = bad_images(paths, [_was_read(path, already_read) for path in paths])
    if bad and on_bad_image == "stop":
        raise _bad_images_error(annotations, bad, len(paths))
    kept = [index for index in range(len(paths)) if index not in bad]
    if not kept:
        raise AnnotationError(f"{annotations}: none of its images can be read: {bad[0]}")
    log.info("%d images, %d skipped, %d annotations ignored", len(kept), len(bad), num_ignored)
    identities = list(coco.images)
    return MultiLabelSamples(
        image_paths=tuple(paths[index] for index in kept),
        labels=labels[kept],
        classnames=tuple(classnames),
        num_skipped=len(bad),
        num_ignored=num_ignored,
        image_ids=tuple(identities[index] for index in kept),
    )


def load_boxes(
    annotations: Path,
    classnames: Sequence[str],
    image_ids: Sequence[int],
    *,
    rename: Mapping[str, str] | None = None,
) -> tuple[tuple[Box, ...], ...]:
    """Read the boxes of single objects (crowds left out), one tuple for each of `image_ids`.

    Raises:
        AnnotationError: The file is wrong, an image id is not in it, or a box is not four finite
            numbers with width and height >= 0.
    """
    coco = read_coco(annotations)
    strange = [identity for identity in image_ids if identity not in coco.images]
    if strange:
        raise AnnotationError(
            f"{annotations}: has no image {strange[0]}. Give the file that the samples came from."
        )
    index = {name: column for column, name in enumerate(classnames)}
    named = job_names(coco, rename or {})
    columns = {identity: index[name] for identity, name in named.items() if name in index}
    boxes: dict[int, list[Box]] = defaultdict(list)
    for record in coco.annotations:
        if record["category_id"] in columns and not record.get("iscrowd", 0):
            box = _box(record, columns[record["category_id"]], annotations)
            boxes[record["image_id"]].append(box)
    return tuple(tuple(boxes[identity]) for identity in image_ids)


def batches(num_examples: int, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Shuffle 0 ... num_examples - 1 and cut; the last batch may be smaller, none is dropped.

    Returns:
        Index tensors (B,), int64. The same generator state gives the same batches.

    Raises:
        ValueError: A count below 1.
    """
    if num_examples < 1 or batch_size < 1:
        raise ValueError(
            f"num_examples {num_examples} and batch_size {batch_size} must both be at least 1"
        )
    order = torch.randperm(num_examples, generator=generator)
    return [order[start : start + batch_size] for start in range(0, num_examples, batch_size)]


def _paths(coco: CocoInstances, folder: Path) -> list[Path]:
    if not os.path.isdir(folder):
        raise ImageError(f"{folder}: no such image folder. Correct `images:` in vltune_site.yaml.")
    return [
        image_path(folder, record["file_name"], f"{coco.source}: image {identity}")
        for identity, record in coco.images.items()
    ]


def _was_read(path: Path, already_read: Callable[[Path], bool] | None) -> bool:
    return already_read is not None and os.path.isfile(path) and already_read(path)


def _bad_images_error(source: Path, bad: dict[int, ImageError], total: int) -> ImageError:
    shown = "".join(f"\n  {error}" for error in list(bad.values())[:5])
    more = f"\n  and {len(bad) - 5} more" if len(bad) > 5 else ""
    return ImageError(
        f"{source}: {len(bad)} of {total} images cannot be used:{shown}{more}\n"
        "Mend them, or set `on_bad_image: skip` in vltune_site.yaml to leave them out."
    )


def _box(record: dict[str, Any], column: int, source: Path) -> Box:
    corners = record.get("bbox")
    if (
        not isinstance(corners, list)
        or len(corners) != 4
        or not all(type(value) in (int, float) and math.isfinite(value) for value in corners)
        or min(corners[2:]) < 0
    ):
        raise AnnotationError(
            f"{source}: annotation {record['id']}: bbox {str(corners)[:80]}; expected "
            "[x, y, width, height] in pixels, width and height not negative."
        )
    x, y, width, height = map(float, corners)
    return Box(column, x, y, width, height)
