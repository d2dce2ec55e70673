"""Which packages are here, against a lock file or what the job was exported with."""

import re
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import vltune
from vltune.code_identity import code_files, code_hash, describe_code
from vltune.doctor_findings import DoctorError, Finding

PACKAGES = ("nvflare", "torch", "open_clip_torch", "peft", "transformers", "safetensors", "POT")
OPTIONAL = frozenset({"POT"})
"""Only tests ask for it."""
PINNED = frozenset({"nvflare", "open_clip_torch", "peft", "transformers"})
"""Named with one exact version in setup.cfg: another one has not been tried."""


def installed_versions() -> dict[str, str]:
    """Name -> version of the packages that are here, VLTune included."""
    return {"vltune": vltune.__version__} | versions_of(PACKAGES)


def versions_of(names: Iterable[str]) -> dict[str, str]:
    """Name -> version of those distributions that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def read_lock(path: Path) -> dict[str, str]:
    """Versions that a lock file (`name==version` a line) names of our packages.

    Raises:
        DoctorError: It cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DoctorError(
            f"{path}: cannot be read ({error}). Give the repository's requirements.lock."
        ) from error
    pins = dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", text, re.MULTILINE))
    normal = {_normal(name): pin for name, pin in pins.items()}
    return {name: normal[_normal(name)] for name in PACKAGES if _normal(name) in normal}


def check_versions(expected: Mapping[str, str], found: Mapping[str, str]) -> list[Finding]:
    """Compare each package; a build's suffix such as `+cpu` makes no difference.

    Args:
        expected: Name -> version; a package that is not in it is only shown.
        found: See `installed_versions`.
    """
    return [_check(name, expected.get(name), found.get(name)) for name in ("vltune", *PACKAGES)]


def _check(name: str, wanted: str | None, here: str | None) -> Finding:
    title = f"package {name}"
    install = f"pip install {name}=={wanted}" if wanted else f"pip install {name}"
    if here is None:
        if name in OPTIONAL:
            return Finding(title, "ok", "not installed, not needed to train")
        return Finding(title, "fail", "not installed", wanted or "any", install)
    if wanted is None or here.split("+")[0] == wanted.split("+")[0]:
        return Finding(title, "ok", here, wanted or "")
    if name == "vltune":
        return Finding(title, "fail", here, wanted, "Run the doctor of the job's own version.")
    return Finding(title, "fail" if name in PINNED else "warn", here, wanted, install)


def check_code(
    brought: Path | None,
    recorded: str,
    files: Mapping[str, str] | None = None,
    *,
    is_running: bool = False,
) -> Finding:
    """Is the code that examines here the code that will train?

    Args:
        brought: The package inside the job, or None where sites have it installed.
        recorded: Hash that the export recorded, or "".
        files: Hash of each module that it recorded.
        is_running: The job runs already: what is imported here is what will train.
    """
    here = code_hash()
    if brought is not None:
        carried = code_hash(brought)
        if recorded and carried != recorded:
            return Finding(
                "code", "fail", carried, recorded, "The job's code was changed; export it again."
            )
        if carried == here:
            return Finding("code", "ok", carried, carried)
        if not is_running:
            return Finding(
                "code", "warn", here, carried, "The job brings other code than the doctor's own."
            )
        cure = "Another VLTune is found before the job's own here: uninstall it."
        return Finding("code", "fail", here, carried, cure)
    if recorded and here != recorded:
        difference = describe_code(files or {}, code_files())
        cure = "The job brings no code: install the VLTune that it was exported with" + (
            f" ({difference})." if difference else "."
        )
        return Finding("code", "fail", here, recorded, cure)
    return Finding("code", "ok", here, recorded)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
