"""Division by image, and parts that share none."""

from pathlib import Path

import pytest
from answer_files import pair, picture, write_images, write_lines

from vltune.data.image_text import ImageTextSamples, check_disjoint, divide
from vltune.data.preference import load_preference
from vltune.data.rows import RecordError


@pytest.fixture
def samples(tmp_path: Path) -> ImageTextSamples:
    """200 images with two records each."""
    write_images(tmp_path, 200)
    rows = [pair(i, question=q) for q in ("a?", "b?") for i in range(200)]
    return load_preference([write_lines(tmp_path / "a.jsonl", rows)])


def texts(part: ImageTextSamples) -> set[tuple[bytes, str]]:
    return {(part.digests[record.image], record.prompt) for record in part.records}


def test_an_image_is_on_one_side_with_all_its_records(samples: ImageTextSamples) -> None:
    parts = divide(samples, {"validation": 0.2, "test": 0.1}, seed=5)
    assert list(parts) == ["train", "validation", "test"]
    check_disjoint(parts)
    assert sum(len(part.images) for part in parts.values()) == 200
    assert set().union(*map(texts, parts.values())) == texts(samples)
    for part in parts.values():
        assert len(part.records) == 2 * len(part.images)
        assert all(
            part.digests[r.image] == samples.digests[int(r.answers[0].split()[0])]
            for r in part.records
        )
    # Binomial(200, 0.2) and (200, 0.1): 40 and 20, standard deviations 5.7 and 4.2.
    assert abs(len(parts["validation"].images) - 40) < 20
    assert abs(len(parts["test"].images) - 20) < 15


def test_the_division_depends_on_seed_and_content_only(
    samples: ImageTextSamples, tmp_path: Path
) -> None:
    """The same images under other names and in another order fall on the same sides."""
    again = tmp_path / "other"
    (again / "x").mkdir(parents=True)
    for number in range(100):
        (again / "x" / f"{99 - number}.png").write_bytes(picture(number))
    other = load_preference(
        [write_lines(again / "a.jsonl", [pair(i, image=f"x/{i}.png") for i in range(100)])]
    )
    shares = {"validation": 0.3}
    first, second = divide(samples, shares, 5), divide(other, shares, 5)
    for name in ("train", "validation"):
        assert set(second[name].digests) == set(first[name].digests) & set(other.digests)
    assert divide(samples, shares, 5) == first
    assert set(divide(samples, shares, 6)["validation"].digests) != set(first["validation"].digests)


def test_a_share_that_gets_nothing_is_an_error(tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    samples = load_preference([write_lines(tmp_path / "a.jsonl", [pair(0)])])
    with pytest.raises(RecordError, match="leaves no image of 1 for 'validation'"):
        divide(samples, {"validation": 0.01}, 0)


def test_parts_that_share_an_image_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path, 3)
    (tmp_path / "images" / "copy.png").write_bytes(picture(0))
    first = load_preference([write_lines(tmp_path / "a.jsonl", [pair(0), pair(1)])])
    rows = [pair(2), pair(0, image="images/copy.png", question="other?")]
    second = load_preference([write_lines(tmp_path / "b.jsonl", rows)])
    with pytest.raises(RecordError, match=r"1 images are in both 'train' and 'test'.*share"):
        check_disjoint({"train": first, "test": second})
