import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.append(str(Path(__file__).parents[1]))

from tiny_blip3o import TINY, make_tiny_blip3o, write_tiny_blip3o

from vltune.backbones.blip3o import load_blip3o
from vltune.backbones.blip3o_checkpoint import TIED, read_tokenizer, write_folder
from vltune.backbones.blip3o_config import Blip3oSettings
from vltune.backbones.checkpoint import BackboneConfig, BackboneError
from vltune.config import ConfigError, from_mapping, to_mapping
from vltune.files import sha256_file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_blip3o(tmp_path / "model")


def refusal(folder: Path, sha256: str = "") -> str:
    with pytest.raises(BackboneError) as caught:
        load_blip3o(BackboneConfig("blip3o-tiny", str(folder), sha256))
    return str(caught.value)


def edit(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_settings_survive_json() -> None:
    mapping = json.loads(json.dumps(to_mapping(TINY)))
    assert from_mapping(Blip3oSettings, mapping, "test") == TINY


def test_half_precision_is_read_as_fp32(folder: Path) -> None:
    model = make_tiny_blip3o()
    tokenizer = read_tokenizer(folder / "tokenizer.json")
    weights = write_folder(folder, model, tokenizer)
    assert {v.dtype for v in load_file(weights).values()} == {torch.float16}
    loaded = load_blip3o(BackboneConfig("half", str(folder), sha256_file(weights))).model
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_the_tied_projection_is_stored_once_and_stays_tied(folder: Path) -> None:
    assert TIED not in load_file(folder / "model.safetensors")
    language = load_blip3o(BackboneConfig("tied", str(folder))).model.language_model
    assert language.lm_head.weight is language.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("image_queries", None, r"image_queries: missing in the file"),
        ("left.over", torch.zeros(1), r"left\.over: unknown to the model"),
        ("image_queries", torch.zeros(4, 20), r"image_queries: file \(4, 20\), model \(3, 20\)"),
        ("feature_mean", torch.full((8,), float("nan")), r"NaN or infinite values"),
    ],
)
def test_keys_and_shapes_are_strict_both_ways(
    folder: Path, key: str, value: torch.Tensor | None, message: str
) -> None:
    weights = folder / "model.safetensors"
    state = load_file(weights)
    state.pop(key, None)
    if value is not None:
        state[key] = value
    save_file(state, weights)
    with pytest.raises(BackboneError, match=message):
        load_blip3o(BackboneConfig("blip3o-tiny", str(folder)))


def test_files_that_are_not_there(folder: Path, tmp_path: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "nowhere")
    assert "SHA-256 is" in refusal(folder, "0" * 64)
    (folder / "model.safetensors").unlink()
    assert "no such file" in refusal(folder)
    (folder / "tokenizer.json").unlink()
    assert "cannot be read as a tokenizer" in refusal(folder)
    (folder / "config.json").unlink()
    assert "config.json: no such file" in refusal(folder)


def test_other_layouts_and_values_are_refused(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    edit(folder, format=None, model_type="llava_qwen")
    assert "expected 'vltune-blip3o-1'" in refusal(folder)
    (folder / "config.json").write_text(text)
    edit(folder, extra=1)
    assert "unknown key extra" in refusal(folder)
    (folder / "config.json").write_text(text)
    edit(folder, max_answer_tokens=40)
    assert "max_position_embeddings is 64" in refusal(folder)
    (folder / "config.json").write_text(text)
    edit(folder, vision={**to_mapping(TINY)["vision"], "width": 9})
    assert "tensors do not fit" in refusal(folder)
    (folder / "config.json").write_text(text)
    edit(folder, language={**TINY.language, "vocab_size": 2000})
    assert "2048 tokens for a vocabulary of 2000" in refusal(folder)


def test_a_damaged_file_is_named(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    assert "model.safetensors: cannot be read" in refusal(folder)


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("vision", {"num_tokens": 15}, "square number"),
        ("vision", {"std": [0.0, 1.0, 1.0]}, "std > 0"),
        ("flow", {"width": 13}, "multiple of num_heads"),
        ("decoder", {"shuffle": 1}, "enlarge the grid of 4 to 8 pixels, expected 16"),
        ("decoder", {"channels": [12, 8]}, "multiples of 8"),
        ("generation", {"guidance": 1.0}, "guidance > 1"),
    ],
)
def test_settings_that_make_no_model(part: str, values: dict[str, object], message: str) -> None:
    mapping = to_mapping(TINY)
    mapping[part] = {**mapping[part], **values}
    with pytest.raises(ConfigError, match=message):
        from_mapping(Blip3oSettings, mapping, "test")


def test_a_copy_elsewhere_loads(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    load_blip3o(BackboneConfig("any name", str(tmp_path / "copy")))
