"""What a site's parent process reads when its job process has died."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from nvflare.apis.fl_constant import FLContextKey, FLMetaKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.private.fed.utils.fed_utils import get_return_code

from vltune.flare.last_word import leave_last_word, take_back_last_word

DIED = SimpleNamespace(poll=lambda: 101)
"""FLARE's handle of a process that was killed: its code for an exception."""


@pytest.fixture
def context(tmp_path: Path) -> Callable[[bool], FLContext]:
    """FLARE's context of job `job` in a site's workspace."""
    (tmp_path / "job").mkdir()
    workspace = SimpleNamespace(get_run_dir=lambda job_id: str(tmp_path / job_id))

    def make(is_simulated: bool) -> FLContext:
        fl_ctx = FLContext()
        engine = SimpleNamespace(get_workspace=lambda: workspace)
        fl_ctx.set_prop(ReservedKey.ENGINE, engine, private=True)
        fl_ctx.set_prop(ReservedKey.RUN_NUM, "job")
        fl_ctx.set_prop(FLContextKey.SIMULATE_MODE, is_simulated, private=True)
        return fl_ctx

    return make


def test_flare_takes_a_death_for_no_failure_of_the_job(
    tmp_path: Path, context: Callable[[bool], FLContext]
) -> None:
    assert get_return_code(DIED, "job", str(tmp_path), None) == 101
    leave_last_word(context(False))
    assert get_return_code(DIED, "job", str(tmp_path), None) == 0


def test_a_process_that_ends_by_itself_speaks_for_itself(
    tmp_path: Path, context: Callable[[bool], FLContext]
) -> None:
    leave_last_word(context(False))
    take_back_last_word(context(False))
    assert get_return_code(DIED, "job", str(tmp_path), None) == 101


def test_a_simulated_site_has_no_parent_that_reads(
    tmp_path: Path, context: Callable[[bool], FLContext]
) -> None:
    leave_last_word(context(True))
    take_back_last_word(context(True))
    assert not (tmp_path / "job" / FLMetaKey.PROCESS_RC_FILE).exists()
