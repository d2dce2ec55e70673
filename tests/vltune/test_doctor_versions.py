from pathlib import Path

import pytest

import vltune
from vltune.code_identity import code_files, code_hash
from vltune.doctor_findings import DoctorError, Finding
from vltune.doctor_versions import (
    PACKAGES,
    check_code,
    check_versions,
    installed_versions,
    read_lock,
)

HERE = installed_versions()


def of(name: str, findings: list[Finding]) -> Finding:
    (finding,) = [finding for finding in findings if finding.name == f"package {name}"]
    return finding


def test_what_is_here_agrees_with_itself() -> None:
    findings = check_versions(HERE, HERE)
    assert [finding.status for finding in findings] == ["ok"] * (1 + len(PACKAGES))
    assert of("vltune", findings).value == vltune.__version__


def test_the_lock_file_of_the_repository() -> None:
    lock = read_lock(Path(__file__).parents[2] / "requirements.lock")
    assert set(lock) == set(PACKAGES)
    assert lock["nvflare"] == HERE["nvflare"]


@pytest.mark.parametrize(
    ("name", "version", "status"),
    [
        ("nvflare", "1.0", "fail"),
        ("peft", "0.0.1", "fail"),
        ("vltune", "0.0.0", "fail"),
        ("torch", "1.0", "warn"),
        ("POT", "0.1", "warn"),
    ],
)
def test_another_version(name: str, version: str, status: str) -> None:
    finding = of(name, check_versions(HERE | {name: version}, HERE))
    assert (finding.status, finding.expected) == (status, version)
    assert finding.cure


def test_a_build_is_no_other_version() -> None:
    findings = check_versions({"torch": "2.13.0"}, {"torch": "2.13.0+cpu"})
    assert of("torch", findings).status == "ok"


def test_what_is_not_installed() -> None:
    findings = check_versions({}, {})
    assert of("transformers", findings).status == "fail"
    assert of("POT", findings).status == "ok"  # training does not need it


def test_unreadable_lock(tmp_path: Path) -> None:
    with pytest.raises(DoctorError, match=r"requirements\.lock"):
        read_lock(tmp_path / "none.lock")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "vltune").mkdir()
    (tmp_path / "vltune" / "one.py").write_text("x = 1\n")
    return tmp_path / "vltune"


def test_code_of_the_job(package: Path) -> None:
    own = Path(vltune.__file__).parent
    assert check_code(own, code_hash(own)).status == "ok"
    assert check_code(None, code_hash(own)).status == "ok"
    assert check_code(package, code_hash(package)).status == "warn"  # other than the doctor's
    assert check_code(package, "0" * 16).status == "fail"  # changed after the export
    assert check_code(None, "0" * 16).status == "fail"  # another package is installed


def test_a_running_job_must_have_imported_its_own_code(package: Path) -> None:
    own = Path(vltune.__file__).parent
    assert check_code(own, code_hash(own), is_running=True).status == "ok"
    finding = check_code(package, code_hash(package), is_running=True)
    assert (finding.status, finding.value) == ("fail", code_hash(own))
    assert "uninstall" in finding.cure


def test_other_installed_code_is_named_by_module() -> None:
    files = code_files() | {"training": "0" * 8, "no.such": "0" * 8}
    cure = check_code(None, "0" * 16, files).cure
    assert cure.endswith("exported with (training changed; no.such missing).")
