"""A judge for photographs: an object detector of transformers, and a way to name colours.

    judge = load_detector_judge("/models/detr-resnet-50", ClipColour(load_clip(...)))

Any checkpoint of `AutoModelForObjectDetection`, from a local folder or a hub id. No code of the
checkpoint is run.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from vltune.backbones.checkpoint import BackboneError
from vltune.backbones.colour_naming import ColourNamer
from vltune.geneval import Detection, GenevalRules

logger = logging.getLogger(__name__)

LEAST_SCORE = 0.05
_NO_CLASS = frozenset({"N/A", "no-object", "background"})
_SHOWN = 4


class DetectorJudge:
    """A `vltune.geneval.Judge` on a detector of transformers.

    Args:
        model: In eval mode.
        processor: Its image processor.
        colours: Names the colour of each box that is asked for.
        rename: The detector's class -> the prompts' name of it.
        rules: Thresholds for its scores.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        colours: ColourNamer,
        *,
        rename: Mapping[str, str],
        rules: GenevalRules,
    ) -> None:
        labels = {
            int(index): name
            for index, name in model.config.id2label.items()
            if name not in _NO_CLASS
        }
        strange = sorted(set(rename) - set(labels.values()))
        if strange:
            raise BackboneError(
                f"rename names classes that the detector does not have: {', '.join(strange)}. It "
                f"has {', '.join(sorted(set(labels.values()))[:12])}, ..."
            )
        self._names = {index: rename.get(name, name) for index, name in labels.items()}
        self._model = model
        self._processor = processor
        self._colours = colours
        self.classnames = frozenset(self._names.values())
        self.rules = rules

    @torch.inference_mode()
    def detect(self, images: Tensor, wanted: Sequence[frozenset[str]]) -> list[list[Detection]]:
        """See what is there; `vltune.geneval.Judge.detect`."""
        if images.ndim != 4 or images.shape[1] != 3 or len(images) != len(wanted):
            raise ValueError(
                f"images: expected ({len(wanted)}, 3, H, W), got {tuple(images.shape)}"
            )
        pixels = (images.float().clamp(0, 1) * 255).round().to(torch.uint8)
        inputs = self._processor(images=list(pixels), return_tensors="pt").to(self._model.device)
        results = self._processor.post_process_object_detection(
            self._model(**inputs),
            threshold=LEAST_SCORE,
            target_sizes=[tuple(images.shape[2:])] * len(images),
        )
        return [
            self._named(image, result, asked)
            for image, result, asked in zip(images, results, wanted, strict=True)
        ]

    def _named(
        self, image: Tensor, result: Mapping[str, Tensor], asked: frozenset[str]
    ) -> list[Detection]:
        seen = []
        rows = (result[key].tolist() for key in ("labels", "scores", "boxes"))
        for label, score, box in zip(*rows, strict=True):
            name = self._names.get(label)
            if name in asked:
                seen.append((name, score, tuple(box)))
        boxes, names = [item[2] for item in seen], [item[0] for item in seen]
        colours = self._colours.name(image, boxes, names)
        return [
            Detection(name, score, box, colour)
            for (name, score, box), colour in zip(seen, colours, strict=True)
        ]


def load_detector_judge(
    source: str,
    colours: ColourNamer,
    *,
    rename: Mapping[str, str] | None = None,
    rules: GenevalRules | None = None,
    device: torch.device | str = "cpu",
) -> DetectorJudge:
    """Load a detector and its image processor.

    Args:
        source: Folder or hub id.
        colours: Names colours.
        rename: The detector's class -> the prompts' name, such as `tv` -> `television`.
        rules: Thresholds; None: those of Ghosh et al. 2023, made for another detector. Choose your
            own on pictures of which you know the truth.
        device: Where it will run.

    Raises:
        BackboneError: The checkpoint cannot be loaded, is no detector or lacks weights, or `rename`
            names a class that it does not have.
    """
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    try:
        model, report = AutoModelForObjectDetection.from_pretrained(
            source, dtype="float32", output_loading_info=True, trust_remote_code=False
        )
        processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise BackboneError(
            f"{source}: cannot be loaded as an object detector ({error}). Give the folder or hub id"
            " of a checkpoint of transformers' AutoModelForObjectDetection."
        ) from error
    missing = [*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])]
    if missing:
        raise BackboneError(
            f"{source}: {len(missing)} tensors are missing or of another shape, such as "
            f"{', '.join(sorted(missing)[:_SHOWN])}. Get the whole checkpoint of a detector."
        )
    if not hasattr(processor, "post_process_object_detection"):
        raise BackboneError(
            f"{source}: its image processor {type(processor).__name__} does not turn outputs into "
            "boxes. Give a checkpoint with a detector's processor."
        )
    logger.info("loaded a detector of %d classes from %s", len(model.config.id2label), source)
    return DetectorJudge(
        model.eval().requires_grad_(False).to(device),
        processor,
        colours,
        rename=rename or {},
        rules=rules or GenevalRules(),
    )
