"""A site's process that dies costs the site, not the run.

FLARE ends a whole job as soon as one site reports that its job process died, whatever the quorum.
What a site reports is the number in a file of its run folder, if there is one (FLARE's own executor
of external processes writes it too). As long as the process lives the file says 0, so that a death
is no failure of the job; the server notices that the site is silent and the quorum decides. A
process that ends by itself removes the file, and FLARE writes its own number.
"""

from pathlib import Path

from nvflare.apis.fl_constant import FLContextKey, FLMetaKey
from nvflare.apis.fl_context import FLContext

from vltune.files import write_bytes_atomic


def leave_last_word(fl_ctx: FLContext) -> None:
    """Say 0 from now on; simulated sites have no parent that would read it."""
    if not fl_ctx.get_prop(FLContextKey.SIMULATE_MODE, False):
        write_bytes_atomic(_path(fl_ctx), b"0")


def take_back_last_word(fl_ctx: FLContext) -> None:
    """The process ends by itself."""
    if not fl_ctx.get_prop(FLContextKey.SIMULATE_MODE, False):
        _path(fl_ctx).unlink(missing_ok=True)


def _path(fl_ctx: FLContext) -> Path:
    workspace = fl_ctx.get_engine().get_workspace()
    return Path(workspace.get_run_dir(fl_ctx.get_job_id())) / str(FLMetaKey.PROCESS_RC_FILE)
