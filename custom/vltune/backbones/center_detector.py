"""A small detector that finds objects by their middles: the judge of the embedded world.

Each cell of a grid says whether an object's middle is there, of which class, of which colour, where
exactly, and how large (Zhou et al. 2019, "Objects as Points"). Deviation: one heat map for all
classes and a softmax over classes beside it, which learns faster with many classes and few images.

    judge = load_compact_judge(Path("assets/judge-compact"))
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from vltune.backbones.checkpoint import BackboneError
from vltune.config import ConfigError, from_mapping, read_mapping
from vltune.geneval import Detection, GenevalRules

ARCHITECTURE = "vltune-center-detector"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
STRIDE = 4
"""Pixels of a cell."""
MOST_PEAKS = 24
LEAST_SCORE = 0.01
_RARE = -3.0
"""Start of the heat map's logit: nearly all cells are empty."""


@dataclass(frozen=True)
class DetectorConfig:
    """What is in a judge's config.json.

    Attributes:
        architecture: Always `ARCHITECTURE`.
        image_size: Side in pixels, a multiple of 16; other images are resized.
        widths: Channels at a half, a quarter, an eighth and a sixteenth of the side.
        classnames: Classes, in the order of the output.
        colours: Colour names, in the order of the output.
        rules: Thresholds chosen on validation pictures.
    """

    architecture: str
    image_size: int
    widths: tuple[int, ...]
    classnames: tuple[str, ...]
    colours: tuple[str, ...]
    rules: GenevalRules = field(default_factory=GenevalRules)

    def __post_init__(self) -> None:
        if self.architecture != ARCHITECTURE:
            raise ValueError(f"architecture is {self.architecture!r}; expected {ARCHITECTURE!r}")
        if self.image_size % 16 or self.image_size < 16 or len(self.widths) != 4:
            raise ValueError(
                f"image_size {self.image_size} and widths {self.widths}: expected a multiple of 16 "
                "and four widths"
            )
        if not self.classnames or not self.colours:
            raise ValueError("classnames and colours must not be empty")


class DetectorOutput(NamedTuple):
    """Raw output for each cell of the (G, G) grid.

    Attributes:
        middles: Logit that an object's middle is here, (B, G, G).
        classes: Logits, (B, C, G, G).
        colours: Logits, (B, number of colours, G, G).
        boxes: Middle (x, y) from the cell's middle and logarithm of (width, height), in cells,
            (B, 4, G, G).
    """

    middles: Tensor
    classes: Tensor
    colours: Tensor
    boxes: Tensor


class CenterDetector(nn.Module):
    """Convolutions down to a sixteenth of the side and up again to a quarter.

    Args:
        config: Sizes.
    """

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        half, quarter, eighth, sixteenth = config.widths
        self.splits = (1, len(config.classnames), len(config.colours), 4)
        self.stem = nn.Sequential(_conv(3, half, stride=2), _conv(half, quarter, stride=2))
        self.fine = _Residual(quarter)
        self.middle = nn.Sequential(
            _conv(quarter, eighth, stride=2), _Residual(eighth), _Residual(eighth)
        )
        self.coarse = nn.Sequential(_conv(eighth, sixteenth, stride=2), _Residual(sixteenth))
        self.up_middle = nn.Conv2d(sixteenth, eighth, 1)
        self.join_middle = _conv(eighth, eighth)
        self.up_fine = nn.Conv2d(eighth, quarter, 1)
        self.join_fine = _conv(quarter, 2 * quarter)
        self.head = nn.Conv2d(2 * quarter, sum(self.splits), 1)
        nn.init.constant_(self.head.bias[:1], _RARE)  # type: ignore[index]

    def forward(self, images: Tensor) -> DetectorOutput:
        """Images (B, 3, H, W), fp32 in [0, 1], H = W a multiple of 16."""
        fine = self.fine(self.stem(images * 2 - 1))
        middle = self.middle(fine)
        raised = F.interpolate(self.up_middle(self.coarse(middle)), scale_factor=2.0)
        middle = self.join_middle(middle + raised)
        raised = F.interpolate(self.up_fine(middle), scale_factor=2.0)
        parts = self.head(self.join_fine(fine + raised)).split(self.splits, dim=1)
        return DetectorOutput(parts[0][:, 0], parts[1], parts[2], parts[3])


