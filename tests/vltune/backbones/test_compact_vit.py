import json
from pathlib import Path

import open_clip
import pytest
import timm
import torch

from vltune.backbones.compact_vit import (
    EMBED_DIM,
    ConvStem,
    register_compact_towers,
    vltune_convstem_vit_p8,
)

CONFIG = Path(__file__).parents[3] / "assets" / "clip-compact" / "open_clip_config.json"


def test_registration_may_be_repeated() -> None:
    """Timm warns when a name is registered twice, and a warning fails this suite."""
    register_compact_towers()
    register_compact_towers()
    assert timm.is_model("vltune_convstem_vit_p8")


def test_tokens_are_normed_before_pooling() -> None:
    trunk = vltune_convstem_vit_p8().eval()
    with torch.no_grad():
        images = torch.randn(2, 3, 64, 64)
        tokens = trunk.forward_features(images)
        torch.testing.assert_close(trunk(images), tokens.mean(dim=1))
    assert tokens.shape == (2, 64, EMBED_DIM)
    torch.testing.assert_close(tokens.mean(dim=-1), torch.zeros(2, 64), atol=1e-5, rtol=0)


def test_stem_keeps_rows_before_columns() -> None:
    """A bright 8x8 cell in row 2, column 5 changes token 2 * 8 + 5 = 21 most."""
    torch.manual_seed(3)
    stem = ConvStem().eval()
    images = torch.zeros(2, 3, 64, 64)
    images[1, :, 16:24, 40:48] = 1.0
    with torch.no_grad():
        tokens = stem(images)
    assert int((tokens[1] - tokens[0]).norm(dim=-1).argmax()) == 21


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(48, 64\) differs from the trunk's \(64, 64\)"):
        ConvStem()(torch.zeros(1, 3, 48, 64))
    with pytest.raises(ValueError, match="patch_size=16"):
        ConvStem(patch_size=16)
    with pytest.raises(ValueError, match="img_size=60"):
        ConvStem(img_size=60)
    with pytest.raises(ValueError, match="no weights of its own"):
        vltune_convstem_vit_p8(pretrained=True)
    with pytest.raises(ValueError, match=r"does not take \['depth'\]"):
        vltune_convstem_vit_p8(depth=3)


def test_clip_compact_is_built_from_its_file() -> None:
    register_compact_towers()
    model = open_clip.CLIP(**json.loads(CONFIG.read_text())["model_cfg"]).eval()
    with torch.no_grad():
        image_features = model.encode_image(torch.zeros(2, 3, 64, 64))
        text_features = model.encode_text(torch.zeros(2, model.context_length, dtype=torch.long))
    assert image_features.shape == text_features.shape
    assert sum(parameter.numel() for parameter in model.parameters()) * 2 < 30e6  # fp16 bytes
