import stat
from pathlib import Path

import pytest
import torch

from vltune.flare.site_state import SiteState, SiteStateError


def test_the_newest_state_before_a_round_is_found(tmp_path: Path) -> None:
    """Rounds 0..4 are saved, the two newest stay: a repeated round 4 starts from round 3's."""
    state = SiteState(tmp_path, "site-1", "run")
    for number in range(5):
        state.save(number, {"offset": torch.full((2,), float(number))})
    assert state.before(5)["offset"].tolist() == [4, 4]
    assert state.before(4)["offset"].tolist() == [3, 3]
    assert state.before(3) == {}
    files = sorted(path.name for path in state.folder.glob("*.safetensors"))
    assert files == ["personal_round3.safetensors", "personal_round4.safetensors"]
    assert all(stat.S_IMODE((state.folder / name).stat().st_mode) == 0o600 for name in files)
    state.close()


def test_a_method_without_personal_tensors_writes_nothing(tmp_path: Path) -> None:
    state = SiteState(tmp_path, "site-1", "run")
    state.save(0, {})
    assert not list(state.folder.glob("*.safetensors"))
    state.close()


def test_two_sites_with_the_same_name_are_an_error(tmp_path: Path) -> None:
    first = SiteState(tmp_path, "site-1", "run")
    with pytest.raises(SiteStateError, match=r"site 'site-1'.*the same name"):
        SiteState(tmp_path, "site-1", "run")
    other = SiteState(tmp_path, "site-2", "run")
    first.close()
    again = SiteState(tmp_path, "site-1", "run")
    again.close()
    other.close()


@pytest.mark.parametrize("run_id", ["", "../other", "a b"])
def test_a_run_id_is_no_path(tmp_path: Path, run_id: str) -> None:
    with pytest.raises(SiteStateError, match="run"):
        SiteState(tmp_path, "site-1", run_id)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "site-1").write_text("a file where the folder should be")
    with pytest.raises(SiteStateError, match=r"cannot write in .*Set state_dir"):
        SiteState(tmp_path, "site-1", "run")
