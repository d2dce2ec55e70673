"""Ten thousand hostile answers into the server's path: inbox, aggregator, mean, records."""

import itertools
import math
import resource
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hostile_updates import (
    EXAMPLES,
    ROUND,
    SHAPES,
    Mutant,
    Mutator,
    honest_evaluation,
    honest_handshake,
    honest_update,
)
from nvflare.apis.dxo import MetaKey
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import ReservedHeaderKey
from nvflare.app_common.app_constant import AppConstants
from nvflare.fuel.utils import fobs

from vltune.flare.aggregator import RejectedUpdateError, ValidatingAggregator
from vltune.flare.allow_list import SITE_METRICS
from vltune.flare.exchange import ExchangeError
from vltune.flare.failure import refusal
from vltune.flare.inquiry import Answers
from vltune.flare.intake import read_evaluation, read_handshake
from vltune.flare.roll_call import compare_sites
from vltune.flare.round_record import (
    Measured,
    describe_roll_call,
    global_map,
    measurement,
    metrics_of,
    training,
)
from vltune.flare.run_log import RunLog
from vltune.histograms import HistogramError, score_histograms
from vltune.parameters import LocalUpdate

GLOBAL = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
SITES = 8
MAX_NORM = 1000.0
GROWTH_BYTES = 300_000_000
MAX_REASON = 1100
"""Longest text of a refusal that the records keep, with the site's name."""


def is_count(value: Any, least: int, most: int = 10**9) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -1e300 <= value <= 1e300 or value != value


def is_text(value: Any, expected: str) -> bool:
    return isinstance(value, str) and value == expected


def is_absent(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value == "")


def is_tensor(value: Any, shape: tuple[int, ...]) -> bool:
    return (
        isinstance(value, np.ndarray)
        and value.dtype == np.dtype("=f4")
        and value.shape == shape
        and bool(np.isfinite(np.asarray(value)).all())
    )


def are_histograms(value: Any) -> bool:
    """The rules of `vltune.histograms`, one interval after the other."""
    names = {"class_offsets", "lows", "highs", "positives", "negatives"}
    if value == {}:
        return True
    if set(value) - {"average_precisions"} != names:
        return False
    if not all(isinstance(a, np.ndarray) and a.dtype == np.int32 and a.ndim == 1
               for a in value.values()):  # fmt: skip
        return False
    lists = {name: array.tolist() for name, array in value.items()}
    offsets = lists["class_offsets"]
    ends = [len(lists[name]) for name in ("lows", "highs", "positives", "negatives")]
    if not offsets or offsets[0] != 0 or offsets != sorted(offsets) or set(ends) != {offsets[-1]}:
        return False
    for start, stop in itertools.pairwise(offsets):
        last = 2**30
        for n in range(start, stop):
            low, high = lists["lows"][n], lists["highs"][n]
            counts = lists["positives"][n], lists["negatives"][n]
            if not 0 <= low <= high < last or min(counts) < 0 or sum(counts) == 0:
                return False
            last = low
        images = sum(lists["positives"][start:stop]) + sum(lists["negatives"][start:stop])
        if stop > start and (not any(lists["positives"][start:stop]) or images > 10**6):
            return False
    reported = lists.get("average_precisions")
    return reported is None or (
        len(reported) == len(offsets) - 1 and all(-1 <= value <= 1000 for value in reported)
    )


def is_valid(message: Any) -> bool:
    """What the protocol allows, said a second time and without the code under test."""
    if not isinstance(message, dict):
        return False
    try:
        headers, content = message["__headers__"], message["DXO"]
        meta, data, kind = content["meta"], content["data"], content["kind"]
        metrics = meta.get(MetaKey.INITIAL_METRICS, {})
        histograms = meta.get("histograms", {})
        return bool(
            is_text(headers.get(ReservedHeaderKey.RC, ReturnCode.OK), ReturnCode.OK)
            and is_text(headers.get(ReservedHeaderKey.CONTENT_TYPE), "DXO")
            and is_count(headers[AppConstants.CURRENT_ROUND], ROUND, ROUND)
            and all(
                headers.get(name) is None or (isinstance(headers[name], int) and headers[name] >= 0)
                for name in (AppConstants.START_ROUND, AppConstants.NUM_ROUNDS)
            )
            and not headers.get(AppConstants.SUBMIT_MODEL_NAME)
            and is_text(kind, "WEIGHTS")
            and isinstance(data, dict)
            and set(data) == set(SHAPES)
            and all(is_tensor(data[name], shape) for name, shape in SHAPES.items())
            and math.sqrt(sum(float((np.float64(v) ** 2).sum()) for v in data.values())) <= MAX_NORM
            and is_count(meta["num_examples"], EXAMPLES, EXAMPLES)
            and is_absent(meta.get(MetaKey.PROCESSED_ALGORITHM))
            and (metrics is None or isinstance(metrics, dict))
            and all(key in SITE_METRICS and is_number(v) for key, v in (metrics or {}).items())
            and isinstance(histograms, dict)
            and are_histograms(histograms)
            and bool(fobs.dumps(content))
        )
    except Exception:  # noqa: BLE001 - whatever it is, it is no answer
        return False


