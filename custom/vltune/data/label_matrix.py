"""Checked COCO annotations to a label matrix of the job's classes: 1, 0 or -1, nothing guessed.

* An annotation, crowds included, makes its class present (1).
* A class that an image has no annotation of is absent (0), unless the site says that it never
  labelled the class (`unlabelled`), or the image says that it was not searched for it: then it is
  unknown (-1). LVIS's two keys of an image are honoured: where `neg_category_ids` is given, only
  those are absent; `not_exhaustive_category_ids` never are.
"""

import difflib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vltune.data.coco import AnnotationError, CocoInstances, job_names, shortened

PRESENT, ABSENT, UNKNOWN = 1, 0, -1


def class_columns(
    coco: CocoInstances,
    classnames: Sequence[str],
    rename: Mapping[str, str],
    unlabelled: Sequence[str],
) -> dict[int, int]:
    """Map category id -> class column; categories that the job does not use are left out.

    Raises:
        AnnotationError: The class names are empty or repeated, or one is neither a category of the
            file (after `rename`) nor declared `unlabelled`.
    """
    index = {name: column for column, name in enumerate(classnames)}
    if len(index) != len(classnames) or not index:
        raise AnnotationError(
            f"{coco.source}: the job's {len(classnames)} class names must be distinct and at least "
            "one. Correct the job's class list."
        )
    named = job_names(coco, rename)
    known = {*named.values(), *unlabelled}
    missing = [name for name in classnames if name not in known]
    if missing:
        hints = _near_names(missing, sorted(named.values()))
        raise AnnotationError(
            f"{coco.source}: {len(missing)} of the job's classes are not among its {len(named)} "
            f"categories: {shortened(missing, 20)}{hints}. In vltune_site.yaml, list classes that "
            "this site never labelled under `unlabelled:` (their labels become unknown), or map "
            "the file's own names to the job's under `rename:`."
        )
    return {identity: index[name] for identity, name in named.items() if name in index}


def label_matrix(
    coco: CocoInstances,
    columns: Mapping[int, int],
    classnames: Sequence[str],
    unlabelled: Sequence[str],
) -> tuple[NDArray[np.int8], int]:
    """Return labels (N, C) by ascending image id, and how many annotations are of other classes.

    Raises:
        AnnotationError: An image has an annotation of a category that it lists as absent.
    """
    labels = np.zeros((len(coco.images), len(classnames)), dtype=np.int8)
    labels[:, [name in unlabelled for name in classnames]] = UNKNOWN
    absent = _apply_searched(labels, coco, columns)
    rows = {identity: row for row, identity in enumerate(coco.images)}
    num_ignored = 0
    for annotation in coco.annotations:
        identity, category = annotation["image_id"], annotation["category_id"]
        if category in absent.get(identity, ()):
            raise AnnotationError(
                f"{coco.source}: annotation {annotation['id']}: image {identity} lists category "
                f"{category} under neg_category_ids, that is as absent. Correct one of the two."
            )
        if category in columns:
            labels[rows[identity], columns[category]] = PRESENT
        else:
            num_ignored += 1
    return labels, num_ignored


def _apply_searched(
    labels: NDArray[np.int8], coco: CocoInstances, columns: Mapping[int, int]
) -> dict[int, frozenset[int]]:
    """Honour LVIS's keys in `labels`; return image id -> categories it declares absent."""
    num_classes = labels.shape[1]
    # A class fed by several categories is absent only where each of them is.
    sources = np.bincount(np.array(list(columns.values()), dtype=int), minlength=num_classes)
    declared = {}
    for row, (identity, record) in enumerate(coco.images.items()):
        if "neg_category_ids" in record:
            absent = declared[identity] = frozenset(record["neg_category_ids"])
            used = np.array([columns[item] for item in absent if item in columns], dtype=int)
            everywhere = (np.bincount(used, minlength=num_classes) == sources) & (sources > 0)
            labels[row] = np.where(everywhere, ABSENT, UNKNOWN)
        for category in record.get("not_exhaustive_category_ids", ()):
            if category in columns:
                labels[row, columns[category]] = UNKNOWN
    return declared


def _near_names(missing: list[str], names: list[str]) -> str:
    folded = {name.casefold(): name for name in names}
    hints = []
    for name in missing[:5]:
        near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.8)
        hints += [f"{folded[match]!r} looks like {name!r}" for match in near]
    return f" ({'; '.join(hints)})" if hints else ""