class _Residual(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _conv(width, width)
        self.second = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, width, H, W) to the same."""
        return F.relu(features + self.second(self.first(features)))


def _conv(inner: int, outer: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outer),
        nn.ReLU(inplace=True),
    )


class Peaks(NamedTuple):
    """The most confident local maxima of each image, K of them.

    Attributes:
        scores: (B, K), in [0, 1], falling.
        classes: (B, K), index.
        colours: (B, K), index.
        boxes: Left, top, right, bottom as shares of the side, (B, K, 4).
    """

    scores: Tensor
    classes: Tensor
    colours: Tensor
    boxes: Tensor


def find_peaks(output: DetectorOutput) -> Peaks:
    """Read objects off the grid: cells whose heat no neighbour exceeds.

    A score is P(middle) * P(class).
    """
    B, G, _ = output.middles.shape
    heat = output.middles.sigmoid()
    is_peak = F.max_pool2d(heat[:, None], 3, stride=1, padding=1)[:, 0] == heat
    heat, cells = (heat * is_peak).flatten(1).topk(min(MOST_PEAKS, G * G))

    def at(values: Tensor) -> Tensor:
        flat = values.flatten(2)
        return flat.gather(2, cells[:, None].expand(B, flat.shape[1], cells.shape[1]))

    share, classes = at(output.classes).softmax(dim=1).max(dim=1)
    raw = at(output.boxes)
    places = torch.stack([cells % G, cells // G], dim=1) + 0.5 + raw[:, :2]
    halves = raw[:, 2:].clamp(max=4.0).exp() / 2
    boxes = (torch.cat([places - halves, places + halves], dim=1) / G).clamp(0, 1)
    scores, order = (heat * share).sort(dim=1, descending=True)
    return Peaks(
        scores,
        classes.gather(1, order),
        at(output.colours).argmax(dim=1).gather(1, order),
        boxes.transpose(1, 2).gather(1, order[..., None].expand(-1, -1, 4)),
    )


class CompactJudge:
    """A `vltune.geneval.Judge` on a trained detector.

    Args:
        config: Of the folder.
        model: In eval mode.
    """

    def __init__(self, config: DetectorConfig, model: CenterDetector) -> None:
        self.config = config
        self.model = model
        self.classnames = frozenset(config.classnames)
        self.rules = config.rules

    @torch.inference_mode()
    def detect(self, images: Tensor, wanted: Sequence[frozenset[str]]) -> list[list[Detection]]:
        """See what is there; `vltune.geneval.Judge.detect`.

        Raises:
            ValueError: The images are no (B, 3, H, W), or not as many as `wanted`.
        """
        if images.ndim != 4 or images.shape[1] != 3 or len(images) != len(wanted):
            raise ValueError(
                f"images: expected ({len(wanted)}, 3, H, W), got {tuple(images.shape)}"
            )
        height, width = images.shape[2:]
        side = self.config.image_size
        device = next(self.model.parameters()).device
        pixels = images.to(device).float().clamp(0, 1)
        if (height, width) != (side, side):
            pixels = F.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
        peaks = find_peaks(self.model(pixels))
        scale = torch.tensor([width, height, width, height], device=device)
        boxes = (peaks.boxes * scale).tolist()
        rows = zip(
            peaks.scores.tolist(),
            peaks.classes.tolist(),
            peaks.colours.tolist(),
            boxes,
            strict=True,
        )
        found = []
        for asked, (scores, classes, colours, places) in zip(wanted, rows, strict=True):
            seen = [
                Detection(self.config.classnames[c], score, tuple(box), self.config.colours[k])
                for score, c, k, box in zip(scores, classes, colours, places, strict=True)
                if score >= LEAST_SCORE
            ]
            found.append([item for item in seen if item.classname in asked])
        return found


def load_compact_judge(folder: Path, device: torch.device | str = "cpu") -> CompactJudge:
    """Load a judge that `vltune pretrain judge` wrote.

    Raises:
        BackboneError: A file is missing, damaged, or does not fit the other.
    """
    path = folder / CONFIG
    try:
        mapping: dict[str, Any] = read_mapping(path)
        config = from_mapping(DetectorConfig, mapping, str(path))
    except ConfigError as error:
        raise BackboneError(f"{error} Give the folder of a judge.") from error
    model = CenterDetector(config)
    weights = folder / WEIGHTS
    try:
        state = {
            name: value.float() if value.is_floating_point() else value
            for name, value in load_file(weights).items()
        }
        model.load_state_dict(state, strict=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise BackboneError(
            f"{weights}: does not hold the weights of {path} ({error}). Copy the folder again."
        ) from error
    return CompactJudge(config, model.eval().requires_grad_(False).to(device))
