from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

from vltune.conditions import load_conditions
from vltune_lab.discovery import small_model
from vltune_lab.discovery.axes import AXES, CONTROLS, Axis
from vltune_lab.discovery.backend import BackendError
from vltune_lab.discovery.build import BuildOptions
from vltune_lab.discovery.commands import register
from vltune_lab.discovery.likelihood import (
    axis_information,
    centre,
    neutral_likelihood,
    pair_affinity,
    pmi_profiles,
    profile_affinity,
    rank_axes,
    without_class_means,
)
from vltune_lab.discovery.likelihood_build import METHOD, build_by_likelihood

PLACE = Axis("place", "Where.", "In the {value} is a", ("kitchen", "field"))
NONSENSE = Axis("noise", "Nonsense.", "On {value} I see a", ("Monday", "Friday"), is_control=True)


class Table:
    """A model whose likelihoods are written down; what is not there is -5."""

    def __init__(self, known: dict[tuple[str, str], float]) -> None:
        self.known = known
        self.asked: list[str] = []

    def log_likelihood(self, prefix: str, continuations: Sequence[str]) -> NDArray[np.float64]:
        self.asked.append(prefix)
        return np.array([self.known.get((prefix, text), -5.0) for text in continuations])

    def parameters(self) -> dict[str, Any]:
        return {"model": "table"}


def test_profiles_by_hand() -> None:
    """Neutral is -5: pmi of cup is (3, 1), of cow (0, 4); less the means 2 and 2."""
    model = Table(
        {
            ("In the kitchen is a", " cup"): -2.0,
            ("In the field is a", " cup"): -4.0,
            ("In the field is a", " cow"): -1.0,
        }
    )
    ticks: list[int] = []
    names = ["cup", "cow"]
    neutral = neutral_likelihood(model, names)
    np.testing.assert_allclose(neutral, [-5, -5])
    found = pmi_profiles(model, PLACE, names, neutral, lambda: ticks.append(1))
    np.testing.assert_allclose(found, [[1, -2], [-1, 2]])
    assert len(ticks) == 2


def test_information_by_hand() -> None:
    """p(v | c) = (3/4, 1/4) and (1/4, 3/4), p(v) even: I = 1 - h(1/4) = 1 - 0.811278 bit."""
    s = np.log([[3.0, 1.0], [1.0, 3.0]])
    assert axis_information(s) == pytest.approx(1 - 0.811278, abs=1e-6)
    assert axis_information(centre(s)) == pytest.approx(1 - 0.811278, abs=1e-6)


def test_information_lies_between_nothing_and_one() -> None:
    same = np.tile([[2.0], [0.0], [-1.0]], (1, 4))
    assert axis_information(same) == pytest.approx(0, abs=1e-12)
    assert axis_information(1000 * np.eye(4)) == pytest.approx(1)


def test_ranking_refuses_what_is_not_above_every_control() -> None:
    axes = [Axis(name, "Gloss.", "{value}", ("a", "b")) for name in ("b", "a", "c")]
    scored = [(axes[0], 0.5), (axes[1], 0.5), (axes[2], 0.2), (NONSENSE, 0.2)]
    found = [(entry.axis.name, entry.reason) for entry in rank_axes(scored)]
    assert found[:2] == [("a", ""), ("b", "")]
    assert set(found[2:]) == {("c", "not above every control"), ("noise", "control")}


def test_profile_affinity_by_hand() -> None:
    """Rows less their means: columns (2, -2), (-1, 1), (-1, 1); a value likelier for all is out."""
    s = np.array([[9.0, 6.0, 6.0], [-9.0, -6.0, -6.0]])
    np.testing.assert_allclose(profile_affinity(s), [[1, -1, -1], [-1, 1, 1], [-1, 1, 1]])


def test_a_class_without_a_profile_has_no_affinity() -> None:
    found = profile_affinity(np.array([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]]))
    np.testing.assert_allclose(found, [[1, -1, 0], [-1, 1, 0], [0, 0, 0]])


def test_pair_affinity_by_hand() -> None:
    """Neutral -5. a(cup, cow) = 1, a(cow, cup) = 3: the mean is 2; names repeated give 0."""
    model = Table({("A photo of a cup and a", " cow"): -4, ("A photo of a cow and a", " cup"): -2})
    np.testing.assert_allclose(
        pair_affinity(model, ["cup", "cow"], lambda: None), [[0, 2], [2, 0]], atol=1e-12
    )


