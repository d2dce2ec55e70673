"""Which loader reads which model: by the beginning of the model's name, and by nothing else.

    backbone = load_backbone(BackboneConfig("Florence-2-base", "/models/florence-2-base"), "cuda:0")

A name may have an owner before a slash, as on a hub. A loader is imported when it is needed, so
that a site needs only what its job uses.
"""

import importlib
from typing import NamedTuple

import torch

from vltune.backbones.checkpoint import BackboneConfig, BackboneError
from vltune.backbones.devices import require_device
from vltune.backbones.vision_language import VisionLanguageBackbone


class Loader(NamedTuple):
    """Where the loader of a family is.

    Attributes:
        prefixes: Beginnings of names, in lower case.
        module: Imported when needed.
        function: (config, device) -> backbone.
        examples: Names for messages.
    """

    prefixes: tuple[str, ...]
    module: str
    function: str
    examples: str


LOADERS = (
    Loader(
        ("florence2-", "florence-2-"),
        "vltune.backbones.florence2",
        "load_florence2",
        "florence2-compact, Florence-2-base, Florence-2-large",
    ),
    Loader(
        ("janus-",),
        "vltune.backbones.janus",
        "load_janus",
        "janus-compact, Janus-Pro-1B, Janus-Pro-7B",
    ),
    Loader(("blip3o-",), "vltune.backbones.blip3o", "load_blip3o", "blip3o-compact"),
    Loader(
        ("blip-vqa", "blip_vqa"),
        "vltune.backbones.blip_vqa",
        "load_blip_vqa",
        "blip-vqa-base, blip-vqa-capfilt-large",
    ),
)


def find_loader(model: str) -> Loader:
    """The loader of a model's name.

    Raises:
        BackboneError: No name begins like that; the known ones are listed.
    """
    name = model.rpartition("/")[2].lower()
    for loader in LOADERS:
        if name.startswith(loader.prefixes):
            return loader
    known = "; ".join(
        f"{', '.join(f'{prefix}...' for prefix in loader.prefixes)} (such as {loader.examples})"
        for loader in LOADERS
    )
    raise BackboneError(
        f"backbone.model {model!r}: no vision-language backbone of this name; a name begins with "
        f"{known}"
    )


def load_backbone(
    config: BackboneConfig, device: torch.device | str = "cpu"
) -> VisionLanguageBackbone:
    """Load the model that `config` names on a device.

    Args:
        config: Name, weights and optional hash.
        device: cpu, cuda or cuda:N.

    Raises:
        BackboneError: The name is not known, its loader needs a package that is not installed, or
            the checkpoint is wrong.
        ConfigError: The device is not there.
    """
    loader = find_loader(config.model)
    place = require_device(str(device))
    try:
        module = importlib.import_module(loader.module)
    except ModuleNotFoundError as error:
        if error.name == loader.module:
            raise BackboneError(
                f"backbone.model {config.model!r}: this version of VLTune has no {loader.module}"
            ) from error
        raise BackboneError(
            f"backbone.model {config.model!r}: needs the Python package {error.name}, which is not "
            "installed. Install it with: pip install 'vltune[transformers]'"
        ) from error
    loaded: VisionLanguageBackbone = getattr(module, loader.function)(config, place)
    return loaded
