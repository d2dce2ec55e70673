"""The detector behind the world's judge: what its grid means, and its folder."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vltune.backbones.center_detector import (
    ARCHITECTURE,
    CenterDetector,
    CompactJudge,
    DetectorConfig,
    DetectorOutput,
    find_peaks,
    load_compact_judge,
)
from vltune.backbones.checkpoint import BackboneError
from vltune.config import to_mapping
from vltune.geneval import GenevalRules, Judge

CONFIG = DetectorConfig(
    ARCHITECTURE, 32, (4, 5, 6, 7), ("dog", "cat", "bus"), ("red", "blue"),
    rules=GenevalRules(confidence=0.2, counting_confidence=0.25),
)  # fmt: skip


def grid(G: int = 8, C: int = 3) -> DetectorOutput:
    """Nothing anywhere."""
    return DetectorOutput(
        torch.full((1, G, G), -9.0),
        torch.zeros(1, C, G, G),
        torch.zeros(1, 2, G, G),
        torch.zeros(1, 4, G, G),
    )


def test_a_peak_becomes_a_box() -> None:
    """Cell (row 2, column 5): middle (5.5 + 0.25, 2.5 - 0.5) cells = (5.75, 2.0) of 8.

    Width e^1 = 2.718, height e^0 = 1: left (5.75 - 1.359) / 8 = 0.549, top (2 - 0.5) / 8 = 0.1875.
    P(middle) = sigmoid(2) = 0.881, P(class) = e^3 / (e^3 + 2) = 0.909: 0.801.
    """
    output = grid()
    output.middles[0, 2, 5] = 2.0
    output.middles[0, 2, 6] = 1.0
    output.classes[0, 1, 2, 5] = 3.0
    output.colours[0, 1, 2, 5] = 1.0
    output.boxes[0, :, 2, 5] = torch.tensor([0.25, -0.5, 1.0, 0.0])
    peaks = find_peaks(output)
    assert float(peaks.scores[0, 0]) == pytest.approx(0.8009, abs=1e-3)
    assert (int(peaks.classes[0, 0]), int(peaks.colours[0, 0])) == (1, 1)
    expected = torch.tensor([0.5489, 0.1875, 0.8886, 0.3125])
    torch.testing.assert_close(peaks.boxes[0, 0], expected, atol=1e-3, rtol=0)
    # Its neighbour is lower and no object of its own.
    assert float(peaks.scores[0, 1]) < 0.01


def test_confidence_orders_peaks_and_not_heat_alone() -> None:
    output = grid()
    output.middles[0, 1, 1], output.middles[0, 6, 6] = 3.0, 2.0
    output.classes[0, 2, 6, 6] = 9.0
    peaks = find_peaks(output)
    assert peaks.classes[0, 0] == 2
    assert float(peaks.scores[0, 0]) > float(peaks.scores[0, 1]) > 0.3


def test_boxes_stay_inside_and_infinite_sizes_do_not_break() -> None:
    output = grid()
    output.middles[0, 0, 0] = 5.0
    output.boxes[0, 2:, 0, 0] = 1e4
    assert find_peaks(output).boxes[0, 0].tolist() == [0.0, 0.0, 1.0, 1.0]


def test_images_of_any_size_and_only_what_is_wanted() -> None:
    torch.manual_seed(0)
    model = CenterDetector(CONFIG).eval()
    torch.nn.init.constant_(model.head.bias[:1], 4.0)
    judge = CompactJudge(CONFIG, model)
    assert isinstance(judge, Judge)
    assert judge.rules.confidence == 0.2
    images = torch.rand(2, 3, 48, 96)
    seen, none = judge.detect(images, [judge.classnames, frozenset()])
    assert none == []
    assert seen
    assert all(0 <= item.box[0] < item.box[2] <= 96 and item.box[3] <= 48 for item in seen)
    assert {item.color for item in seen} <= {"red", "blue"}
    for wrong in (torch.rand(2, 1, 32, 32), torch.rand(3, 3, 32, 32), torch.rand(3, 32, 32)):
        with pytest.raises(ValueError, match=r"expected \(2, 3, H, W\)"):
            judge.detect(wrong, [frozenset()] * 2)


def write(folder: Path, config: DetectorConfig = CONFIG) -> CenterDetector:
    torch.manual_seed(1)
    model = CenterDetector(config).eval()
    state = {n: v.half() if v.is_floating_point() else v for n, v in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(to_mapping(config)))
    return model


def test_a_folder_gives_back_what_was_written(tmp_path: Path) -> None:
    model = write(tmp_path)
    judge = load_compact_judge(tmp_path)
    assert judge.config == CONFIG
    images = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(
        judge.model(images).classes, model(images).classes, atol=2e-2, rtol=0
    )


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="Give the folder of a judge"):
        load_compact_judge(tmp_path)
    write(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(to_mapping(CONFIG) | {"architecture": "x"}))
    with pytest.raises(BackboneError, match="architecture is 'x'"):
        load_compact_judge(tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps(to_mapping(replace(CONFIG, classnames=("dog", "cat"))))
    )
    with pytest.raises(BackboneError, match="does not hold the weights"):
        load_compact_judge(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(BackboneError, match="does not hold the weights"):
        load_compact_judge(tmp_path)
    for change in ({"image_size": 30}, {"widths": (1, 2)}, {"classnames": ()}):
        with pytest.raises(ValueError, match=r"expected|must not be empty"):
            replace(CONFIG, **change)
