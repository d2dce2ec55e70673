from pathlib import Path

from vltune.conditions import load_conditions, read_condition_cache
from vltune_lab.bench.conditions import DISCOVERED, PAPER, UNRELATED, condition_sets


def test_the_sets_differ_only_in_their_conditions(tmp_path: Path) -> None:
    sets = {method: load_conditions(path) for method, path in condition_sets(7, tmp_path)}
    paper, found, unrelated, none = sets.values()
    assert {s.class_list_hash for s in sets.values()} == {paper.class_list_hash}
    assert len(paper.names) == len(found.names) == len(unrelated.names) == 5
    assert len(none.names) == 1
    assert set(paper.names) != set(found.names)
    assert set(unrelated.names) <= set(UNRELATED)


def test_unrelated_words_follow_from_the_seed_and_name_no_class(tmp_path: Path) -> None:
    def words(seed: int) -> tuple[str, ...]:
        sets = dict(condition_sets(seed, tmp_path))
        return load_conditions(sets["unrelated words"]).names

    assert words(7) == words(7)
    assert words(7) != words(8)
    classes = {word for name in load_conditions(PAPER).classnames for word in name.split()}
    assert not classes & set(UNRELATED)


def test_the_found_conditions_came_from_a_language_model_without_fallback() -> None:
    made_by = read_condition_cache(DISCOVERED)["made_by"]
    assert made_by["method"] == "language model, likelihood"
    assert made_by["fallback"] == []
    chosen = [entry["name"] for entry in made_by["candidates"] if entry["chosen"]]
    assert chosen == list(load_conditions(DISCOVERED).names)
