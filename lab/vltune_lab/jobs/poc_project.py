"""What of a FLARE project.yml a proof of concept on one machine needs: names, roles and ports."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vltune.config import read_mapping

DEFAULT_PORT = 8002
PORT_KEYS = ("fed_learn_port", "admin_port")
SUBMITTING_ROLES = ("lead", "project_admin")
"""Roles that may submit a job, the one with fewer other rights first."""


class PocError(ValueError):
    """A proof of concept cannot start or go on; the message names file or command, and the cure."""


@dataclass(frozen=True)
class Project:
    """A project.yml.

    Attributes:
        path: Its file.
        name: Of the project; FLARE names a folder after it.
        server: Name of the server.
        sites: Names of the sites.
        users: Role -> name of the first user who has it.
        ports: Key of the server's entry -> port that it listens on.
    """

    path: Path
    name: str
    server: str
    sites: tuple[str, ...]
    users: dict[str, str] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)

    @property
    def submitter(self) -> str:
        """The user who submits jobs.

        Raises:
            PocError: No user may.
        """
        for role in SUBMITTING_ROLES:
            if role in self.users:
                return self.users[role]
        raise PocError(f"{self.path}: no user of role {' or '.join(SUBMITTING_ROLES)}. Add one.")


def read_project(path: Path) -> Project:
    """Read a project.yml.

    Raises:
        ConfigError: There is no such file, or it is no YAML mapping.
        PocError: It has no server or no site, or a port that is none.
    """
    content = read_mapping(path)
    entries = [entry for entry in content.get("participants") or [] if isinstance(entry, Mapping)]
    servers = [entry for entry in entries if entry.get("type") == "server"]
    sites = tuple(str(entry.get("name")) for entry in entries if entry.get("type") == "client")
    if len(servers) != 1 or not sites or not content.get("name"):
        raise PocError(
            f"{path}: expected a name, one participant of type server and at least one client."
        )
    users: dict[str, str] = {}
    for entry in entries:
        if entry.get("type") == "admin":
            users.setdefault(str(entry.get("role")), str(entry.get("name")))
    server = servers[0]
    return Project(
        path, str(content["name"]), str(server.get("name")), sites, users, _ports(server, path)
    )


def _ports(server: Mapping[str, Any], path: Path) -> dict[str, int]:
    found = {key: server[key] for key in PORT_KEYS if key in server}
    found.setdefault(PORT_KEYS[0], DEFAULT_PORT)
    for key, port in found.items():
        if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 65536:
            raise PocError(f"{path}: {key} of the server is {port!r}, expected 1 to 65535.")
    return found


def check_ports(project: Project) -> None:
    """Refuse to start where another process listens already.

    Raises:
        PocError: The message names the port and where to set another.
    """
    for key, port in project.ports.items():
        with socket.socket() as probe:
            # As a server does: the port of one that has just ended is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError as error:
                raise PocError(
                    f"port {port} cannot be had ({error.strerror}). Set another one: {key} of "
                    f"{project.server} in {project.path}; or end the process that listens on it."
                ) from error