def judge(mutator: Mutator, count: int, folder: Path) -> tuple[dict[str, int], list[str]]:
    """Feed `count` mutants as rounds of eight sites, one of them honest; returns what happened."""
    tally = {"accepted": 0, "refused": 0, "unreadable": 0}
    problems: list[str] = []
    aggregator = ValidatingAggregator(max_update_norm=MAX_NORM)
    for _ in range(0, count, SITES - 1):
        mutants = {f"site-{n}": mutator.mutant() for n in range(1, SITES)}
        mutants["site-0"] = Mutant(honest_update(), "the honest site")
        aggregator.start_round(ROUND, GLOBAL, dict.fromkeys(mutants, EXAMPLES))
        answers, rejected = one_round(aggregator, mutants)
        expected = {site for site, mutant in mutants.items() if is_valid(mutant.message)}
        for site in set(aggregator.accepted) ^ expected:
            what = "refused" if site in expected else "accepted"
            problems.append(f"{what}: {rejected.get(site)!r:.200}; {mutants[site].story:.300}")
        problems += [
            f"reason {reason[:200]!r}; {mutants[site].story}"
            for site, reason in rejected.items()
            if not reason.isprintable() or not 0 < len(reason) <= MAX_REASON
        ]
        tally["accepted"] += len(aggregator.accepted) - 1
        tally["refused"] += len(rejected)
        tally["unreadable"] += sum(mutant.message is None for mutant in mutants.values())
        check_round(aggregator.accepted, aggregator.average(), answers, rejected, folder)
    return tally, problems


def one_round(
    aggregator: ValidatingAggregator, mutants: dict[str, Mutant]
) -> tuple[Answers, dict[str, str]]:
    """What the controller does with the answers of a round."""
    answers = Answers()
    for site, mutant in mutants.items():
        if mutant.message is not None:
            answers.received(site, mutant.message)
    rejected = dict(answers.failed)
    for site, model in sorted(answers.models.items()):
        try:
            aggregator.accept_model(model)
        except RejectedUpdateError as error:
            rejected[site] = str(error)
    return answers, rejected


def check_round(
    accepted: dict[str, LocalUpdate],
    mean: dict[str, Any],
    answers: Answers,
    rejected: dict[str, str],
    folder: Path,
) -> None:
    """The mean is that of the accepted, and the round can be written down."""
    by_hand = np.mean([update.tensors["bias"].numpy() for update in accepted.values()], axis=0)
    np.testing.assert_allclose(mean["bias"].numpy(), by_hand, rtol=1e-5, atol=1e-6)
    assert all(bool(tensor.isfinite().all()) for tensor in mean.values())
    measured = {
        site: Measured(update.metrics, update.histograms, update.num_examples)
        for site, update in accepted.items()
    }
    log = RunLog(folder, {})
    log.site_metrics(ROUND, "train", metrics_of(measured, 1))
    log.round_line(measurement(ROUND, measured) | training(measured, answers, rejected))


def test_ten_thousand_hostile_answers_are_refused_with_a_reason_and_cost_nobody_else(
    tmp_path: Path,
) -> None:
    count, canary = 10_000, tmp_path / "canary"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    tally, problems = judge(Mutator(41, canary), count, tmp_path / "run")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    assert not problems, f"{len(problems)} of {count}:\n" + "\n".join(problems[:20])
    assert not canary.exists()
    assert grown < GROWTH_BYTES
    assert sum(tally.values()) >= count
    assert min(tally.values()) > count // 50, tally


def test_hostile_handshakes_leave_their_site_out_and_nobody_else(tmp_path: Path) -> None:
    """Three honest sites are the majority: whatever two others say, the three are compared."""
    canary = tmp_path / "canary"
    mutator = Mutator(43, canary, honest_handshake())
    aggregator = ValidatingAggregator()
    for _ in range(300):
        answers, handshakes = Answers(), {}
        mutants = [mutator.mutant().message for _ in range(2)]
        for n, message in enumerate([*(honest_handshake() for _ in range(3)), *mutants]):
            answers.received(f"site-{n}", message)
        failed = dict(answers.failed)
        for site, model in answers.models.items():
            try:
                aggregator.refuse_processed(site, model)
                handshakes[site] = read_handshake(model, site)
            except (ExchangeError, RejectedUpdateError) as error:
                failed[site] = refusal(error)
        roll_call = compare_sites(handshakes, failed, 3)
        assert set(roll_call.sites) >= {"site-0", "site-1", "site-2"}
        assert all(reason.isprintable() for reason in roll_call.left_out.values())
        assert all(len(reason) <= MAX_REASON for reason in roll_call.left_out.values())
        RunLog(tmp_path / "run", describe_roll_call(roll_call, handshakes, answers))
    assert not canary.exists()


def test_hostile_measurements_cost_their_sites_figures_only(tmp_path: Path) -> None:
    mutator = Mutator(47, tmp_path / "canary", honest_evaluation())
    for _ in range(300):
        answers = Answers()
        answers.received("site-1", mutator.mutant().message)
        for site, model in answers.models.items():
            try:
                evaluation = read_evaluation(model, site)
            except (ExchangeError, HistogramError):
                continue
            measured = {site: Measured(evaluation.metrics, evaluation.histograms)}
            record = measurement(ROUND, measured, is_required=False)
            RunLog(tmp_path / "run", {}).round_line(record)
    assert not (tmp_path / "canary").exists()


def test_one_site_of_other_classes_does_not_turn_the_global_map_off() -> None:
    """Two sites have two classes, the third claims three; without a majority there is no mAP."""
    scores, labels = np.random.default_rng(3).random((29, 3)), np.arange(87).reshape(29, 3) % 2
    of = {
        width: score_histograms(scores[:, :width], labels[:, :width].astype(np.int8)).to_tensors()
        for width in (2, 3)
    }
    two, three = Measured({}, of[2]), Measured({}, of[3])
    assert global_map({"a": two, "b": two, "c": three}) == global_map({"a": two, "b": two})
    assert math.isnan(global_map({"a": two, "c": three}))
