"""What the administrator does beside submitting, in a process of its own.

admin.py KIT wait site-1 site-2     until the server knows these sites
admin.py KIT abort JOB
admin.py KIT status JOB
"""

import sys
import time
from typing import Any

from federation import ADMIN, LIMIT_SECONDS
from nvflare.fuel.flare_api.flare_api import new_secure_session


def log_in(kit: str, until: float) -> Any:
    """A session; a server that is not up yet is tried again."""
    while True:
        try:
            return new_secure_session(ADMIN, kit, timeout=5.0)
        except Exception:
            if time.monotonic() > until:
                raise


def wait_for_sites(session: Any, names: set[str], until: float) -> None:
    """Return once the server knows all of the sites."""
    while missing := names - {client.name for client in session.get_connected_client_list()}:
        if time.monotonic() > until:
            raise TimeoutError(f"not connected: {sorted(missing)}")
        time.sleep(0.3)


def main(kit: str, what: str, *names: str) -> None:
    """Do one thing."""
    until = time.monotonic() + LIMIT_SECONDS
    session = log_in(kit, until)
    try:
        if what == "wait":
            wait_for_sites(session, set(names), until)
        elif what == "abort":
            session.abort_job(names[0])
    finally:
        session.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
