"""What the benchmark `speed` works on: clip-compact, a FedMPT model, images and their features."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from vltune.algorithms.encoded_split import EncodedSplit
from vltune.algorithms.fedmpt import FedMPT, FedMPTConfig
from vltune.backbones.clip import BackboneConfig, ClipBackbone, load_clip
from vltune.conditions import load_conditions
from vltune.data.multilabel import MultiLabelSamples, read_image
from vltune.features import FeatureCache
from vltune_lab.pretrain.state import build_model

ROOT = Path(__file__).resolve().parents[3]
MODEL_FOLDER = ROOT / "assets" / "clip-compact"
CONDITIONS_FILE = ROOT / "condition_cache" / "embedded.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
CONFIG_FILE = "open_clip_config.json"
SEED = 7


@dataclass(frozen=True)
class Size:
    """B images, the first C classes and K conditions of the embedded class list, repeats."""

    images: int = 32
    classes: int = 1000
    conditions: int = 1000
    repeats: int = 7


FULL = Size()
QUICK = Size(images=4, classes=7, conditions=2, repeats=5)


@dataclass(frozen=True)
class Workload:
    """What every part works on.

    Attributes:
        backbone: clip-compact, trained if its weights are there.
        model: FedMPT with the paper's architecture, moved a little away from its initialisation.
        split: Images and their cached features.
        images: Preprocessed, (B, 3, H, W).
        conditions: K names.
        classnames: C names.
        repeats: Timed runs of each way.
    """

    backbone: ClipBackbone
    model: FedMPT
    split: EncodedSplit
    images: Tensor
    conditions: tuple[str, ...]
    classnames: tuple[str, ...]
    repeats: int

    @property
    def setting(self) -> str:
        """Sizes, readable."""
        return (
            f"B={len(self.images)} K={len(self.conditions)} M={self.backbone.num_patches} "
            f"C={len(self.classnames)} D={self.backbone.embed_dim}"
        )


def make_workload(size: Size, work: Path) -> Workload:
    """Images, cached features and a model; `work` holds images, cache and, if need be, weights."""
    content = json.loads(CONDITIONS_FILE.read_text(encoding="utf-8"))
    known = load_conditions(CONDITIONS_FILE, content["classnames"])
    classnames = tuple(known.classnames[: size.classes])
    conditions = tuple(known.names[: size.conditions])
    backbone = _compact_backbone(work)
    split = _random_split(size.images, backbone, classnames, work)
    images = torch.stack(
        [backbone.preprocess(read_image(path)) for path in split.samples.image_paths]
    )
    model = FedMPT(FedMPTConfig(), backbone, conditions, classnames, SEED)
    with torch.no_grad():  # `up` starts at zero, where some of the adapters' gradients vanish
        generator = torch.Generator().manual_seed(SEED)
        for value in model.trainable_parameters():
            value += 0.02 * torch.randn(value.shape, generator=generator)
    return Workload(backbone, model, split, images, conditions, classnames, size.repeats)


def _compact_backbone(work: Path) -> ClipBackbone:
    """clip-compact in fp32; random weights of its architecture where it has not been trained."""
    folder = MODEL_FOLDER
    if not (folder / WEIGHTS_FILE).is_file():
        folder = work / "clip-compact"
        folder.mkdir()
        with torch.random.fork_rng(devices=[]):
            model, _ = build_model(MODEL_FOLDER, SEED)
        state = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
        save_file(state, folder / WEIGHTS_FILE)
        (folder / CONFIG_FILE).write_bytes((MODEL_FOLDER / CONFIG_FILE).read_bytes())
    return load_clip(BackboneConfig("clip-compact", str(folder)), bfloat16=False)


def _random_split(
    count: int, backbone: ClipBackbone, classnames: tuple[str, ...], work: Path
) -> EncodedSplit:
    rng = np.random.default_rng(SEED)
    height, width = backbone.image_size
    paths = []
    for index in range(count):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        paths.append(work / f"{index}.png")
        Image.fromarray(pixels).save(paths[-1])
    labels = (rng.random((count, len(classnames))) < 0.1).astype(np.int8)
    features = FeatureCache(work / "cache", backbone).encode(paths, read_image)
    samples = MultiLabelSamples(tuple(paths), labels, classnames)
    return EncodedSplit(samples, features, torch.from_numpy(labels.astype(np.int64)))