def test_class_means_are_taken_out_by_hand() -> None:
    """Means of the others: (3, 2, 1). A'(0, 1) = 4 - 3 - 2, A'(0, 2) = 2 - 3 - 1, A'(1, 2) = -3."""
    a = np.array([[9.0, 4.0, 2.0], [4.0, 9.0, 0.0], [2.0, 0.0, 9.0]])
    np.testing.assert_allclose(without_class_means(a), [[0, -1, -2], [-1, 0, -3], [-2, -3, 0]])


def test_seed_axes_have_values_and_distinct_names() -> None:
    assert len({axis.name for axis in AXES + CONTROLS}) == len(AXES + CONTROLS)
    assert len(CONTROLS) >= 3
    assert all(axis.is_control for axis in CONTROLS)
    for axis in AXES + CONTROLS:
        assert axis.template.count("{value}") == 1
        assert len(set(axis.values)) == len(axis.values) >= 2


def told_by(*axes: Axis) -> Table:
    """Return a model in which `cup` takes the first value of these axes and `cow` the second."""
    known = {}
    for axis in axes:
        known[axis.prefixes()[0], " cup"] = known[axis.prefixes()[1], " cow"] = -1.0
    return Table(known)


def test_build_takes_the_axes_above_the_controls_and_fills_up_with_the_papers() -> None:
    model, steps = told_by(AXES[1], AXES[6]), []
    options = BuildOptions("mine", k=4)
    found = build_by_likelihood(["cup", "cow"], options, model, lambda *step: steps.append(step))
    names = [entry["name"] for entry in found["conditions"]]
    assert set(names[:2]) == {"background", "material"}
    assert names[2:] == ["colour", "scene type"]
    made_by = found["made_by"]
    assert (made_by["method"], made_by["model"]) == (METHOD, "table")
    assert made_by["fallback"] == ["colour", "scene type"]
    chosen = [entry["name"] for entry in made_by["candidates"] if entry["chosen"]]
    assert chosen == names[:2]
    assert sum(entry["control"] for entry in made_by["candidates"]) == len(CONTROLS)
    assert steps[-1][1] == steps[-1][2] == sum(len(axis.values) for axis in AXES + CONTROLS)


def test_build_without_fallback_says_so_and_is_repeatable() -> None:
    options = BuildOptions("mine", k=1)
    first, second = (
        build_by_likelihood(["cup", "cow"], options, told_by(AXES[1], AXES[6]), lambda *_: None)
        for _ in range(2)
    )
    assert first == second
    assert first["made_by"]["fallback"] == []
    reasons = {entry["name"]: entry["reason"] for entry in first["made_by"]["candidates"]}
    assert sorted(reasons[name] for name in ("background", "material")) == ["", "score"]


def test_build_refuses_more_conditions_than_there_are() -> None:
    with pytest.raises(BackendError, match="--k is 9"):
        build_by_likelihood(["cup", "cow"], BuildOptions("mine", k=9), Table({}), lambda *_: None)


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run `vltune conditions build --llm embedded` on cup and cow with a table for a model."""
    monkeypatch.setattr(small_model, "load_small_model", lambda: told_by(AXES[1], AXES[6]))
    classes = tmp_path / "classes.txt"
    classes.write_text("cup\ncow\n")
    app = typer.Typer()
    app.callback()(lambda: None)
    register(app)
    command = ["conditions", "build", "--llm", "embedded", "--classes", str(classes)]
    command += ["--out", str(tmp_path / "mine.json")]
    return lambda *more: CliRunner().invoke(app, [*command, *more], env={"COLUMNS": "160"})


def test_the_command_writes_a_cache_and_warns_of_the_fallback(
    build: Callable[..., Result], tmp_path: Path
) -> None:
    result = build("--k", "3")
    assert result.exit_code == 0, result.output
    assert "warning: from the paper, not from the model: colour" in result.output
    found = load_conditions(tmp_path / "mine.json", ["cup", "cow"])
    assert set(found.names) == {"background", "material", "colour"}


def test_the_command_has_one_model(build: Callable[..., Result], tmp_path: Path) -> None:
    result = build("--model", "another")
    assert isinstance(result.exception, BackendError)
    assert not (tmp_path / "mine.json").exists()
