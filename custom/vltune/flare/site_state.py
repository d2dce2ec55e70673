"""What one site keeps on its own disk for one run: personal tensors, by round.

`<state_dir>/<site>/<run>/personal_round<N>.safetensors` holds the tensors after training in round
N. The two newest stay, so that a round that is repeated after a crash, on either side, starts from
what came before it. Methods without personal tensors write nothing.
"""

import fcntl
import os
import re
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from vltune.files import write_bytes_atomic

KEPT_ROUNDS = 2
LOCK_FILE = "lock"
_FILE = re.compile(r"personal_round(\d+)\.safetensors")
_SAFE_RUN = re.compile(r"[A-Za-z0-9_-]{1,64}")


class SiteStateError(ValueError):
    """The site's state cannot be used; the message says why and what to do."""


class SiteState:
    """The state folder of one site in one run, locked against a second process.

    Args:
        state_dir: The site's own folder for what must survive a restart.
        site_name: FLARE name.
        run_id: The run that the server announced.

    Raises:
        SiteStateError: The folder cannot be written, or another process works in it.
    """

    def __init__(self, state_dir: Path, site_name: str, run_id: str) -> None:
        if not _SAFE_RUN.fullmatch(run_id):
            raise SiteStateError(f"run {run_id!r}: expected up to 64 letters, digits, '_' or '-'")
        self.folder = state_dir / site_name / run_id
        self.site_name = site_name
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(self.folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise SiteStateError(
                f"cannot write in {self.folder}: {error.strerror}. Set state_dir in "
                "vltune_site.yaml to a folder that this process may write."
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise SiteStateError(
                f"another process works as site {site_name!r} in this run. Either the run was "
                "resumed while a job of it still runs: wait for that one or abort it; or two sites "
                "have the same name: rename one in FLARE's project.yml."
            ) from error

    def close(self) -> None:
        """Give the folder back."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def save(self, round_number: int, personal: dict[str, Tensor]) -> None:
        """Keep the personal tensors after training in `round_number`."""
        if not personal:
            return
        contiguous = {name: personal[name].contiguous() for name in sorted(personal)}
        path = self.folder / f"personal_round{round_number}.safetensors"
        write_bytes_atomic(path, save(contiguous), private=True)
        path.chmod(0o600)
        for _, old in self._files()[:-KEPT_ROUNDS]:
            old.unlink()

    def before(self, round_number: int) -> dict[str, Tensor]:
        """The newest personal tensors from a round before `round_number`; empty without any.

        Raises:
            SiteStateError: The file is damaged.
        """
        earlier = [path for number, path in self._files() if number < round_number]
        if not earlier:
            return {}
        try:
            tensors: dict[str, Tensor] = load_file(earlier[-1])
        except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
            raise SiteStateError(
                f"{earlier[-1]}: damaged ({type(error).__name__}). Delete the file: this site then "
                "continues from the round before, or from the start."
            ) from error
        return tensors

    def _files(self) -> list[tuple[int, Path]]:
        return sorted(
            (int(match.group(1)), path)
            for path in self.folder.iterdir()
            if (match := _FILE.fullmatch(path.name))
        )
