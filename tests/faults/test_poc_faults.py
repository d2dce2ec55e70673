"""The matrix of docs/reliability.md on a POC; `make faults` runs it."""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from disk import SmallDisk
from federation import LINKED_SITE, SITES, Federation, Submitted, wait_for

pytestmark = pytest.mark.faults

PACE = "pace_seconds=2"
ONE = "federation.min_sites=1"
LAST = 4


@pytest.fixture(scope="session")
def undisturbed(running: Federation) -> Submitted:
    """Four rounds to which nothing happened."""
    running.start()
    run = running.submit("undisturbed")
    run.ended()
    assert run.process.returncode == 0, run.said
    return run


def assert_same_end(run: Submitted, undisturbed: Submitted) -> None:
    """Global and personal numbers of an undisturbed run, to the bit."""
    assert run.process.returncode == 0, run.said
    assert run.record()["completed_rounds"] == LAST
    assert run.adapter(LAST) == undisturbed.adapter(LAST)
    for site in SITES:
        assert run.personal(site, LAST - 1) == undisturbed.personal(site, LAST - 1)


MEMORY, FULL, CUT, SLOW, EVENTFUL = 0, 1, 3, 6, 12
"""Rounds of one job in which something happens to site-2, and how many there are."""
TIMEOUT = 12


@pytest.fixture(scope="session")
def eventful(running: Federation, measure: Any) -> Iterator[Submitted]:
    """One job that goes on whatever happens to site-2; its process is killed last."""
    running.start()
    disk = None
    with contextlib.suppress(pytest.skip.Exception):  # the row says so itself
        disk = SmallDisk(running.state_of_site(LINKED_SITE).parent, 1)
    trouble = f"trouble={{{LINKED_SITE}: [[{SLOW}, slow], [{MEMORY}, allocate]]}}"
    overrides = (f"federation.rounds={EVENTFUL}", f"federation.round_timeout_seconds={TIMEOUT}")
    run = running.submit("eventful", PACE, ONE, "slow_seconds=14", trouble, *overrides)
    try:
        if disk is not None:
            run.in_round(FULL, LINKED_SITE)
            disk.fill()
            run.completed(FULL + 1)
            disk.free()
        run.in_round(CUT, LINKED_SITE)
        running.link.cut()
        time.sleep(4)
        running.link.mend()
        run.in_round(SLOW + 1, LINKED_SITE)
        running.kill(LINKED_SITE, only_job=True)
        measure("site process killed: end of the job", run.ended())
        yield run
    finally:
        if disk is not None:
            disk.close()


def left_out(run: Submitted, after: int) -> str:
    """Why site-2 has no part in the model after `after` rounds; empty where it has."""
    rejected = run.record()["rounds"][after]["rejected"]
    assert {entry["site"] for entry in rejected} <= {LINKED_SITE}
    return "".join(entry["reason"] for entry in rejected)


def test_the_job_goes_on_without_a_site(eventful: Submitted) -> None:
    assert eventful.process.returncode == 0, eventful.said
    assert eventful.record()["status"] == "completed"
    assert len(eventful.record()["rounds"]) == EVENTFUL + 1


def test_a_slow_site_costs_one_timeout_and_comes_back(eventful: Submitted) -> None:
    assert f"no answer within {TIMEOUT} s" in left_out(eventful, SLOW + 1)
    assert TIMEOUT <= eventful.record()["rounds"][SLOW + 1]["seconds"] < TIMEOUT + 5


def test_a_full_disk_at_a_site_is_named(eventful: Submitted, tmp_path: Path) -> None:
    SmallDisk(tmp_path / "may this be mounted", 1).close()
    assert "No space left on device" in left_out(eventful, FULL + 1)


def test_a_site_out_of_memory_is_named(eventful: Submitted) -> None:
    assert "RuntimeError: out of memory at this site" in left_out(eventful, MEMORY + 1)


def test_a_cut_link_is_mended(eventful: Submitted) -> None:
    """The site answers late, or is left out of that round; it takes part again afterwards."""
    assert "" in [left_out(eventful, number + 1) for number in range(CUT, SLOW)]


def test_a_killed_site_process_costs_that_site_alone(eventful: Submitted) -> None:
    rounds = range(SLOW + 2, EVENTFUL + 1)
    reasons = [left_out(eventful, number) for number in rounds]
    assert sum(f"no answer within {TIMEOUT} s" in reason for reason in reasons) <= 1
    assert reasons[-1]


