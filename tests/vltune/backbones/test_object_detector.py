"""A tiny random detector of transformers as a judge."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

from vltune.backbones.checkpoint import BackboneError
from vltune.backbones.colour_naming import NearestColour
from vltune.backbones.object_detector import load_detector_judge
from vltune.geneval import GenevalRules, Judge, score_images
from vltune.geneval_prompts import GenevalPrompt, Included

pytestmark = pytest.mark.slow
DOG = GenevalPrompt("single_object", "a dog", (Included("dog"),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("detector")
    labels = {0: "hound", 1: "cat", 2: "N/A"}
    config = YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=[32, 32], patch_size=8, num_detection_tokens=5, id2label=labels,
    )  # fmt: skip
    YolosForObjectDetection(config).save_pretrained(path)
    YolosImageProcessor(size={"height": 32, "width": 32}).save_pretrained(path)
    return path


def test_detections_are_named_coloured_and_inside(folder: Path) -> None:
    judge = load_detector_judge(str(folder), NearestColour(), rename={"hound": "dog"})
    assert isinstance(judge, Judge)
    assert judge.classnames == {"dog", "cat"}
    assert judge.rules == GenevalRules()
    images = torch.zeros(2, 3, 40, 50)
    both, none = judge.detect(images, [frozenset({"dog", "cat"}), frozenset({"bird"})])
    assert none == []
    assert 1 <= len(both) <= 5
    for item in both:
        assert item.classname in judge.classnames
        assert item.color == "black"
        assert 0.05 <= item.score <= 1
        left, top, right, bottom = item.box
        assert left < right <= 60
        assert top < bottom <= 50


def test_it_scores_pictures(folder: Path) -> None:
    rules = GenevalRules(confidence=0.05)
    judge = load_detector_judge(
        str(folder), NearestColour(), rename={"hound": "dog", "cat": "dog"}, rules=rules
    )
    assert score_images(judge, torch.zeros(3, 3, 40, 50), [DOG] * 3).overall == 1.0
    with pytest.raises(ValueError, match="does not know 'cat'"):
        score_images(
            judge, torch.zeros(1, 3, 9, 9), [GenevalPrompt("colors", "x", (Included("cat"),))]
        )
    with pytest.raises(ValueError, match=r"expected \(1, 3, H, W\)"):
        judge.detect(torch.zeros(2, 3, 9, 9), [frozenset()])


def test_what_is_no_whole_detector_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="cannot be loaded as an object detector"):
        load_detector_judge(str(tmp_path), NearestColour())
    with pytest.raises(BackboneError, match="does not have: wolf"):
        load_detector_judge(str(folder), NearestColour(), rename={"wolf": "dog"})
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    state = load_file(folder / "model.safetensors")
    state.pop("class_labels_classifier.layers.2.weight")
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=r"1 tensors are missing.*class_labels_classifier"):
        load_detector_judge(str(tmp_path), NearestColour())
