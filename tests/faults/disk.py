"""A small disk of our own that is really full: a tmpfs in place of a folder."""

import shutil
import subprocess
from pathlib import Path

import pytest

FILLER = "filler"


class SmallDisk:
    """Mounted over a folder, whose content is kept; needs the right to mount.

    Args:
        folder: Where the disk appears.
        megabytes: Its size.
    """

    def __init__(self, folder: Path, megabytes: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder.with_name(folder.name + ".kept")
        shutil.copytree(folder, kept, symlinks=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(kept)
            pytest.skip(f"no right to mount a small disk: {done.stderr.strip()}")
        shutil.copytree(kept, folder, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(kept)

    def fill(self) -> None:
        """Write until the system says that no space is left."""
        with (self.folder / FILLER).open("wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(4096))
            except OSError:
                return

    def free(self) -> None:
        """Give the space back."""
        (self.folder / FILLER).unlink(missing_ok=True)

    def close(self) -> None:
        """Take the disk away; the folder holds what the disk held."""
        kept = self.folder.with_name(self.folder.name + ".kept")
        self.free()
        shutil.copytree(self.folder, kept, symlinks=True)
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)
        shutil.copytree(kept, self.folder, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(kept)
