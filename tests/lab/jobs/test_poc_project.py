import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from vltune.config import ConfigError
from vltune_lab.jobs.poc_project import PocError, check_ports, read_project

ROOT = Path(__file__).parents[3]
SERVER = {"name": "hub", "type": "server", "fed_learn_port": 8002}
SITE = {"name": "ward", "type": "client"}


def written(folder: Path, **changes: Any) -> Path:
    content = {"name": "p", "participants": [SERVER, SITE]} | changes
    path = folder / "project.yml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_project_of_this_repository() -> None:
    project = read_project(ROOT / "poc_workspace/project.yml")
    assert project.sites == ("riverside", "market", "meadow", "campus")
    assert set(project.users) == {"project_admin", "lead", "member"}
    assert project.submitter == project.users["lead"]
    assert project.ports == {"fed_learn_port": 8002}
    for job in ("fedmpt", "fedvlm"):
        world = yaml.safe_load((ROOT / f"poc_workspace/worlds/{job}.yaml").read_text())
        assert tuple(site["name"] for site in world["sites"]) == project.sites
    world = yaml.safe_load((ROOT / "poc_workspace/worlds/fedumm.yaml").read_text())
    assert tuple(world["names"]) == project.sites


def test_a_project_admin_submits_where_there_is_no_lead(tmp_path: Path) -> None:
    admin = {"name": "a", "type": "admin", "role": "project_admin"}
    member = {"name": "m", "type": "admin", "role": "member"}
    people = [SERVER, SITE, member, admin]
    assert read_project(written(tmp_path, participants=people)).submitter == "a"
    project = read_project(written(tmp_path, participants=[SERVER, SITE, member]))
    with pytest.raises(PocError, match="no user of role lead or project_admin"):
        _ = project.submitter


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""},
        {"participants": None},
        {"participants": [SERVER]},
        {"participants": [SERVER, SERVER, SITE]},
        {"participants": [SERVER | {"fed_learn_port": "8002"}, SITE]},
        {"participants": [SERVER | {"fed_learn_port": 70000}, SITE]},
        {"participants": [SERVER | {"admin_port": True}, SITE]},
    ],
)
def test_wrong_projects_are_refused_by_name(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(PocError, match=r"project\.yml"):
        read_project(written(tmp_path, **changes))


def test_no_project(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yml"):
        read_project(tmp_path / "none.yml")


def test_a_taken_port_is_named_with_its_key_and_file(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        path = written(tmp_path, participants=[SERVER | {"fed_learn_port": port}, SITE])
        project = read_project(path)
        with pytest.raises(PocError, match=rf"port {port} .* fed_learn_port of hub in .*project"):
            check_ports(project)
    check_ports(project)  # free again
