"""Folders that hold a model, and folders that are damaged, on the tiny random Llama."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vltune_lab.discovery import model_folder
from vltune_lab.discovery.backend import BackendError
from vltune_lab.discovery.model_folder import load_model_folder, weights_sha256

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow


def test_the_hash_is_that_of_sha256sum(tmp_path: Path) -> None:
    """`printf x > b.safetensors; printf y > a.safetensors; sha256sum *.safetensors | sha256sum`."""
    (tmp_path / "b.safetensors").write_text("x")
    (tmp_path / "a.safetensors").write_text("y")
    assert weights_sha256(tmp_path) == (
        "239f0ddb61e5b863dfd78a58778ff8039f0d444a4da520f9be49d17e90a45a4c"
    )


def drop_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def reshape_tensor(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))


def own_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    own = config | {"model_type": "own", "auto_map": code, "architectures": ["Own"]}
    (folder / "config.json").write_text(json.dumps(own))
    (folder / "own.py").write_text("raise SystemExit('code of the folder was run')")


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def grow_tokenizer(folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["one", "two"])
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no such folder. Models are read from this disk only; download it first"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json. Give the folder"),
        (lambda folder: (folder / "config.json").write_text("{"), "not a readable JSON object"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no *.safetensors"),
        (cut_weights, "cannot be loaded (SafetensorError"),
        (drop_tensor, "1 weights are missing or of another shape, the first is model.layers.1"),
        (reshape_tensor, "6 weights are missing or of another shape"),
        (own_code, "wants to run code of its own, which we never do"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "cannot be loaded ("),
        (grow_tokenizer, "the tokenizer has 260 tokens, the model 258"),
    ],
)
def test_a_folder_that_cannot_be_used(
    folder: Path, damage: Callable[[Path], Any], message: str
) -> None:
    damage(folder)
    with pytest.raises(BackendError) as caught:
        load_model_folder(str(folder))
    assert message in str(caught.value)


def test_a_missing_package_names_its_cure(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_folder, "find_spec", lambda _name: None)
    with pytest.raises(BackendError, match=r"pip install 'vltune\[transformers\]'"):
        load_model_folder(str(tiny))
