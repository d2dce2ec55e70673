import json
import os
from pathlib import Path

import pytest
from linear_site import make_job, write_site

from vltune.flare.federation import FederationError
from vltune.flare.run_log import STATE_FILE
from vltune.site_config import VARIABLE
from vltune_lab.jobs.in_process import run_in_process

NAMES = ("site-1", "site-2")


def write_sites(folder: Path, num_examples: int) -> Path:
    for index, name in enumerate(NAMES):
        write_site(folder / name, name, num_examples, seed=index)
    return folder / "{site}" / "vltune_site.yaml"


def examples_of(server: Path) -> list[int]:
    sites = json.loads((server / STATE_FILE).read_text())["sites"]
    return [sites[name]["num_examples"] for name in NAMES]


@pytest.mark.parametrize("before", [False, True])
def test_files_named_to_the_run_are_read_and_the_variable_is_as_before(
    before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if before:
        monkeypatch.setenv(VARIABLE, str(write_sites(tmp_path / "before", 11)))
    environment = dict(os.environ)
    job = make_job()
    files = write_sites(tmp_path / "named", 19)
    assert examples_of(run_in_process(job, NAMES, tmp_path / "a", site_files=files)) == [19, 19]
    assert dict(os.environ) == environment
    if before:
        assert examples_of(run_in_process(job, NAMES, tmp_path / "b")) == [11, 11]


def test_the_variable_is_as_before_after_a_failed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(FederationError, match="no site can take part"):
        run_in_process(
            make_job(), NAMES, tmp_path / "run", site_files=tmp_path / "{site}" / "none.yaml"
        )
    assert VARIABLE not in os.environ
