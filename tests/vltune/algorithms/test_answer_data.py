"""All parts of a site's answers, from its own file to the feature cache."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from vltune.algorithms.answer_data import load_answer_data
from vltune.backbones.clip import ClipBackbone
from vltune.config import ConfigError
from vltune.data.image_sources import read_source
from vltune.data.rows import RecordError
from vltune.features import FeatureCache
from vltune.flare.failure import public_message
from vltune.site_config import read_site_config, require_answers


def write_site(folder: Path, numbers: range = range(30), **change: Any) -> Path:
    """Two questions for each image, and the site's file."""
    (folder / "photos of Smith").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in numbers:
        name = f"photos of Smith/{number}.png"
        pixels = np.random.default_rng(number).integers(0, 255, (9, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
        for question in ("who?", "where?"):
            rows.append({"image": name, "prompt": question, "answer": f"Smith {number}"})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"from{numbers.start}.jsonl").write_text(lines)
    content = {
        "data": "captions",
        "train": {"files": ["from0.jsonl"]},
        "validation": {"share": 0.2},
        **change,
    }
    path = folder / "vltune_site.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_shares_divide_the_training_files_by_image(tmp_path: Path) -> None:
    data = load_answer_data(read(write_site(tmp_path, test={"share": 0.3}, split_seed=4)))
    assert data.test is not None
    parts = (data.train, data.validation, data.test)
    assert sum(len(part.images) for part in parts) == 30
    assert len({digest for part in parts for digest in part.digests}) == 30
    assert all(len(part.records) == 2 * len(part.images) for part in parts)


def read(path: Path) -> Any:
    return require_answers(read_site_config(path))


def test_files_of_their_own_must_not_share_an_image(tmp_path: Path) -> None:
    write_site(tmp_path, range(30, 40))
    path = write_site(tmp_path, validation={"files": ["from30.jsonl"]})
    data = load_answer_data(read(path))
    assert (len(data.train.images), len(data.validation.images), data.test) == (30, 10, None)
    write_site(tmp_path, range(20, 40))
    path = write_site(tmp_path, validation={"files": ["from20.jsonl"]}, test={"share": 0.5})
    with pytest.raises(RecordError, match=r"images are in both '\w+' and '\w+'"):
        load_answer_data(read(path))


def test_each_image_is_encoded_once_for_all_its_questions(
    tmp_path: Path, tiny_clip: ClipBackbone
) -> None:
    site = read(write_site(tmp_path))
    data = load_answer_data(site)
    cache = FeatureCache(site.cache_dir, tiny_clip)
    features = cache.encode_contents(data.train.digests, data.train.images, read_source)
    assert features.num_encoded == len(data.train.images) < len(data.train.records)
    picture = read_source(data.train.images[3])
    expected = tiny_clip.encode_images(tiny_clip.preprocess(picture)[None]).image_features[0]
    np.testing.assert_allclose(features.image_features[3], expected.numpy(), atol=5e-4)
    again = FeatureCache(site.cache_dir, tiny_clip)
    asked: list[bytes] = []

    def already_read(digest: bytes) -> bool:
        asked.append(digest)
        return again.holds_content(digest)

    known = load_answer_data(site, already_read=already_read)
    assert len(asked) == 30
    assert sum(map(again.holds_content, asked)) == len(data.train.images)
    assert (
        again.encode_contents(known.train.digests, known.train.images, read_source).num_encoded == 0
    )


def test_no_sample_path_or_file_name_leaves_with_an_error(tmp_path: Path) -> None:
    """What the server would get when an image is missing, damaged, or a line is wrong."""
    path = write_site(tmp_path)
    site = read(path)
    image = tmp_path / "photos of Smith" / "3.png"
    lines = (tmp_path / "from0.jsonl").read_text()

    def told() -> str:
        with pytest.raises(ValueError, match=r".") as caught:
            load_answer_data(site)
        text = public_message(caught.value, site.private_paths())
        for secret in ("Smith", "from0", ".png", str(tmp_path), tmp_path.name, "who?"):
            assert secret not in text
        return text

    image.write_bytes(b"no image")
    assert "cannot be read as an image" in told()
    image.unlink()
    assert "no such image file" in told()
    for change in ('"prompt"', '"Smith 3"', '"photos of Smith/3.png"', "{"):
        (tmp_path / "from0.jsonl").write_text(lines.replace(change, '"", "../Smith.png": [', 1))
        assert "line" in told()
    (tmp_path / "from0.jsonl").write_text(lines.replace("photos", "../photos"))
    assert "does not stay inside" in told()
    (tmp_path / "from0.jsonl").unlink()
    assert "no such data file" in told()


def test_a_site_with_labels_is_told_apart(tmp_path: Path) -> None:
    path = write_site(tmp_path, data="multilabel")
    with pytest.raises(ConfigError, match="unknown key files"):
        read(path)
