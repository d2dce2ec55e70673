import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from vltune.backbones.checkpoint import BackboneConfig, BackboneError
from vltune.backbones.clip import ClipBackbone, load_clip
from vltune.files import sha256_file

Folder = Callable[..., Path]
WEIGHTS = "open_clip_model.safetensors"

COMPACT = {
    "vision_cfg": {
        "image_size": 64,
        "timm_model_name": "vltune_convstem_vit_p8",
        "timm_pool": "avg",
        "timm_proj": "linear",
    }
}
# The towers of SigLIP at toy size: attention pooling, no projection, a text tower without a causal
# mask that is read at its last, padded position.
SIGLIP = {
    "embed_dim": 64,
    "custom_text": True,
    "init_logit_bias": -10.0,
    "vision_cfg": {
        "image_size": 160,
        "timm_model_name": "test_vit",
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
}


def load(folder: Path, **changes: str) -> ClipBackbone:
    return load_clip(BackboneConfig(changes.pop("model", "tiny"), str(folder), **changes))


def edit_json(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    state = load_file(folder / WEIGHTS)
    edit(state)
    save_file(state, folder / WEIGHTS)


# --- what the loaded model computes


def test_patch_features_equal_the_output_tokens_path(clip_folder: Folder) -> None:
    """`output_tokens` returns normed tokens; the projection puts them in the joint space."""
    folder = clip_folder()
    backbone = load(folder)
    images = torch.randn(2, 3, 24, 40)
    features = backbone.encode_images(images)

    visual = backbone.model.visual
    visual.output_tokens = True
    with torch.no_grad():
        pooled, tokens = visual(images)
    torch.testing.assert_close(features.patch_features, F.normalize(tokens @ visual.proj, dim=-1))
    torch.testing.assert_close(features.image_features, F.normalize(pooled, dim=-1))
    assert features.patch_features.shape == (2, 15, 11)
    assert backbone.patch_grid == (3, 5)
    assert backbone.num_patches == 15


@pytest.mark.parametrize("custom_text", [False, True])
def test_features_equal_open_clips_own(clip_folder: Folder, custom_text: bool) -> None:
    folder = clip_folder(custom_text=custom_text)
    backbone = load(folder)
    texts = ["a photo of a cat.", "two dogs on a red sofa", "x"]
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
    reference = open_clip.create_model(f"local-dir:{folder}").eval()
    images = torch.randn(3, 3, 24, 40)
    with torch.no_grad():
        expected_text = reference.encode_text(tokens, normalize=True)
        expected_image = reference.encode_image(images, normalize=True)
    torch.testing.assert_close(backbone.encode_texts(texts), expected_text, atol=1e-6, rtol=0)
    torch.testing.assert_close(backbone.encode_images(images).image_features, expected_image)
    assert backbone.encode_texts([]).shape == (0, 11)


def test_compact_tower_pools_tokens_that_live_in_the_joint_space(clip_folder: Folder) -> None:
    """Average pooling and a bias-free projection commute: the mean patch is the image feature."""
    backbone = load(clip_folder(**COMPACT))
    patches, pooled = backbone._read_patches(torch.randn(2, 3, 64, 64))
    torch.testing.assert_close(patches.mean(dim=1), pooled)
    assert patches.shape == (2, 64, 11)
    assert backbone.patch_grid == (8, 8)


def test_siglip_patch_is_what_its_pooler_returns_for_that_patch_alone(clip_folder: Folder) -> None:
    backbone = load(clip_folder(**SIGLIP))
    images = torch.randn(2, 3, 160, 160)
    patches, pooled = backbone._read_patches(images)
    trunk = backbone.model.visual.trunk
    tokens = trunk.forward_features(images)  # one class token, then 100 patches
    alone = torch.cat([tokens[:, :1], tokens[:, 8:9]], dim=1)
    torch.testing.assert_close(patches[:, 7], trunk.forward_head(alone))
    torch.testing.assert_close(pooled, backbone.model.encode_image(images))
    assert patches.shape == (2, 100, 64)
    assert not backbone.is_causal_text
    assert backbone.logit_bias == pytest.approx(-10.0, abs=0.5)


def test_siglip_texts_are_read_at_the_last_position(clip_folder: Folder) -> None:
    backbone = load(clip_folder(**SIGLIP))
    texts = ["a cat", "a photo of two dogs"]
    with torch.no_grad():
        expected = backbone.model.encode_text(backbone.tokenizer(texts), normalize=True)
    torch.testing.assert_close(backbone.encode_texts(texts), expected, atol=1e-6, rtol=0)


def test_preprocessing_is_the_checkpoints(tiny_clip: ClipBackbone) -> None:
    """A constant image of value 128 becomes (128/255 - mean) / std in each channel."""
    image = Image.new("RGB", (17, 13), (128, 128, 128))
    pixels = tiny_clip.preprocess(image)
    expected = (128 / 255 - np.array([0.3, 0.4, 0.5])) / np.array([0.2, 0.3, 0.4])
    assert pixels.shape == (3, 24, 40)
    np.testing.assert_allclose(pixels[:, 5, 7], expected, atol=1e-6)


def test_backbone_is_frozen_and_leaves_the_random_state_alone(clip_folder: Folder) -> None:
    folder = clip_folder()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    backbone = load(folder)
    torch.testing.assert_close(torch.rand(2), expected)
    assert not backbone.model.training
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    assert backbone.logit_scale == pytest.approx(float(backbone.model.logit_scale.exp()))


def test_wrong_image_shape_and_long_text_are_refused(tiny_clip: ClipBackbone) -> None:
    with pytest.raises(ValueError, match=r"expected \(B, \*\(3, 24, 40\)\), got \(2, 3, 40, 24\)"):
        tiny_clip.encode_images(torch.zeros(2, 3, 40, 24))
    fits = " ".join(["cat"] * 29)
    assert tiny_clip.encode_texts([fits]).shape == (1, 11)
    with pytest.raises(ValueError, match="text of 30 tokens, tiny takes 29"):
        tiny_clip.encode_texts([fits + " cat"])


# --- fingerprints


def test_fingerprint_names_weights_not_files(clip_folder: Folder) -> None:
    folder = clip_folder()
    first = load(folder)
    edit_weights(folder, lambda state: None)
    assert load(folder).fingerprint == first.fingerprint

    def shift(state: dict[str, torch.Tensor]) -> None:
        state["visual.proj"][3, 2] += 1e-3

    edit_weights(folder, shift)
    assert load(folder).fingerprint != first.fingerprint


def test_fingerprint_is_the_same_in_both_layouts(clip_folder: Folder) -> None:
    """The seed is the same, and both layouts draw their weights in the same order."""
    plain = load(clip_folder("plain"))
    custom = load(clip_folder("custom", custom_text=True))
    assert plain.fingerprint == custom.fingerprint


def test_fingerprint_knows_the_activation(clip_folder: Folder) -> None:
    """QuickGELU changes every feature and no weight."""
    assert load(clip_folder("a")).fingerprint != load(clip_folder("b", quick_gelu=True)).fingerprint


def test_preprocess_fingerprint_knows_the_values(clip_folder: Folder) -> None:
    folder = clip_folder()
    before = load(folder).preprocess_fingerprint
    edit_json(folder / "open_clip_config.json", lambda c: c["preprocess_cfg"].update(std=[1, 1, 1]))
    assert load(folder).preprocess_fingerprint != before


def test_tokenizer_fingerprint_is_clips(tiny_clip: ClipBackbone) -> None:
    assert len(tiny_clip.tokenizer_fingerprint) == 64


# --- other ways to name the weights


def test_weights_may_be_half_precision_or_a_state_dict_in_either_layout(
    clip_folder: Folder,
) -> None:
    folder = clip_folder()
    edit_weights(folder, lambda s: s.update({k: v.half() for k, v in s.items()}))
    expected = load(folder)
    state = load_file(folder / WEIGHTS)
    text = ("transformer.", "token_emb", "positional", "ln_final", "text_proj")
    renamed = {f"module.text.{k}" if k.startswith(text) else f"module.{k}": state[k] for k in state}
    torch.save({"epoch": 3, "state_dict": renamed}, folder / "checkpoint.pt")
    pickled = folder / "checkpoint.pt"
    actual = load_clip(BackboneConfig("tiny", str(pickled), sha256_file(pickled)))
    assert actual.fingerprint == expected.fingerprint
    assert next(actual.model.parameters()).dtype == torch.float32


def test_expected_hash_is_compared(clip_folder: Folder) -> None:
    folder = clip_folder()
    load(folder, sha256=sha256_file(folder / WEIGHTS).upper())
    with pytest.raises(BackboneError, match=r"SHA-256 is .*, the job expects 0000"):
        load(folder, sha256="0" * 64)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")  # to write one, not to read it
def test_openai_archive_is_read_with_quick_gelu_and_openai_pixels(tmp_path: Path) -> None:
    from vltune.backbones.checkpoint import locate
    from vltune.backbones.weights import read_state

    path = tmp_path / "ViT-B-16.pt"
    model = torch.nn.Linear(2, 3)
    torch.jit.save(torch.jit.trace(model, torch.zeros(1, 2)), path)
    checkpoint = locate(BackboneConfig("ViT-B-16", str(path)))
    assert checkpoint.model_cfg["quick_gelu"] is True
    assert checkpoint.preprocess["mean"] == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    torch.testing.assert_close(read_state(path, is_known=True)["weight"], model.weight.detach())


# --- everything that must not end in random weights


def test_neither_file_nor_tag(tmp_path: Path) -> None:
    message = r"neither a file, nor a folder .*tags of ViT-B-16: openai"
    with pytest.raises(BackboneError, match=message):
        load_clip(BackboneConfig("ViT-B-16", str(tmp_path / "absent.safetensors")))
    with pytest.raises(BackboneError, match="that model has no tags"):
        load_clip(BackboneConfig("tiny", "laion2b"))


def test_tag_without_network_names_the_cure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BackboneError, match=r"cannot be fetched .* Without network give the path"):
        load_clip(BackboneConfig("ViT-B-16", "openai"))


@pytest.mark.parametrize(("model", "weights"), [("", "x"), ("ViT-B-16", " ")])
def test_empty_names(model: str, weights: str) -> None:
    with pytest.raises(BackboneError, match="never starts from random weights"):
        BackboneConfig(model, weights)


def test_malformed_hash() -> None:
    with pytest.raises(BackboneError, match="64 hex digits"):
        BackboneConfig("ViT-B-16", "openai", sha256="abc")


def test_unknown_architecture_suggests_a_close_one(clip_folder: Folder) -> None:
    file = clip_folder() / WEIGHTS
    (file.parent / "open_clip_config.json").unlink()
    with pytest.raises(BackboneError, match=r"did you mean .*ViT-B-16"):
        load_clip(BackboneConfig("ViT-B16", str(file)))


def test_bare_file_of_a_model_with_several_preprocessings(clip_folder: Folder) -> None:
    """ViT-L-14 exists with OpenAI's and with 0.5 pixel statistics; a bare file says neither."""
    file = clip_folder() / WEIGHTS
    (file.parent / "open_clip_config.json").unlink()
    with pytest.raises(BackboneError, match=r"preprocessing .* is not known \(2 are in use"):
        load_clip(BackboneConfig("ViT-L-14", str(file)))


def test_folder_without_weights_or_configuration(clip_folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="holds no open_clip_model"):
        load(tmp_path)
    folder = clip_folder()
    (folder / "open_clip_config.json").unlink()
    with pytest.raises(BackboneError, match=r"open_clip_config\.json: no such file"):
        load(folder)
    (folder / "open_clip_config.json").write_text("{}")
    with pytest.raises(BackboneError, match="expected JSON with model_cfg and preprocess_cfg"):
        load(folder)


def test_folder_without_pixel_statistics(clip_folder: Folder) -> None:
    folder = clip_folder(preprocess={"mean": [0.5, 0.5, 0.5]})
    with pytest.raises(BackboneError, match="preprocess_cfg lacks std"):
        load(folder)


def test_preprocessing_of_another_size(clip_folder: Folder) -> None:
    folder = clip_folder(preprocess={"mean": [0.5] * 3, "std": [0.5] * 3, "size": 32})
    with pytest.raises(
        BackboneError, match=r"size is \[32, 32\], the image tower takes \[24, 40\]"
    ):
        load(folder)


def test_label_that_names_another_architecture(clip_folder: Folder) -> None:
    with pytest.raises(BackboneError, match="another architecture than 'ViT-B-16'"):
        load(clip_folder(), model="ViT-B-16")


def test_truncated_and_unpicklable_files(clip_folder: Folder) -> None:
    folder = clip_folder()
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(BackboneError, match="cannot be read as a checkpoint"):
        load(folder)
    pickled = folder / "weights.pt"
    pickled.write_bytes(b"not a pickle")
    with pytest.raises(BackboneError, match="cannot be read as a checkpoint"):
        load_clip(BackboneConfig("tiny", str(pickled), sha256_file(pickled)))
    torch.save([torch.zeros(1)], pickled)
    with pytest.raises(BackboneError, match="expected a state dict"):
        load_clip(BackboneConfig("tiny", str(pickled), sha256_file(pickled)))


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_is_refused_and_where_its_hash_is_named_runs_no_code(clip_folder: Folder) -> None:
    folder = clip_folder()
    pickled, canary = folder / "weights.pt", folder / "canary"
    torch.save({"weight": Canary(canary)}, pickled)
    with pytest.raises(BackboneError, match="other formats may hold code"):
        load_clip(BackboneConfig("tiny", str(pickled)))
    with pytest.raises(BackboneError, match="cannot be read as a checkpoint"):
        load_clip(BackboneConfig("tiny", str(pickled), sha256_file(pickled)))
    assert not canary.exists()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            "positional_embedding",
            r"positional_embedding: file \(24, 20\), model \(31, 20\).*not interp",
        ),
        ("visual.positional_embedding", r"file \(10, 18\), model \(16, 18\).*not interpolated"),
    ],
)
def test_positions_are_never_interpolated(clip_folder: Folder, key: str, message: str) -> None:
    folder = clip_folder()
    rows = 24 if key == "positional_embedding" else 10

    def shorten(state: dict[str, torch.Tensor]) -> None:
        state[key] = state[key][:rows].clone()

    edit_weights(folder, shorten)
    with pytest.raises(BackboneError, match=message):
        load(folder)


