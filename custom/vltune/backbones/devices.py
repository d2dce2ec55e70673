"""Where a site's model runs: only on what is really there."""

import torch
from torch import Tensor

from vltune.config import ConfigError


def require_device(name: str) -> torch.device:
    """The device of this name.

    Raises:
        ConfigError: Another name, or this machine has no such device.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device is {name!r}; expected cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device is {name!r}; expected cpu, cuda or cuda:N")
    if device.type == "cpu":
        return device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        raise ConfigError(
            f"device is {name!r}, but torch {torch.__version__} sees {count} CUDA devices here. "
            "Say device: cpu in vltune_site.yaml, or install a driver and a torch for this GPU."
        )
    return device


def place_images(images: Tensor, size: tuple[int, int], device: torch.device) -> Tensor:
    """Preprocessed images (B, 3, H, W) on the device.

    Raises:
        ValueError: They have another shape than `size` (H, W) says; both are printed.
    """
    expected = (3, *size)
    if tuple(images.shape[1:]) != expected:
        raise ValueError(f"images: expected (B, *{expected}), got {tuple(images.shape)}")
    return images.to(device)
