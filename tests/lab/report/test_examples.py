import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from vltune.algorithms.encoded_split import EncodedSplit
from vltune.algorithms.fedmpt import FedMPT, FedMPTConfig
from vltune.backbones.clip import BackboneConfig, ClipBackbone, load_clip
from vltune.data.multilabel import MultiLabelSamples, read_image
from vltune.features import FeatureCache
from vltune_lab.report.example_file import decode_png, load_examples
from vltune_lab.report.examples import as_seen, choose_images, region_maps, write_examples
from vltune_lab.report.html import build_report

# D=11, image 24x40 in patches of 8: 3 rows, 5 columns, M=15.
MODEL = {
    "embed_dim": 11,
    "vision_cfg": {
        "image_size": [24, 40],
        "patch_size": 8,
        "width": 18,
        "head_width": 6,
        "layers": 1,
    },
    "text_cfg": {"context_length": 31, "vocab_size": 49408, "width": 20, "heads": 4, "layers": 1},
}
PREPROCESS = {"mean": [0.3, 0.4, 0.5], "std": [0.2, 0.3, 0.4], "resize_mode": "squash"}
CLASSES = ("cat", "dog", "kite")
CONDITIONS = ("pose", "colour")
LABELS = [[1, 1, 0], [1, 0, -1], [0, 1, 1], [1, 1, 1], [0, 0, 0]]


@pytest.fixture
def backbone(tmp_path: Path) -> ClipBackbone:
    torch.manual_seed(5)
    state = open_clip.CLIP(**MODEL).state_dict()
    state = {name: value.contiguous() for name, value in state.items()}
    save_file(state, tmp_path / "open_clip_model.safetensors")
    content = {"model_cfg": MODEL, "preprocess_cfg": PREPROCESS}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    return load_clip(BackboneConfig("tiny", str(tmp_path)))


@pytest.fixture
def global_test(tmp_path: Path, backbone: ClipBackbone) -> EncodedSplit:
    rng = np.random.default_rng(3)
    paths = []
    for index in range(len(LABELS)):
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(rng.integers(0, 256, (24, 40, 3), dtype=np.uint8)).save(paths[-1])
    labels = np.array(LABELS, dtype=np.int8)
    features = FeatureCache(tmp_path / "cache", backbone).encode(paths, read_image)
    samples = MultiLabelSamples(tuple(paths), labels, CLASSES)
    return EncodedSplit(samples, features, torch.from_numpy(labels.astype(np.int64)))


def model_of(backbone: ClipBackbone, config: FedMPTConfig) -> FedMPT:
    return FedMPT(config, backbone, CONDITIONS, CLASSES, seed=7)


def test_the_report_shows_what_the_model_saw(
    run_folder: Path, backbone: ClipBackbone, global_test: EncodedSplit
) -> None:
    model = model_of(backbone, FedMPTConfig(rank=2))
    write_examples(run_folder, model, backbone, global_test, CONDITIONS, seed=7)
    examples = load_examples(run_folder)
    assert examples is not None
    assert [item.index for item in examples.examples] == [0, 2, 3]  # two labels or more
    first = examples.examples[0]
    assert sum(first.gate) == pytest.approx(1, abs=1e-5)
    assert [region.classname for region in first.maps] == ["cat", "dog"]
    assert np.array(first.maps[0].mass).shape == (3, 5)
    assert np.array(first.maps[0].mass).sum() == pytest.approx(1, abs=1e-4)
    batch = global_test.batch_at(torch.tensor([0]))
    with torch.no_grad():
        scores = torch.sigmoid(model(batch.patch_features, batch.image_features).logits)[0]
    shown = {item.classname: item.score for item in first.predictions}
    assert shown == pytest.approx(dict(zip(CLASSES, scores.tolist(), strict=True)), abs=1e-3)
    with Image.open(io.BytesIO(decode_png(first.image_png))) as picture:
        original = np.asarray(read_image(global_test.samples.image_paths[0]), dtype=np.int64)
        assert np.abs(np.asarray(picture, dtype=np.int64) - original).max() <= 1
    assert "What it sees in test images" in build_report(run_folder).read_text()


def test_without_transport_there_are_no_maps(
    run_folder: Path, backbone: ClipBackbone, global_test: EncodedSplit
) -> None:
    model = model_of(backbone, FedMPTConfig(rank=2, use_transport=False))
    write_examples(run_folder, model, backbone, global_test, CONDITIONS, seed=7)
    examples = load_examples(run_folder)
    assert examples is not None
    assert not any(item.maps for item in examples.examples)
    assert "pools patches without transport" in build_report(run_folder).read_text()


def test_a_test_set_without_labels_gives_no_images(
    run_folder: Path, backbone: ClipBackbone, global_test: EncodedSplit
) -> None:
    samples = replace(global_test.samples, labels=np.zeros((5, 3), dtype=np.int8))
    model = model_of(backbone, FedMPTConfig(rank=2))
    empty = replace(global_test, samples=samples)
    write_examples(run_folder, model, backbone, empty, CONDITIONS, seed=7)
    assert "What it sees" not in build_report(run_folder).read_text()


def test_the_seed_chooses_the_images() -> None:
    labels = np.ones((200, 2), dtype=np.int8)
    chosen = choose_images(labels, 7, 6)
    assert chosen == choose_images(labels, 7, 6) == sorted(set(chosen))
    assert len(chosen) == 6
    assert chosen != choose_images(labels, 8, 6)


def test_images_of_one_label_serve_where_there_is_nothing_better() -> None:
    labels = np.array([[1, 0], [-1, -1], [0, 1]], dtype=np.int8)
    assert choose_images(labels, 7, 6) == [0, 2]


def test_maps_average_the_plans_by_the_gate() -> None:
    # Class 0: 0.75 * (4, 0) + 0.25 * (0, 4) = (3, 1) of 4; class 1 gets no mass.
    plan = torch.tensor([[[[4.0, 0], [0, 0]], [[0, 0], [4, 0]]]])  # (1, 2, 2, 2)
    maps = region_maps(plan, torch.tensor([[0.75, 0.25]]))
    assert maps.tolist() == [[[0.75, 0.0], [0.25, 0.0]]]


def test_a_large_image_becomes_a_thumbnail_with_its_colours() -> None:
    def preprocess(image: Image.Image) -> torch.Tensor:
        pixels = torch.from_numpy(np.asarray(image.resize((448, 336)), dtype=np.float32))
        return (pixels.permute(2, 0, 1) / 255 - 0.4) / 0.2

    content = as_seen(preprocess, Image.new("RGB", (600, 450), (10, 120, 250)))
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.size == (224, 168)
        assert picture.getpixel((100, 100)) == (10, 120, 250)