def test_missing_and_unknown_tensors(clip_folder: Folder) -> None:
    folder = clip_folder()

    def rename(state: dict[str, torch.Tensor]) -> None:
        state["visual.projection"] = state.pop("visual.proj")

    edit_weights(folder, rename)
    with pytest.raises(
        BackboneError, match=r"2 tensors .* visual\.proj: missing in the file; visual"
    ):
        load(folder)


def test_damaged_values(clip_folder: Folder) -> None:
    folder = clip_folder()

    def spoil(state: dict[str, torch.Tensor]) -> None:
        state["ln_final.weight"][2] = float("nan")

    edit_weights(folder, spoil)
    with pytest.raises(BackboneError, match=r"NaN or infinite values in ln_final\.weight"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"vision_cfg": {"layers": [1] * 4, "width": 8, "head_width": 64, "image_size": 32}},
            "ModifiedResNet: it is no vision",
        ),
        ({"vision_cfg": {"attentional_pool": True, "attn_pooler_heads": 1}}, "pools by attention"),
        ({"vision_cfg": {"pool_type": "none"}}, "pools by attention or not at all"),
        ({"custom_text": True, "text_cfg": {"embed_cls": True}}, "without a class token"),
        ({"text_cfg": {"pool_type": "first"}}, "does not read a text at its end"),
        ({"text_cfg": {"vocab_size": 1000}}, "tokenizer does not fit"),
        (
            {"vision_cfg": {**COMPACT["vision_cfg"], "image_size": 96}},
            r"image_size is \(96, 96\), but the timm trunk is built for \(64, 64\)",
        ),
        ({"vision_cfg": {"timm_model_name": "test_resnet"}}, "no timm VisionTransformer"),
    ],
)
def test_unsupported_towers(clip_folder: Folder, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        load(clip_folder(**changes))


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("text_cfg", "hf_model_name", "roberta-base", "open_clip's text tower"),
        ("text_cfg", "no_such_option", 1, "not a model configuration"),
        ("vision_cfg", "timm_model_name", "no_such_trunk", "cannot be built"),
    ],
)
def test_configurations_that_cannot_be_built(
    clip_folder: Folder, section: str, key: str, value: Any, message: str
) -> None:
    folder = clip_folder()
    edit_json(
        folder / "open_clip_config.json", lambda c: c["model_cfg"][section].update({key: value})
    )
    with pytest.raises(BackboneError, match=message):
        load(folder)


# --- the real architecture


@pytest.mark.slow
def test_real_architecture_from_a_bare_file(tmp_path: Path) -> None:
    """ViT-B-16 as a site has it: one file, the architecture by name, nothing downloaded."""
    model = open_clip.create_model("ViT-B-16", pretrained_text=False).eval()
    path = tmp_path / "vit_b_16.safetensors"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    backbone = load_clip(BackboneConfig("ViT-B-16", str(path)))
    image = Image.new("RGB", (300, 200), (10, 90, 170))
    images = backbone.preprocess(image)[None]
    model.visual.output_tokens = True
    with torch.no_grad():
        _, tokens = model.visual(images)
        text = model.encode_text(backbone.tokenizer(["a photo of a cat."]), normalize=True)
    features = backbone.encode_images(images)
    expected = F.normalize(tokens @ model.visual.proj, dim=-1)
    torch.testing.assert_close(features.patch_features, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        backbone.encode_texts(["a photo of a cat."]), text, atol=1e-5, rtol=0
    )
    assert (backbone.num_patches, backbone.embed_dim, backbone.token_width) == (196, 512, 512)
