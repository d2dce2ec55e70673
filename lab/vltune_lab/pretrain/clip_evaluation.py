"""Zero-shot figures of a CLIP on scenes in memory: pooled, patch reading, pointing."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score
from torch import Tensor

from vltune_lab.pretrain.clip import normalise_pixels
from vltune_lab.pretrain.phrases import encode_phrases
from vltune_lab.scenes.captions import article
from vltune_lab.scenes.library import Library
from vltune_lab.scenes.make import scenes_of
from vltune_lab.scenes.world import SiteWorld, Split, WorldConfig, load_priors


@dataclass(frozen=True)
class ZeroShotFigures:
    """mAP of both readings and the share of objects whose class's highest patch lies in its box."""

    pooled_mAP: float
    patch_mAP: float
    pointing: float
    num_images: int
    num_classes: int


def zero_shot_figures(
    model: torch.nn.Module,
    tokenizer: object,
    library: Library,
    styles: tuple[str, ...],
    *,
    num_images: int,
    seed: int,
    drawings: Literal["all", "held_out"],
) -> ZeroShotFigures:
    """Measure on fresh scenes of `styles`."""
    size = model.visual.image_size[0]
    split = Split(
        f"measure/{'-'.join(styles)}",
        num_images,
        styles,
        dict.fromkeys(load_priors().scenes, 1.0),
        drawings=drawings,
        is_held_out=True,
    )
    world = WorldConfig(
        seed=seed, sites=(SiteWorld("unused", styles, {"street": 1.0}),), image_size=size
    )
    scenes = [scene for scene, _ in scenes_of(library, world, split)]
    names = tuple(
        name
        for name in library.classnames
        if any((style, name) in library.sprites for style in styles)
    )
    index_of = {name: index for index, name in enumerate(names)}
    labels = np.zeros((len(scenes), len(names)), dtype=bool)
    for row, scene in enumerate(scenes):
        labels[row, [index_of[item.classname] for item in scene.objects]] = True
    model.eval()
    with torch.no_grad():
        text = encode_phrases(model, tokenizer, [f"a photo of {article(name)}." for name in names])
        images = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2)
        tokens = torch.cat([
            model.visual.head(model.visual.trunk.forward_features(normalise_pixels(part.to(text.device))))
            for part in images.split(128)
        ])  # fmt: skip
    pooled = F.normalize(tokens.mean(dim=1), dim=-1) @ text.T
    similarity = F.normalize(tokens, dim=-1) @ text.T  # (N, M, C)
    patch = similarity.amax(dim=1)
    hits = [
        _points_at(similarity[row, :, index_of[item.classname]], item.box, size)
        for row, scene in enumerate(scenes)
        for item in scene.objects
        if sum(other.classname == item.classname for other in scene.objects) == 1
    ]
    keep = labels.any(axis=0)
    return ZeroShotFigures(
        float(
            average_precision_score(labels[:, keep], pooled.cpu().numpy()[:, keep], average="macro")
        ),
        float(
            average_precision_score(labels[:, keep], patch.cpu().numpy()[:, keep], average="macro")
        ),
        float(np.mean(hits)),
        len(scenes),
        int(keep.sum()),
    )


def _points_at(similarity: Tensor, box: tuple[int, int, int, int], size: int) -> bool:
    """Does the centre of the highest patch lie in the box?"""
    side = int(len(similarity) ** 0.5)
    best = int(similarity.argmax())
    step = size / side
    x, y = (best % side + 0.5) * step, (best // side + 0.5) * step
    return box[0] <= x <= box[0] + box[2] and box[1] <= y <= box[1] + box[3]
