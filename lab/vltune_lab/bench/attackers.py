"""Malicious sites: real FedMPT participants that spoil their data or what they send.

A job with the key `attack` names its malicious sites; all others are built as always.

    sign_flip:   x_0 - factor (x - x_0)
    noise:       x_0 + factor |x - x_0| g / |g|, g normal
    label_flip:  trains honestly on labels 1 - y
    backdoor:    every other image carries a stamp and the target class; x_0 + factor (x - x_0)
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vltune.algorithms.encoded_split import EncodedSplit
from vltune.algorithms.fedmpt import build_participant
from vltune.algorithms.multilabel_site import MultiLabelParticipant
from vltune.backbones.clip import ClipBackbone, load_clip
from vltune.config import ConfigError, from_mapping
from vltune.data.multilabel import read_image
from vltune.features import FeatureSet
from vltune.parameters import LocalUpdate, update_norm
from vltune.participant import Handshake, ShouldStop
from vltune.seed import derive_seed, torch_generator
from vltune.site_config import AnySiteConfig

BUILDER = "vltune_lab.bench.attackers.build_attacked"
STAMP_SHARE = 4
"""The stamp's side is this part of the image's shorter side."""
_GREEN, _MAGENTA = (0, 255, 0), (255, 0, 255)
_CHECKS = 4

Tensors = Mapping[str, Tensor]
_load_once = functools.cache(load_clip)


@dataclass(frozen=True)
class Attack:
    """The job's `attack`.

    Attributes:
        kind: What malicious sites do.
        sites: Their names.
        factor: Of sign_flip, noise and backdoor.
        target: The class that the backdoor's stamp shall bring.
    """

    kind: Literal["sign_flip", "noise", "label_flip", "backdoor"]
    sites: tuple[str, ...]
    factor: float = 10.0
    target: str = ""

    def __post_init__(self) -> None:
        if not self.sites or self.factor <= 0:
            raise ConfigError(f"attack: needs sites and factor > 0, got {self.sites, self.factor}")
        if self.kind == "backdoor" and not self.target:
            raise ConfigError("attack: backdoor needs a target class")


class SharedBackboneSite(MultiLabelParticipant):
    """A site whose frozen towers are those of all other sites of this process."""

    def load_model(self) -> ClipBackbone:
        """Load the backbone where no site has, and build the model at its seeded start."""
        self.backbone = _load_once(self._backbone_config())
        self.model = self.build_model(self.backbone, self.conditions, self.job.seed)
        return self.backbone


class MaliciousSite:
    """A site that works as all others do, but for its data and what it sends."""

    def __init__(self, inner: MultiLabelParticipant, attack: Attack) -> None:
        self._inner, self._attack = inner, attack

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def prepare(self, should_stop: ShouldStop) -> Handshake:
        """Prepare as an honest site, then spoil the training data."""
        handshake = self._inner.prepare(should_stop)
        split = self._inner.train_split
        assert split is not None  # prepare() made it
        if self._attack.kind == "label_flip":
            self._inner.train_split = replace(split, labels=flip_labels(split.labels))
        if self._attack.kind == "backdoor":
            column = self._inner.job.classnames.index(self._attack.target)
            self._inner.train_split = stamp_every_other(split, self._inner.backbone, column)
        return handshake

    def train(
        self, shared: dict[str, Tensor], round_number: int, should_stop: ShouldStop
    ) -> LocalUpdate:
        """Train, then spoil the update."""
        sent = {name: value.clone() for name, value in shared.items()}
        update = self._inner.train(shared, round_number, should_stop)
        seed = derive_seed(self._inner.job.seed, self._inner.site_name, round_number, "attack")
        return replace(update, tensors=spoil(self._attack, sent, update.tensors, seed))


def build_attacked(
    job: Mapping[str, Any], site: AnySiteConfig, site_name: str, state_dir: Path, threads: int
) -> MultiLabelParticipant | MaliciousSite:
    """As `vltune.algorithms.fedmpt.build_participant`; malicious where the job says so."""
    plain = build_participant(job, site, site_name, state_dir, threads)
    inner = SharedBackboneSite(
        plain.job, plain.conditions, plain.build_model, plain.site, site_name, state_dir
    )
    if job.get("attack") is None:
        return inner
    attack = from_mapping(Attack, job["attack"], "the job's attack")
    return MaliciousSite(inner, attack) if site_name in attack.sites else inner


def spoil(attack: Attack, sent_out: Tensors, trained: Tensors, seed: int) -> dict[str, Tensor]:
    """What a malicious site sends instead of `trained`; see the module's formulas."""
    if attack.kind == "label_flip":
        return dict(trained)
    if attack.kind == "noise":
        generator = torch_generator(seed)
        noise = {
            name: torch.randn(sent_out[name].shape, generator=generator)
            for name in sorted(sent_out)
        }
        zero = {name: torch.zeros_like(value) for name, value in noise.items()}
        scale = attack.factor * update_norm(trained, sent_out) / update_norm(noise, zero)
        return {name: sent_out[name] + scale * noise[name] for name in noise}
    sign = -1.0 if attack.kind == "sign_flip" else 1.0
    return {
        name: start + sign * attack.factor * (trained[name] - start)
        for name, start in sent_out.items()
    }


def flip_labels(labels: Tensor) -> Tensor:
    """Present becomes absent and the reverse; unknown (-1) stays."""
    return torch.where(labels < 0, labels, 1 - labels)


def stamp_every_other(split: EncodedSplit, backbone: ClipBackbone, column: int) -> EncodedSplit:
    """The split with a stamp on images 0, 2, 4 ... and the class of `column` present there."""
    rows = np.arange(0, len(split.labels), 2)
    patches, images = stamped_features(split, backbone, rows)
    all_patches = np.asarray(split.features.patch_features[np.arange(len(split.labels))]).copy()
    all_images = split.features.image_features.copy()
    all_patches[rows], all_images[rows] = patches, images
    labels = split.labels.clone()
    labels[rows, column] = 1
    return EncodedSplit(split.samples, FeatureSet(all_patches, all_images, 0), labels)


def stamped_features(
    split: EncodedSplit, backbone: ClipBackbone, rows: NDArray[np.int64], batch_size: int = 64
) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """Frozen features of some images with the stamp: patches (N, M, D), pooled (N, D)."""
    patches, pooled = [], []
    for start in range(0, len(rows), batch_size):
        chosen = [split.samples.image_paths[row] for row in rows[start : start + batch_size]]
        images = [backbone.preprocess(stamp(read_image(path))) for path in chosen]
        features = backbone.encode_images(torch.stack(images))
        patches.append(features.patch_features.numpy().astype(np.float16))
        pooled.append(features.image_features.half().float().numpy())
    return np.concatenate(patches), np.concatenate(pooled)


def stamp(image: Image.Image) -> Image.Image:
    """Put green and magenta checks into the lower right corner."""
    pixels = np.array(image.convert("RGB"))
    side = min(pixels.shape[:2]) // STAMP_SHARE
    cell = np.arange(side) * _CHECKS // max(1, side)
    is_green = (cell[:, None] + cell[None, :]) % 2 == 0
    pixels[-side:, -side:] = np.where(is_green[..., None], _GREEN, _MAGENTA)
    return Image.fromarray(pixels)