def test_killed_server_process(
    federation: Federation, measure: Any, undisturbed: Submitted
) -> None:
    run = federation.submit("server-process", PACE)
    run.in_round(2, SITES[0])
    federation.kill("server", only_job=True)
    measure("server's job process killed", run.ended())
    assert run.process.returncode == 1
    assert "ended without a word after 2 complete rounds" in run.said
    assert "continue with --resume" in run.said
    again = federation.submit("server-process", resume=True)
    again.ended()
    assert_same_end(again, undisturbed)


def test_killed_server(federation: Federation, measure: Any, undisturbed: Submitted) -> None:
    run = federation.submit("server-host", PACE)
    run.in_round(2, SITES[0])
    federation.kill("server")
    measure("server killed", run.ended())
    assert run.process.returncode == 1
    assert "FLARE's server has not answered" in run.said
    assert "What is complete lies at the server; continue with --resume" in run.said
    federation.start()
    again = federation.submit("server-host", resume=True)
    again.ended()
    assert_same_end(again, undisturbed)


def test_abort_in_mid_batch_and_the_same_run_twice(
    federation: Federation, measure: Any, undisturbed: Submitted
) -> None:
    """site-1 is slow in its second round: what comes meanwhile finds it at work."""
    patient = "federation.round_timeout_seconds=600"
    run = federation.submit("abort", "trouble={site-1: [1, slow]}", "slow_seconds=500", patient)
    run.in_round(1, LINKED_SITE)
    twice = federation.submit("abort", resume=True)
    measure("same run twice: refused", twice.ended())
    assert twice.process.returncode == 1
    assert f"job {run.job_id} of this run is RUNNING" in twice.said
    federation.admin("abort", run.job_id)
    measure("abort by the administrator", run.ended())
    assert run.process.returncode == 1
    assert "the job was aborted" in run.said
    assert "1 complete rounds are kept" in run.said
    assert run.adapter(1) == undisturbed.adapter(1)


def test_a_late_site_and_a_lost_one(federation: Federation, measure: Any) -> None:
    """site-2 starts after the job: told so, it joins the resumed job; there its host is lost."""
    federation.kill(LINKED_SITE)
    federation.kill("server")
    federation.start("server", SITES[0])
    run = federation.submit("late", "pace_seconds=4", ONE, "federation.rounds=2")
    run.in_round(0, SITES[0])
    federation.start(LINKED_SITE)
    run.ended()
    assert run.process.returncode == 0, run.said
    assert f"{LINKED_SITE} connected after the start" in run.said
    overrides = ("federation.rounds=5", "federation.round_timeout_seconds=10", "pace_seconds=2")
    again = federation.submit("late", *overrides, resume=True)
    again.in_round(3, LINKED_SITE)
    federation.kill(LINKED_SITE)
    measure("site's host lost: end of the job", again.ended())
    assert again.process.returncode == 0, again.said
    assert set(again.record()["sites"]) == set(SITES)
    assert not left_out(again, 3)
    assert left_out(again, 4)


def test_clocks_an_hour_apart(
    federation: Federation, undisturbed: Submitted, tmp_path: Path
) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    library = tmp_path / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", source, "-o", library, "-ldl"], check=True)
    federation.kill(LINKED_SITE)
    federation.extra[LINKED_SITE] = {"LD_PRELOAD": str(library)}
    try:
        federation.start()
        run = federation.submit("clocks")
        run.ended()
        assert_same_end(run, undisturbed)
    finally:
        federation.kill(LINKED_SITE)


def test_a_full_disk_at_the_server(
    federation: Federation, measure: Any, undisturbed: Submitted
) -> None:
    for name in ("server", *SITES):
        federation.kill(name)
    disk = SmallDisk(federation.kits / "server", 100)
    try:
        federation.start()
        run = federation.submit("server-disk", PACE)
        run.in_round(2, SITES[0])
        disk.fill()
        measure("full disk at the server", run.ended())
        assert run.process.returncode == 1
        assert "No space left on device" in run.said
        disk.free()
        again = federation.submit("server-disk", resume=True)
        again.ended()
        assert_same_end(again, undisturbed)
    finally:
        for name in ("server", *SITES):
            federation.kill(name)
        wait_for(lambda: not federation.processes("server"), "the server's end")
        disk.close()
