"""What a job promises of privacy, over real executors, filters, controller and aggregator."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nvflare.apis.signal import Signal
from test_executor import prepare, start, stop, train

from vltune.flare.exchange import task_message
from vltune.flare.failure import HEADER_ERROR
from vltune.flare.federation import FederationError
from vltune.privacy_ledger import LEDGER_FILE, Charge, epsilon_of
from vltune.robust_rules import update_norms
from vltune_lab.jobs.collect import collect, summarise
from vltune_lab.jobs.in_process import run_in_process
from vltune_lab.report.summary import write_summary

__all__ = ["start"]

SITE = {"level": "site", "noise_multiplier": 0.5, "clip_norm": 0.1, "delta": 1e-5}


def test_a_site_level_update_is_clipped_noised_and_says_no_loss(start: Any) -> None:
    """18 shared numbers: the noise alone has norm 0.5 c sqrt(18) = 2.1 c, the update c."""
    site = start(privacy=SITE)
    shared = prepare(site)
    first, again = train(site, shared, 0), train(site, shared, 0)
    for update in (first, again):
        assert "loss" not in update.metrics
        assert 0.02 < update_norms(shared, [update.tensors])[0] < 6 * 0.1
    assert not torch.equal(first.tensors["weight"], again.tensors["weight"])
    # A repeated round has a second noise, which could be averaged out: it is charged again.
    assert first.metrics["site_epsilon"] == pytest.approx(epsilon_of([Charge(0.5, 1.0, 1)], 1e-5))
    assert again.metrics["site_epsilon"] == pytest.approx(epsilon_of([Charge(0.5, 1.0, 2)], 1e-5))
    stop(site)


def test_with_a_wide_bound_and_next_to_no_noise_it_is_the_plain_update(start: Any) -> None:
    plain = start()
    shared = prepare(plain, "plain")
    expected = train(plain, shared, 0, "plain")
    stop(plain)
    site = start(privacy=SITE | {"clip_norm": 1e3, "noise_multiplier": 1e-12})
    prepare(site, "wide")
    got = train(site, shared, 0, "wide")
    for name, value in expected.tensors.items():
        torch.testing.assert_close(got.tensors[name], value)
    stop(site)


def test_record_level_of_a_method_without_it_lets_nothing_out(start: Any) -> None:
    site = start(privacy=SITE | {"level": "record"})
    shared = prepare(site)
    reply = site.ask("train", task_message("run", 2, shared, 0, 5), Signal())
    assert "promises privacy.level record, which this method" in reply.get_header(HEADER_ERROR)
    assert set(reply) == {"__headers__"}
    stop(site)


def test_a_run_writes_down_what_each_site_spent(tmp_path: Path, sites: Any, job: Any) -> None:
    sites()
    whole = job(privacy=SITE | {"noise_multiplier": 2.0})
    server = run_in_process(whole, ("site-1", "site-2"), tmp_path / "run")
    home = tmp_path / "home"
    state = collect(server, home)
    summary = summarise(whole, state, home, "sim")
    spent = epsilon_of([Charge(2.0, 1.0, 2)], 1e-5)
    assert summary["privacy"] == [
        {"site": name, "level": "site", "epsilon": pytest.approx(spent), "delta": 1e-5}
        for name in ("site-1", "site-2")
    ]
    assert [record["loss"] for record in state["rounds"]] == [None] * 3
    write_summary(home, summary)
    text = (server / "metrics.jsonl").read_text()
    assert '"metric": "site_epsilon"' in text
    assert '"metric": "loss"' not in text


def test_a_spent_budget_keeps_the_site_out(tmp_path: Path, sites: Any, job: Any) -> None:
    sites()
    limit = epsilon_of([Charge(2.0, 1.0, 1)], 1e-5) + 0.01
    whole = job(privacy=SITE | {"noise_multiplier": 2.0, "max_epsilon": limit})
    with pytest.raises(FederationError, match=r"round 1: .*the privacy budget is spent"):
        run_in_process(whole, ("site-1", "site-2"), tmp_path / "run")
    ledgers = list(tmp_path.glob(f"**/{LEDGER_FILE}"))
    assert len(ledgers) == 2
    assert all(len(json.loads(path.read_text())["charges"]) == 1 for path in ledgers)
