"""Who may submit, and what becomes of a job that was changed on its way, under FLARE's own keys.

The first half uses FLARE's functions on a prepared project without starting it; the last test
starts it.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from nvflare.apis.workspace import Workspace
from nvflare.fuel.sec.authz import Authorizer, AuthzContext, Person
from nvflare.lighter.utils import load_private_key_file, sign_folders, verify_folder_signature
from nvflare.private.fed.utils.fed_utils import require_signed_jobs

sys.path.append(str(Path(__file__).parents[2] / "vltune" / "flare"))

from linear_site import make_job, write_site

from vltune_lab.jobs.launch import make_recipe

pytestmark = pytest.mark.flare

SITES = ("ward-a", "ward-b")
ROLES = {
    "admin@clinic.org": "project_admin",
    "lead@clinic.org": "lead",
    "member@clinic.org": "member",
}
LIMIT_SECONDS = 600.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def project() -> dict[str, Any]:
    server = {"name": "server", "type": "server", "org": "clinic", "default_host": "localhost"}
    builders = ("workspace.WorkspaceBuilder", "static_file.StaticFileBuilder", "cert.CertBuilder",
                "signature.SignatureBuilder")  # fmt: skip
    arguments = {
        builders[0]: {"template_file": ["master_template.yml"]},
        builders[1]: {"config_folder": "config"},
    }
    return {
        "api_version": 3,
        "name": "rights",
        "description": "three kinds of users",
        "participants": [
            server | {"fed_learn_port": free_port()},
            *({"name": name, "type": "client", "org": "clinic"} for name in SITES),
            *({"name": name, "type": "admin", "org": "clinic", "role": role}
              for name, role in ROLES.items()),
        ],
        "builders": [
            {"path": f"nvflare.lighter.impl.{name}", "args": arguments.get(name, {})}
            for name in builders
        ],
    }  # fmt: skip


def nvflare(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).with_name("nvflare")), *map(str, words)],
        timeout=LIMIT_SECONDS, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folders of server, sites and users of a prepared project, on a free port."""
    folder = tmp_path_factory.mktemp("rights")
    (folder / "home").mkdir()
    (folder / "project.yml").write_text(yaml.safe_dump(project()))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("HOME", str(folder / "home"))
        monkeypatch.setenv("NVFLARE_POC_WORKSPACE", str(folder / "run"))
        monkeypatch.setenv("VLTUNE_SITE_CONFIG", str(folder / "data/{site}/vltune_site.yaml"))
        done = nvflare("poc", "prepare", "-i", folder / "project.yml")
        assert done.returncode == 0, done.stdout + done.stderr
        yield folder / "run" / "rights" / "prod_00"


@pytest.fixture
def signed(tmp_path: Path, kits: Path) -> Callable[[str], Path]:
    """Export a job and sign it as FLARE's console does at submission."""

    def make(user: str) -> Path:
        make_recipe(make_job()).export(str(tmp_path / "jobs"))
        folder, startup = tmp_path / "jobs" / "linear", kits / user / "startup"
        sign_folders(str(folder), load_private_key_file(str(startup / "client.key")),
                     str(startup / "client.crt"))  # fmt: skip
        return folder

    return make


def is_genuine(folder: Path, kits: Path) -> bool:
    return bool(verify_folder_signature(str(folder), str(kits / SITES[0] / "startup/rootCA.pem")))


def change_code(folder: Path) -> None:
    code = next(folder.rglob("custom/vltune/parameters.py"))
    code.write_text(code.read_text() + "\nimport os\n")


def change_config(folder: Path) -> None:
    path = next(folder.rglob("config_fed_server.json"))
    path.write_text(path.read_text().replace('"min_sites": 2', '"min_sites": 1'))


def add_file(folder: Path) -> None:
    (next(folder.rglob("custom/vltune")) / "more.py").write_text("pass\n")


def add_folder(folder: Path) -> None:
    (next(folder.rglob("custom/vltune")) / "more").mkdir()


def link(folder: Path) -> None:
    (next(folder.rglob("custom/vltune")) / "more.py").symlink_to("/etc/passwd")


def unsign(folder: Path) -> None:
    next(folder.rglob("custom/vltune/.__nvfl_sig.json")).unlink()


def test_a_signed_job_is_genuine(signed: Callable[[str], Path], kits: Path) -> None:
    assert is_genuine(signed("lead@clinic.org"), kits)


@pytest.mark.parametrize("tamper", [change_code, change_config, add_file, add_folder, link, unsign])
def test_a_changed_job_is_not_genuine(
    tamper: Callable[[Path], None], signed: Callable[[str], Path], kits: Path
) -> None:
    folder = signed("lead@clinic.org")
    tamper(folder)
    assert not is_genuine(folder, kits)


