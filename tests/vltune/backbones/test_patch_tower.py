from dataclasses import replace
from typing import Any

import pytest
import torch

from vltune.backbones.blip3o_config import TowerSettings
from vltune.backbones.checkpoint import BackboneError
from vltune.backbones.patch_tower import PatchTower, freeze, pool_tokens, standard_statistics

TRANSFORMERS: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 4,
}
CLIP = TowerSettings(
    kind="clip",
    settings=TRANSFORMERS,
    image_size=16,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    num_tokens=16,
    width=8,
)
SIGLIP = replace(CLIP, kind="siglip")
COMPACT = replace(
    CLIP,
    kind="timm",
    settings={"name": "vltune_convstem_vit_p8"},
    image_size=64,
    num_tokens=64,
    width=128,
)


@pytest.mark.parametrize("settings", [CLIP, SIGLIP, COMPACT], ids=["clip", "siglip", "compact"])
def test_each_kind_gives_its_patches(settings: TowerSettings) -> None:
    torch.manual_seed(0)
    tower = PatchTower(settings)
    freeze(tower)
    side = settings.image_size
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    tokens = tower(pixels)
    assert tokens.shape == (2, settings.num_tokens, settings.width)
    assert not tokens.requires_grad
    assert not torch.allclose(tokens[0], tokens[1])
    torch.testing.assert_close(tower(pixels[:1])[0], tokens[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings", [CLIP, SIGLIP], ids=["clip", "siglip"])
def test_tokens_are_normed_by_the_towers_last_norm(settings: TowerSettings) -> None:
    """With its start of weight 1 and bias 0, each token has mean 0 and variance 1."""
    torch.manual_seed(0)
    tokens = PatchTower(settings)(torch.randn(1, 3, 16, 16))
    torch.testing.assert_close(tokens.mean(dim=-1), torch.zeros(1, 16), rtol=0, atol=1e-5)
    variance = tokens.var(dim=-1, unbiased=False)
    torch.testing.assert_close(variance, torch.ones(1, 16), rtol=0, atol=1e-2)


def test_pooling_by_hand() -> None:
    """A 4 x 4 grid 0..15, squares of 2: (0+1+4+5)/4 = 2.5, then 4.5, 10.5, 12.5."""
    grid = torch.arange(16.0).reshape(1, 16, 1)
    assert pool_tokens(grid, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert pool_tokens(grid, 1) is grid
    pooled = PatchTower(replace(CLIP, num_tokens=4, pool=2))(torch.zeros(1, 3, 16, 16))
    assert pooled.shape == (1, 4, 8)


def test_wrong_towers_are_refused() -> None:
    with pytest.raises(BackboneError, match=r"\(16, 8\) tokens, its settings say \(4, 8\)"):
        PatchTower(replace(CLIP, num_tokens=4))(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match=r"got \(1, 3, 8, 16\)"):
        PatchTower(CLIP)(torch.zeros(1, 3, 8, 16))
    with pytest.raises(BackboneError, match="cannot be built"):
        PatchTower(replace(COMPACT, settings={"name": "no_such_tower"}))


def test_statistics_by_hand() -> None:
    """Channel 0: 1 and 3, mean 2, sample deviation sqrt 2; channel 1 is constant: clamped."""
    mean, std = standard_statistics(torch.tensor([[[1.0, 5.0]], [[3.0, 5.0]]]))
    assert mean.tolist() == [2.0, 5.0]
    assert std.tolist() == pytest.approx([2**0.5, 1e-4])
