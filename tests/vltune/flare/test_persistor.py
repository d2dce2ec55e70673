from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from nvflare.apis.fl_context import FLContextManager
from nvflare.apis.workspace import Workspace
from nvflare.app_common.abstract.model import ModelLearnableKey, make_model_learnable

from vltune.flare.exchange import to_arrays
from vltune.flare.persistor import (
    BEST_FILE,
    LAST_FILE,
    AdapterFileError,
    AdapterPersistor,
    latest_round_file,
    read_adapter,
    round_file,
    write_adapter,
)

TENSORS = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(3)}


def make_context(root: Path):
    for part in ("startup", "local"):
        (root / part).mkdir(parents=True)
    engine = SimpleNamespace(get_workspace=lambda: Workspace(str(root), "server"))
    manager = FLContextManager(engine, "server", "job", {}, {})
    return manager.new_context()


def test_every_round_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    folder = Path(context.get_engine().get_workspace().get_app_dir("job"))
    persistor = AdapterPersistor(facts={"name": "linear"})
    for number in range(3):
        arrays = to_arrays({name: value + number for name, value in TENSORS.items()})
        persistor.save(make_model_learnable(arrays, {"round": number}), context)
    persistor.mark_best(folder, 1)
    assert latest_round_file(folder) == (2, folder / round_file(2))
    last, facts = read_adapter(folder / LAST_FILE)
    assert torch.equal(last["bias"], TENSORS["bias"] + 2)
    assert facts == {"name": "linear", "round": 2}
    assert (folder / BEST_FILE).read_bytes() == (folder / round_file(1)).read_bytes()
    assert not list(folder.glob(".*"))


def test_a_job_carries_the_adapter_that_it_continues_from(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    config = Path(context.get_engine().get_workspace().get_app_config_dir("job"))
    write_adapter(config / "start.safetensors", TENSORS, {"round": 4})
    model = AdapterPersistor("start.safetensors").load(context)
    assert model[ModelLearnableKey.WEIGHTS]["weight"].tolist() == TENSORS["weight"].tolist()
    assert model[ModelLearnableKey.META] == {"round": 4}
    assert AdapterPersistor().load(context).is_empty()


def test_the_same_tensors_give_the_same_bytes(tmp_path: Path) -> None:
    backwards = dict(reversed(TENSORS.items()))
    facts = {"round": 1, "name": "a", "method": "b"}
    write_adapter(tmp_path / "a", TENSORS, facts)
    write_adapter(tmp_path / "b", backwards, dict(reversed(facts.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    write_adapter(path, TENSORS, {"round": 1})
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_adapter(path, TENSORS, {"round": object()})
    tmp_path.chmod(0o500)
    try:
        assert path.read_bytes() == before
    finally:
        tmp_path.chmod(0o700)
    assert [item.name for item in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("damage", ["cut", "other", "gone"])
def test_a_damaged_adapter_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "adapter"
    write_adapter(path, TENSORS, {"round": 1})
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-4])
    elif damage == "other":
        path.write_bytes(b"hello, this is no adapter at all")
    else:
        path.unlink()
    with pytest.raises(AdapterFileError, match="adapter: cannot be read"):
        read_adapter(path)
