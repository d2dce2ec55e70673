"""COCO instances JSON, read and checked as a whole before anything is learnt from it."""

import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Records = dict[int, dict[str, Any]]


class AnnotationError(ValueError):
    """An annotation file is wrong; the message names the file, the entry and the cure."""


@dataclass(frozen=True)
class CocoInstances:
    """A checked annotation file: every reference leads somewhere, every id is there once.

    Attributes:
        source: The file.
        categories: Category id -> name, stripped and in Unicode form NFC.
        images: Image id -> its record, by ascending id.
        annotations: Records with integer `id`, `image_id`, `category_id`; `iscrowd` is 0, 1 or not
            there.
    """

    source: Path
    categories: dict[int, str]
    images: Records
    annotations: list[dict[str, Any]]


def read_coco(path: Path) -> CocoInstances:
    """Read and check a COCO instances file.

    Raises:
        AnnotationError: Missing or empty file, not JSON, not COCO, a missing key, an id twice or of
            the wrong type, an annotation of an unknown image or category, two categories of one
            name, two images of one file.
    """
    content = _read_json(path)
    categories = _by_id(content, "categories", ("name",), path)
    images = _by_id(content, "images", ("file_name",), path)
    annotations = _by_id(content, "annotations", ("image_id", "category_id"), path)
    if not images:
        raise AnnotationError(f"{path}: 'images' is empty. Give a file that lists images.")
    names = _category_names(categories, path)
    _check_images(images, names, path)
    _check_annotations(annotations, images, names, path)
    return CocoInstances(
        source=path,
        categories=names,
        images=dict(sorted(images.items())),
        annotations=list(annotations.values()),
    )


def job_names(coco: CocoInstances, rename: Mapping[str, str]) -> dict[int, str]:
    """Return category id -> name in the words of the job, after the site's `rename`.

    Raises:
        AnnotationError: `rename` names a category that the file does not have.
    """
    strange = sorted(set(rename) - set(coco.categories.values()))
    if strange:
        raise AnnotationError(
            f"{coco.source}: `rename:` names categories that this file does not have: "
            f"{shortened(strange)}. It has {shortened(sorted(coco.categories.values()))}. Correct "
            "vltune_site.yaml (it maps the file's names to the job's)."
        )
    return {identity: rename.get(name, name) for identity, name in coco.categories.items()}


def shortened(items: list[str], limit: int = 12) -> str:
    """List the first `limit` items, quoted, and how many more there are."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(map(repr, items[:limit])) + more


def _drop_masks(record: dict[str, Any]) -> dict[str, Any]:
    # Masks are nine tenths of COCO's bytes and nobody reads them here.
    record.pop("segmentation", None)
    return record


def _read_json(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise AnnotationError(
            f"{path}: no such annotation file. Correct `annotations:` in vltune_site.yaml."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise AnnotationError(
            f"{path}: cannot be read as UTF-8 text ({error}). Give a COCO instances JSON file."
        ) from error
    if not text.strip():
        raise AnnotationError(f"{path}: the file is empty. Give a COCO instances JSON file.")
    try:
        content = json.loads(text, object_hook=_drop_masks)
    except (ValueError, RecursionError) as error:
        raise AnnotationError(
            f"{path}: not JSON ({error}). The file may be cut off; copy or export it again."
        ) from error
    if not isinstance(content, dict):
        raise AnnotationError(
            f"{path}: expected COCO instances (an object with 'images', 'annotations' and "
            f"'categories'), got a {type(content).__name__}."
        )
    return content


def _by_id(content: dict[str, Any], section: str, keys: tuple[str, ...], path: Path) -> Records:
    """Return one section as id -> record, each a mapping with an unused integer id and `keys`."""
    records = content.get(section)
    if not isinstance(records, list):
        found = f"is a {type(records).__name__}" if section in content else "is missing"
        raise AnnotationError(
            f"{path}: {section!r} {found}; expected a list. "
            f"The file has {shortened(list(content))}."
        )
    by_id: Records = {}
    for index, record in enumerate(records):
        where = f"{path}: {section}[{index}]"
        if not isinstance(record, dict):
            raise AnnotationError(f"{where}: expected an object, got {str(record)[:80]!r}")
        for key in ("id", *keys):
            if key not in record:
                raise AnnotationError(f"{where}: key {key!r} is missing. Add it to the entry.")
        identity = record["id"]
        if type(identity) is not int:
            raise AnnotationError(f"{where}: id {identity!r} is no integer. Number the entries.")
        if identity in by_id:
            raise AnnotationError(f"{where}: id {identity} is used twice. Give each entry its own.")
        by_id[identity] = record
    return by_id


def _category_names(categories: Records, path: Path) -> dict[int, str]:
    ids: dict[str, int] = {}
    for identity, record in categories.items():
        name = record["name"] if isinstance(record["name"], str) else ""
        name = unicodedata.normalize("NFC", name.strip())
        if not name:
            raise AnnotationError(
                f"{path}: category {identity}: {record['name']!r} is no name. Give it one."
            )
        if name in ids:
            raise AnnotationError(
                f"{path}: categories {ids[name]} and {identity} are both called {name!r}. "
                "Merge them or rename one."
            )
        ids[name] = identity
    return {identity: name for name, identity in ids.items()}


def _check_images(images: Records, names: dict[int, str], path: Path) -> None:
    used: dict[str, int] = {}
    for identity, record in images.items():
        file_name = record["file_name"]
        if not isinstance(file_name, str):
            raise AnnotationError(f"{path}: image {identity}: file_name {file_name!r} is no name.")
        if file_name in used:
            raise AnnotationError(
                f"{path}: images {used[file_name]} and {identity} are both {file_name!r}. "
                "List each file once."
            )
        used[file_name] = identity
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            listed = record.get(key, [])
            if not isinstance(listed, list) or any(
                type(item) is not int or item not in names for item in listed
            ):
                raise AnnotationError(
                    f"{path}: image {identity}: {key} {str(listed)[:80]} is not a list of category "
                    "ids of this file. Correct it."
                )


def _check_annotations(
    annotations: Records, images: Records, names: dict[int, str], path: Path
) -> None:
    for identity, record in annotations.items():
        for key, known in (("image_id", images), ("category_id", names)):
            value = record[key]
            if type(value) is not int or value not in known:
                raise AnnotationError(
                    f"{path}: annotation {identity}: {key} {value!r} is not in this file. "
                    "Remove the annotation or add what it points to."
                )
        if record.get("iscrowd", 0) not in (0, 1):
            raise AnnotationError(
                f"{path}: annotation {identity}: iscrowd {record['iscrowd']!r}; expected 0 or 1."
            )
