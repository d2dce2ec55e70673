"""COCO instances to label matrices, with every way a site's files can be wrong."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image

from vltune.data.multilabel import (
    AnnotationError,
    Box,
    ImageError,
    batches,
    load_boxes,
    load_coco_instances,
)

CATEGORIES = [{"id": 3, "name": "dog"}, {"id": 7, "name": " tv "}, {"id": 5, "name": "cat"}]


def annotation(identity: int, image: int, category: int, **more: Any) -> dict[str, Any]:
    box = [1.0, 2.0, 3.0, 4.0]
    return {"id": identity, "image_id": image, "category_id": category, "bbox": box, **more}


def coco() -> dict[str, Any]:
    """Three images out of order: 11 has dog and tv, 2 has two cats, 30 has nothing."""
    return {
        "images": [{"id": i, "file_name": f"{i}.png"} for i in (11, 2, 30)],
        "annotations": [
            annotation(1, 11, 3),
            annotation(2, 11, 7, iscrowd=1),
            annotation(3, 2, 5),
            annotation(4, 2, 5),
        ],
        "categories": CATEGORIES,
    }


def write(folder: Path, content: Any, *, missing: tuple[str, ...] = ()) -> tuple[Path, Path]:
    """Write annotations and their images; return the two paths that the loader takes."""
    images = folder / "images"
    images.mkdir(exist_ok=True)
    if isinstance(content, dict):
        for record in content.get("images") or ():
            name = record.get("file_name") if isinstance(record, dict) else None
            if name in {f"{i}.png" for i in range(100)} and name not in missing:
                Image.new("RGB", (5, 3)).save(images / name)
    path = folder / "instances.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path, images


def test_labels_follow_the_jobs_classes_and_ascending_image_ids(tmp_path: Path) -> None:
    samples = load_coco_instances(*write(tmp_path, coco()), ["cat", "dog", "tv"])
    assert samples.image_ids == (2, 11, 30)
    assert [path.name for path in samples.image_paths] == ["2.png", "11.png", "30.png"]
    assert_array_equal(samples.labels, [[1, 0, 0], [0, 1, 1], [0, 0, 0]])
    assert samples.labels.dtype == np.int8
    assert samples.classnames == ("cat", "dog", "tv")
    assert (samples.num_skipped, samples.num_ignored) == (0, 0)


def test_agrees_with_pycocotools(tmp_path: Path) -> None:
    reference = pytest.importorskip("pycocotools.coco")
    rng = np.random.default_rng(0)
    content = coco()
    content["images"] = [{"id": int(i), "file_name": f"{i}.png"} for i in rng.permutation(13)]
    content["annotations"] = [
        annotation(k, int(rng.integers(13)), int(rng.choice([3, 5, 7]))) for k in range(29)
    ]
    path, images = write(tmp_path, content)
    samples = load_coco_instances(path, images, ["tv", "dog", "cat"])
    index = reference.COCO(str(path))
    for row, identity in enumerate(sorted(index.imgs)):
        found = {a["category_id"] for a in index.loadAnns(index.getAnnIds(imgIds=[identity]))}
        assert_array_equal(samples.labels[row], [c in found for c in (7, 3, 5)])


def test_categories_outside_the_job_are_ignored_and_counted(tmp_path: Path) -> None:
    samples = load_coco_instances(*write(tmp_path, coco()), ["dog"])
    assert_array_equal(samples.labels, [[0], [1], [0]])
    assert samples.num_ignored == 3


def test_unlabelled_is_unknown_unless_annotated(tmp_path: Path) -> None:
    """`skis` is no category; `dog` is one, but its absence means nothing at this site."""
    classes = ["skis", "dog", "cat"]
    samples = load_coco_instances(
        *write(tmp_path, coco()), classes, unlabelled=["dog", "skis", "not of this job"]
    )
    assert_array_equal(samples.labels, [[-1, -1, 1], [-1, 1, 0], [-1, -1, 0]])


def test_rename_maps_the_files_names_and_may_merge_two(tmp_path: Path) -> None:
    samples = load_coco_instances(
        *write(tmp_path, coco()), ["pet", "tv"], rename={"dog": "pet", "cat": "pet"}
    )
    assert_array_equal(samples.labels, [[1, 0], [1, 1], [0, 0]])


def test_lvis_keys_of_an_image(tmp_path: Path) -> None:
    """Image 2 was searched for dog only; 11 and 30 for all, but not for every cat."""
    content = coco()
    content["images"][1]["neg_category_ids"] = [3]
    content["images"][0]["not_exhaustive_category_ids"] = [3, 5]
    content["images"][2]["not_exhaustive_category_ids"] = [5]
    samples = load_coco_instances(*write(tmp_path, content), ["cat", "dog", "tv"])
    assert_array_equal(samples.labels, [[1, 0, -1], [-1, 1, 1], [-1, 0, 0]])


def test_a_merged_class_is_absent_only_where_all_its_categories_are(tmp_path: Path) -> None:
    """A pet is a dog or a cat: image 30 was searched for dog only, image 11 for both."""
    content = coco()
    content["images"][2]["neg_category_ids"] = [3]
    content["images"][0]["neg_category_ids"] = [3, 5]
    content["annotations"] = [annotation(9, 2, 5)]
    samples = load_coco_instances(
        *write(tmp_path, content),
        ["tv", "pet", "skis"],
        rename={"dog": "pet", "cat": "pet"},
        unlabelled=["skis"],
    )
    assert_array_equal(samples.labels, [[0, 1, -1], [-1, 0, -1], [-1, -1, -1]])


def test_an_image_cannot_be_searched_in_vain_and_annotated(tmp_path: Path) -> None:
    content = coco()
    content["images"][0]["neg_category_ids"] = [3]
    with pytest.raises(AnnotationError, match=r"annotation 1: image 11 lists category 3 under neg"):
        load_coco_instances(*write(tmp_path, content), ["dog", "cat"])


def test_a_class_without_category_is_an_error_that_names_the_cure(tmp_path: Path) -> None:
    content = coco()
    content["categories"] = [*CATEGORIES, {"id": 8, "name": "Potted Plant"}]
    path, images = write(tmp_path, content)
    with pytest.raises(AnnotationError) as caught:
        load_coco_instances(path, images, ["dog", "skis", "potted plant"])
    message = str(caught.value)
    assert str(path) in message
    assert "'skis', 'potted plant'" in message
    assert "'Potted Plant' looks like 'potted plant'" in message
    assert "unlabelled:" in message
    assert "rename:" in message


def broken(**change: Any) -> dict[str, Any]:
    return {**coco(), **change}


IMAGES = coco()["images"]
WRONG_FILES: dict[str, tuple[Any, str]] = {
    "empty file": ("", "the file is empty"),
    "cut off": ('{"images": [', "not JSON"),
    "nested beyond reason": ("[" * 200_000, "not JSON"),
    "a list": ([1], "expected COCO instances .* got a list"),
    "no section": ({"images": IMAGES, "annotations": []}, "'categories' is missing"),
    "section is an object": (broken(images={}), "'images' is a dict; expected a list"),
    "entry is no object": (broken(images=[5]), r"images\[0\]: expected an object"),
    "no images": (broken(images=[], annotations=[]), "'images' is empty"),
    "no annotations": (broken(annotations=[]), "no annotation is of one of the job's 3 classes"),
    "image without name": (broken(images=[{"id": 1}]), r"images\[0\]: key 'file_name' is missing"),
    "image name is a number": (
        broken(images=[{"id": 1, "file_name": 4}]),
        "file_name 4 is no name",
    ),
    "image twice": (broken(images=[IMAGES[0], IMAGES[0]]), r"images\[1\]: id 11 is used twice"),
    "file twice": (
        broken(images=[*IMAGES, {"id": 40, "file_name": "2.png"}]),
        "images 2 and 40 are both '2.png'",
    ),
    "text id": (broken(images=[{"id": "1", "file_name": "a"}]), "id '1' is no integer"),
    "true id": (broken(images=[{"id": True, "file_name": "a"}]), "id True is no integer"),
    "annotation twice": (
        broken(annotations=[annotation(4, 2, 3)] * 2),
        r"annotations\[1\]: id 4 is used twice",
    ),
    "annotation without image": (
        broken(annotations=[{"id": 4, "category_id": 3}]),
        r"annotations\[0\]: key 'image_id' is missing",
    ),
    "unknown image": (
        broken(annotations=[annotation(4, 12, 3)]),
        "annotation 4: image_id 12 is not",
    ),
    "unknown category": (broken(annotations=[annotation(4, 2, 9)]), "category_id 9 is not in"),
    "list for an id": (broken(annotations=[annotation(4, [], 3)]), r"image_id \[\] is not in"),  # type: ignore[arg-type] # wrong on purpose
    "iscrowd 2": (
        broken(annotations=[annotation(4, 2, 3, iscrowd=2)]),
        "iscrowd 2; expected 0 or 1",
    ),
    "category without name": (broken(categories=[{"id": 1, "name": " "}]), "' ' is no name"),
    "category name is null": (broken(categories=[{"id": 1, "name": None}]), "None is no name"),
    "two categories of one name": (
        broken(categories=[*CATEGORIES, {"id": 9, "name": "tv"}]),
        "categories 7 and 9 are both called 'tv'",
    ),
    "category twice": (
        broken(categories=[CATEGORIES[0]] * 2),
        r"categories\[1\]: id 3 is used twice",
    ),
    "negative of nothing": (
        broken(images=[{**IMAGES[0], "neg_category_ids": [99]}]),
        "neg_category_ids .* is not a list of category ids",
    ),
    "not exhaustive is no list": (
        broken(images=[{**IMAGES[0], "not_exhaustive_category_ids": 3}]),
        "not_exhaustive_category_ids 3 is not a list",
    ),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_wrong_annotation_file(case: str, tmp_path: Path) -> None:
    content, message = WRONG_FILES[case]
    path, images = write(tmp_path, content)
    with pytest.raises(AnnotationError, match=message) as caught:
        load_coco_instances(path, images, ["cat", "dog", "tv"])
    assert str(path) in str(caught.value)


def test_a_missing_annotation_file_or_folder_is_named(tmp_path: Path) -> None:
    path, images = write(tmp_path, coco())
    with pytest.raises(
        AnnotationError, match=r"nowhere\.json: no such annotation file.*vltune_site"
    ):
        load_coco_instances(tmp_path / "nowhere.json", images, ["dog"])
    with pytest.raises(ImageError, match=r"nowhere: no such image folder.*vltune_site"):
        load_coco_instances(path, tmp_path / "nowhere", ["dog"])
    with pytest.raises(AnnotationError, match="cannot be read as UTF-8"):
        load_coco_instances(tmp_path, images, ["dog"])
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(AnnotationError, match="cannot be read as UTF-8"):
        load_coco_instances(path, images, ["dog"])


@pytest.mark.parametrize("classnames", [[], ["dog", "dog"]])
def test_class_names_must_be_distinct(classnames: list[str], tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="must be distinct and at least one"):
        load_coco_instances(*write(tmp_path, coco()), classnames)


def test_rename_of_an_unknown_category(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"`rename:` names categories .*'sofa'.* 'dog', 'tv'"):
        load_coco_instances(*write(tmp_path, coco()), ["dog"], rename={"sofa": "couch"})


@pytest.mark.parametrize(
    "name", ["../2.png", "a/../../2.png", "/etc/2.png", "C:\\2.png", "..\\2.png", "", ".", "a\0b"]
)
@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_an_image_outside_the_folder_is_refused(name: str, policy: Any, tmp_path: Path) -> None:
    content = coco()
    content["images"][0]["file_name"] = name
    path, images = write(tmp_path, content)
    Image.new("RGB", (5, 3)).save(tmp_path / "2.png")
    with pytest.raises(ImageError, match=r"image 11: file_name .* does not stay inside"):
        load_coco_instances(path, images, ["dog"], on_bad_image=policy)


def test_images_in_subfolders_are_read(tmp_path: Path) -> None:
    content = coco()
    content["images"] = [{"id": 2, "file_name": "part..1/./2.png"}]
    content["annotations"] = [annotation(1, 2, 3)]
    path, images = write(tmp_path, content)
    (images / "part..1").mkdir()
    Image.new("RGB", (5, 3)).save(images / "part..1" / "2.png")
    assert load_coco_instances(path, images, ["dog"]).image_paths == (images / "part..1/2.png",)


def test_missing_image_stops_or_is_skipped_and_counted(tmp_path: Path) -> None:
    path, images = write(tmp_path, coco(), missing=("11.png",))
    with pytest.raises(
        ImageError, match=r"1 of 3 images cannot be used:(?s:.*)11\.png: no such"
    ) as e:
        load_coco_instances(path, images, ["cat", "dog"])
    assert "on_bad_image: skip" in str(e.value)
    samples = load_coco_instances(path, images, ["cat", "dog"], on_bad_image="skip")
    assert samples.image_ids == (2, 30)
    assert samples.num_skipped == 1
    assert_array_equal(samples.labels, [[1, 0], [0, 0]])


def test_unreadable_images_stop_or_are_skipped(tmp_path: Path) -> None:
    path, images = write(tmp_path, coco())
    (images / "11.png").write_bytes(b"no image")
    whole = (images / "2.png").read_bytes()
    (images / "2.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match="2 of 3 images"):
        load_coco_instances(path, images, ["cat", "dog"])
    samples = load_coco_instances(path, images, ["cat", "dog"], on_bad_image="skip")
    assert (samples.image_ids, samples.num_skipped) == ((30,), 2)


def test_no_readable_image_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    path, images = write(tmp_path, coco(), missing=("2.png", "11.png", "30.png"))
    with pytest.raises(AnnotationError, match="none of its images can be read"):
        load_coco_instances(path, images, ["dog"], on_bad_image="skip")


def test_images_that_were_read_before_are_not_decoded_again_but_must_exist(tmp_path: Path) -> None:
    path, images = write(tmp_path, coco(), missing=("30.png",))
    (images / "11.png").write_bytes(b"no image")
    samples = load_coco_instances(
        path, images, ["dog"], on_bad_image="skip", already_read=lambda path: True
    )
    assert (samples.image_ids, samples.num_skipped) == ((2, 11), 1)


def test_boxes_leave_out_crowds_and_follow_the_samples(tmp_path: Path) -> None:
    content = coco()
    content["annotations"][2]["bbox"] = [0, 0.5, 7, 0]
    path, _images = write(tmp_path, content)
    boxes = load_boxes(path, ["couch", "pet"], (30, 11, 2), rename={"cat": "couch", "dog": "pet"})
    both = (Box(0, 0.0, 0.5, 7.0, 0.0), Box(0, 1.0, 2.0, 3.0, 4.0))
    assert boxes == ((), (Box(1, 1.0, 2.0, 3.0, 4.0),), both)


@pytest.mark.parametrize(
    "box", [None, "1 2 3 4", [1, 2, 3], [1, 2, -3, 4], [1, 2, 3, float("nan")], [1, 2, 3, True]]
)
def test_wrong_boxes(box: Any, tmp_path: Path) -> None:
    content = coco()
    content["annotations"][0]["bbox"] = box
    path, images = write(tmp_path, content)
    with pytest.raises(AnnotationError, match=r"annotation 1: bbox .* expected \[x, y, width"):
        load_boxes(path, ["dog"], (11,))
    assert load_coco_instances(path, images, ["dog"]).labels.sum() == 1


def test_boxes_of_another_file(tmp_path: Path) -> None:
    path, _images = write(tmp_path, coco())
    with pytest.raises(AnnotationError, match="has no image 4"):
        load_boxes(path, ["dog"], (11, 4))


def test_batches_are_a_permutation_that_the_generator_decides() -> None:
    def draw(seed: int) -> list[list[int]]:
        return [part.tolist() for part in batches(11, 3, torch.Generator().manual_seed(seed))]

    first = draw(5)
    assert [len(part) for part in first] == [3, 3, 3, 2]
    assert sorted(index for part in first for index in part) == list(range(11))
    assert first == draw(5)
    assert first != draw(6)


@pytest.mark.parametrize("sizes", [(0, 3), (5, 0)])
def test_batches_refuse_nothing(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="must both be at least 1"):
        batches(*sizes, torch.Generator())


@pytest.mark.slow
def test_a_hundred_thousand_annotations_load_in_seconds(tmp_path: Path) -> None:
    """12,000 images, 80 classes, masks as in COCO; the bound is far below the promised 20 s."""
    mask = [[float(value) for value in range(60)]]
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(12_000)],
        "annotations": [
            annotation(k, k % 12_000, k % 80, segmentation=mask) for k in range(100_000)
        ],
        "categories": [{"id": c, "name": f"class {c}"} for c in range(80)],
    }
    path, images = write(tmp_path, content)
    Image.new("RGB", (64, 48)).save(images / "0.jpg")
    picture = (images / "0.jpg").read_bytes()
    for i in range(12_000):
        (images / f"{i}.jpg").write_bytes(picture)
    start = time.perf_counter()
    samples = load_coco_instances(path, images, [f"class {c}" for c in range(80)])
    assert time.perf_counter() - start < 20
    assert samples.labels.sum() == len({(k % 12_000, k % 80) for k in range(100_000)})
