import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from vltune_lab.discovery.similarity import letter_similarity, normalise_name


@pytest.mark.parametrize(
    ("name", "normal"),
    [
        ("Lighting", "lighting"),
        ("  2. **Scene_type**: ", "scene type"),
        ("The overall lighting condition", "lighting"),
        ("in-door/out-door", "in door out door"),
        ("object's pose", "object's pose"),
        ("„Licht“", "licht"),
        ("3", "3"),
        ("光照", "光照"),
        ("[/b] _ -", "b"),
        ("...", ""),
        ("Visual conditions", ""),
    ],
)
def test_normalised_names(name: str, normal: str) -> None:
    assert normalise_name(name) == normal
    assert normalise_name(normal) == normal


def test_similarity_by_hand() -> None:
    """Words "ab" and "ac": N = 2; " a" has df 2, so weight 1 + ln(3 / 3) = 1.

    Each word has two more bigrams, two trigrams and one 4-gram of its own (df 1), weight
    w = 1 + ln(3 / 2) = 1.405465, five in all: s = 1 / (1 + 5 w^2) = 1 / 10.876662 = 0.091940.
    """
    similarity = letter_similarity(["ab", "ac"])
    assert similarity[0, 1] == pytest.approx(0.091940, abs=1e-6)
    assert np.diag(similarity).tolist() == [1, 1]


def test_agreement_with_scikit_learn() -> None:
    names = ["scene type", "type of scene", "lighting", "light", "a", "光照", "pose pose"]
    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4)).fit_transform(names)
    expected = (vectors @ vectors.T).toarray()
    assert letter_similarity(names) == pytest.approx(expected, abs=1e-12)


def test_texts_without_letters_are_like_themselves_only() -> None:
    assert letter_similarity(["", "", "a"]).tolist() == np.eye(3).tolist()
    assert letter_similarity([""]).tolist() == [[1.0]]
