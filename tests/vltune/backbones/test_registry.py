import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))

from tiny_blip3o import write_tiny_blip3o
from tiny_florence import write_tiny_florence

from vltune.backbones import devices, registry
from vltune.backbones.checkpoint import BackboneConfig, BackboneError
from vltune.backbones.devices import require_device
from vltune.backbones.registry import Loader, find_loader, load_backbone
from vltune.config import ConfigError


@pytest.mark.parametrize(
    ("model", "module"),
    [
        ("florence2-compact", "florence2"),
        ("Florence-2-base", "florence2"),
        ("florence-community/Florence-2-large-ft", "florence2"),
        ("janus-compact", "janus"),
        ("deepseek-community/Janus-Pro-1B", "janus"),
        ("Janus-Pro-7B", "janus"),
        ("blip3o-compact", "blip3o"),
        ("blip-vqa-base", "blip_vqa"),
        ("Salesforce/blip-vqa-capfilt-large", "blip_vqa"),
        ("blip_vqa", "blip_vqa"),
    ],
)
def test_names_find_their_loader(model: str, module: str) -> None:
    assert find_loader(model).module == f"vltune.backbones.{module}"


@pytest.mark.parametrize("model", ["llava-7b", "florence", "my-janus-pro", "blip", "ViT-B-16"])
def test_unknown_names_list_the_known(model: str) -> None:
    with pytest.raises(BackboneError) as caught:
        load_backbone(BackboneConfig(model, "somewhere"))
    message = str(caught.value)
    assert repr(model) in message
    for known in ("florence2-...", "Janus-Pro-1B", "blip3o-compact", "blip-vqa-base"):
        assert known in message


def test_both_families_load_on_the_device(tmp_path: Path) -> None:
    florence = write_tiny_florence(tmp_path / "florence")
    blip3o = write_tiny_blip3o(tmp_path / "blip3o")
    for name, folder in (("florence2-tiny", florence), ("blip3o-tiny", blip3o)):
        backbone = load_backbone(BackboneConfig(name, str(folder)), "cpu")
        assert (backbone.name, backbone.device) == (name, torch.device("cpu"))


def test_a_missing_package_is_named_with_the_cure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "needs_more.py").write_text("import no_such_package_here\n")
    monkeypatch.syspath_prepend(tmp_path)
    loaders = (
        Loader(("needy-",), "needs_more", "load", "needy-1"),
        Loader(("absent-",), "vltune.backbones.absent", "load", "absent-1"),
    )
    monkeypatch.setattr(registry, "LOADERS", loaders)
    with pytest.raises(BackboneError, match=r"no_such_package_here.*pip install 'vltune\[trans"):
        load_backbone(BackboneConfig("needy-1", "x"))
    with pytest.raises(BackboneError, match=r"this version of VLTune has no vltune\.backbones\.ab"):
        load_backbone(BackboneConfig("absent-1", "x"))


def test_no_loader_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, vltune.backbones.registry as r;"
        "print(any(loader.module in sys.modules for loader in r.LOADERS))"
    )
    path = str(Path(registry.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": path, "PATH": ""},
    )  # fmt: skip
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "meta", "", "mps"])
def test_devices_of_other_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="expected cpu, cuda or cuda:N"):
        require_device(name)


def test_a_device_that_is_not_there_is_refused_with_the_cure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda: Any = devices.torch.cuda
    monkeypatch.setattr(cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"'cuda'.*sees 0 CUDA devices here.*device: cpu"):
        require_device("cuda")
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "device_count", lambda: 2)
    assert require_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match="sees 2 CUDA devices"):
        require_device("cuda:2")