def test_the_signature_of_another_authority_is_worth_nothing(
    signed: Callable[[str], Path], kits: Path, tmp_path: Path
) -> None:
    """The same people, provisioned a second time: another root certificate."""
    (tmp_path / "project.yml").write_text(yaml.safe_dump(project()))
    done = nvflare("provision", "-p", tmp_path / "project.yml", "-w", tmp_path / "other")
    assert done.returncode == 0, done.stdout + done.stderr
    startup = next((tmp_path / "other").rglob("lead@clinic.org/startup/client.key")).parent
    folder = signed("lead@clinic.org")
    key = load_private_key_file(str(startup / "client.key"))
    sign_folders(str(folder), key, str(startup / "client.crt"))
    assert not is_genuine(folder, kits)


@pytest.mark.parametrize("who", ["server", *SITES])
def test_unsigned_jobs_are_refused_by_default(who: str, kits: Path) -> None:
    assert require_signed_jobs(Workspace(str(kits / who), who))


@pytest.mark.parametrize(
    ("role", "may"), [("project_admin", True), ("lead", True), ("member", False)]
)
def test_by_the_sites_policy_a_member_may_look_and_not_submit(
    role: str, may: bool, kits: Path
) -> None:
    for who in ("server", *SITES):
        policy = json.loads((kits / who / "local/authorization.json.default").read_text())
        authorizer = Authorizer("clinic")
        assert not authorizer.load_policy(policy)
        for right, expected in (("submit_job", may), ("byoc", may), ("view", True)):
            context = AuthzContext(right, Person("x", "clinic", role))
            assert authorizer.authorize(context)[0] is expected, (who, right)


def processes_below(folder: Path) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in entry.read_bytes():
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


@pytest.fixture
def started(kits: Path) -> Iterator[Path]:
    """The server and the first site running; the second comes later."""
    done = nvflare("poc", "start", "-ex", SITES[1])
    assert done.returncode == 0, done.stdout + done.stderr
    try:
        yield kits
    finally:
        nvflare("poc", "stop")
        until = time.monotonic() + 30
        while (left := processes_below(kits.parents[1])) and time.monotonic() < until:
            time.sleep(0.2)
        for pid in left:
            os.kill(pid, signal.SIGKILL)


def submit(folder: Path, kits: Path, user: str) -> subprocess.CompletedProcess[str]:
    return nvflare("job", "submit", "-j", folder, "--startup-kit", kits / user)


def stored_jobs(kits: Path) -> list[Path]:
    """The server's store: a folder for each job, where `data` is what was submitted."""
    path = next((kits / "server" / "local").glob("resources.json*"))
    found = [c["args"]["uri_root"] for c in json.loads(path.read_text())["components"]
             if c["id"] == "job_manager"]  # fmt: skip
    root = Path(found[0])
    root = root if root.is_absolute() else kits / "server" / root
    return sorted(entry.parent for entry in root.rglob("data") if str(kits.parents[1]) in str(root))


def tamper_in_store(job: Path) -> None:
    """Change a line of code inside the stored archive, as one with access to its disk could."""
    data, changed = job / "data", job.parent / "changed.zip"
    with zipfile.ZipFile(data) as old, zipfile.ZipFile(changed, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            is_target = entry.filename.endswith("custom/vltune/parameters.py")
            new.writestr(entry, content + b"\n\n" if is_target else content)
    shutil.move(changed, data)


@pytest.mark.slow
def test_a_member_is_refused_and_a_job_changed_at_the_server_does_not_start(
    tmp_path: Path, started: Path
) -> None:
    """The lead's job waits for its second site; meanwhile somebody changes it."""
    for index, name in enumerate(SITES):
        write_site(started.parents[2] / "data" / name, name, 17, index)
    make_recipe(make_job()).export(str(tmp_path / "jobs"))
    folder = tmp_path / "jobs" / "linear"
    refused = submit(folder, started, "member@clinic.org")
    assert refused.returncode != 0
    assert "not authorized" in (refused.stdout + refused.stderr).lower()
    assert not stored_jobs(started)
    taken = submit(folder, started, "lead@clinic.org")
    assert taken.returncode == 0, taken.stdout + taken.stderr
    (job,) = stored_jobs(started)
    tamper_in_store(job)
    nvflare("poc", "start", "-p", SITES[1])
    words = ("--format", "json", "job", "meta", job.name)
    until, told = time.monotonic() + 120, ""
    while time.monotonic() < until and "FAILED" not in told and "FINISHED" not in told:
        told = nvflare(*words, "--startup-kit", started / "lead@clinic.org").stdout
        time.sleep(1)
    assert "FAILED_TO_RUN" in told or "FINISHED:" in told, told
    assert "FINISHED:COMPLETED" not in told
    log = (started / "server" / "log.txt").read_text()
    assert "signature verification" in log
    assert not list(started.glob("*/*/app_*/custom/vltune"))
