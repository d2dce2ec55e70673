from math import comb

import pytest

from vltune_lab.discovery.sampling import class_counts, sample_combinations


@pytest.mark.parametrize(
    ("num_classes", "wanted"), [(2, 1), (3, 4), (5, 11), (7, 50), (20, 60), (1000, 1600)]
)
def test_every_class_appears_about_equally_often(num_classes: int, wanted: int) -> None:
    drawn = sample_combinations(num_classes, wanted, seed=3)
    assert len(drawn) == len(set(drawn)) == wanted
    assert all(list(one) == sorted(set(one)) for one in drawn)
    assert {len(one) for one in drawn} == ({2} if num_classes == 2 else {2, 3})
    counts = class_counts(drawn, num_classes)
    assert max(counts) - min(counts) <= 2
    assert sum(counts) == sum(map(len, drawn))


def test_a_thousand_classes_in_four_hundred_combinations() -> None:
    """200 pairs and 200 triples have 1,000 places: each class stands in exactly one."""
    assert class_counts(sample_combinations(1000, 400, seed=1), 1000) == [1] * 1000


@pytest.mark.parametrize("num_classes", [2, 3, 4, 6])
def test_no_more_than_there_are(num_classes: int) -> None:
    drawn = sample_combinations(num_classes, 10_000, seed=1)
    assert len(set(drawn)) == len(drawn) == comb(num_classes, 2) + comb(num_classes, 3)


def test_the_seed_decides() -> None:
    assert sample_combinations(30, 40, 5) == sample_combinations(30, 40, 5)
    assert sample_combinations(30, 40, 5) != sample_combinations(30, 40, 6)


@pytest.mark.parametrize(("num_classes", "wanted"), [(1, 1), (0, 1), (5, 0)])
def test_what_cannot_be_sampled(num_classes: int, wanted: int) -> None:
    with pytest.raises(ValueError, match="expected at least 2 and 1"):
        sample_combinations(num_classes, wanted, 1)
