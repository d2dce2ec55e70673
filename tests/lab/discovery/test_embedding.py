import json
from pathlib import Path

import numpy as np
import pytest

from vltune_lab.discovery.answers import AnswerError
from vltune_lab.discovery.backend import Answer, Question
from vltune_lab.discovery.embedding import (
    batch_texts,
    cosine_similarity,
    embed_question,
    embed_texts,
    embedding_asker,
    read_vectors,
)
from vltune_lab.discovery.raw_answers import RawAnswers


def answer(data: object) -> Answer:
    return Answer(json.dumps(data), "m", 1)


def entries(*vectors: object) -> list[dict[str, object]]:
    return [{"index": index, "embedding": vector} for index, vector in enumerate(vectors)]


def test_cosines_by_hand() -> None:
    """(3, 4), (4, 3): 24 / 25. (3, 4), (-4, 3): 0. (3, 4), (-6, -8): -50 / 50. Lengths are free."""
    cosines = cosine_similarity(np.array([[3.0, 4], [4, 3], [-4, 3], [-6, -8]]))
    expected = [[1, 0.96, 0, -1], [0.96, 1, -0.28, -0.96], [0, -0.28, 1, 0], [-1, -0.96, 0, 1]]
    np.testing.assert_allclose(cosines, expected, atol=1e-15)
    assert np.diag(cosines).tolist() == [1, 1, 1, 1]


def test_cosines_of_vectors_whose_squares_leave_float64() -> None:
    cosines = cosine_similarity(np.array([[3e300, 4e300], [4e-300, 3e-300]]))
    np.testing.assert_allclose(cosines, [[1, 0.96], [0.96, 1]], atol=1e-15)


def test_vectors_stand_in_the_order_of_their_index() -> None:
    data = [{"index": 1, "embedding": [0.5, 2]}, {"index": 0, "embedding": [3, 4], "object": "x"}]
    assert read_vectors(answer(data), 2).tolist() == [[3.0, 4.0], [0.5, 2.0]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (entries([1.0]), "has 1 embeddings for 2 texts"),
        ([], "has 0 embeddings for 2 texts"),
        ({"a": 1}, "has 0 embeddings for 2 texts"),
        (entries([1], [1], [1]), "index 2; expected each of 0 to 1 once"),
        ([*entries([1]), *entries([1])], "index 0; expected each of 0 to 1 once"),
        ([[1, 2], [3, 4]], "index None"),
        ([{"index": True, "embedding": [1]}], "index True"),
        (entries([1, 2], [1]), "has embeddings of 1 and of 2 numbers"),
        (entries([], [1]), "has an empty embedding 0"),
        (entries([1], [float("nan")]), "number in embedding 1 that is not finite"),
        (entries([10**400], [1]), "number in embedding 0 that is not finite"),
        (entries([0, 0.0], [1, 1]), "only zeros in embedding 0"),
        (entries(["1"], [1]), "no list of numbers as embedding 0"),
        (entries([True], [1]), "no list of numbers as embedding 0"),
        (entries("AACAPw==", [1]), "no list of numbers as embedding 0"),
        (entries(None, [1]), "no list of numbers as embedding 0"),
    ],
)
def test_what_is_no_vector_for_each_text_is_named(data: object, message: str) -> None:
    with pytest.raises(AnswerError, match=message):
        read_vectors(answer(data), 2)


def test_a_text_that_is_no_json_is_named() -> None:
    with pytest.raises(AnswerError, match="is no JSON"):
        read_vectors(Answer("[[1, 2", "m", 1), 1)


def test_batches_hold_at_most_64_texts() -> None:
    texts = [str(number) for number in range(130)]
    batches = batch_texts(texts)
    assert [len(batch) for batch in batches] == [64, 64, 2]
    assert [text for batch in batches for text in batch] == texts


class Lengths:
    """An embedding model: a text's vector is (its length, 1), longer from the 65th text on."""

    def __init__(self, *, is_steady: bool = True) -> None:
        self.asked: list[list[str]] = []
        self._is_steady = is_steady

    def parameters(self) -> dict[str, str]:
        return {"embedding_model": "lengths"}

    def stop(self) -> None:
        pass

    def ask(self, question: Question) -> Answer:
        texts = json.loads(question.data)
        self.asked.append(texts)
        more = [] if self._is_steady or len(texts) == 64 else [1]
        return answer(entries(*([len(text), 1, *more] for text in texts)))


def test_all_batches_make_one_array_and_nothing_is_asked_twice(tmp_path: Path) -> None:
    texts = ["x" * (1 + number % 7) for number in range(70)]
    for requests in ([64, 6], []):
        model = Lengths()
        asker = embedding_asker(model, RawAnswers(tmp_path / "any.answers.jsonl"), workers=1)
        done: list[None] = []
        vectors = embed_texts(texts, asker, lambda done=done: done.append(None))
        assert vectors.tolist() == [[len(text), 1] for text in texts]
        assert [len(batch) for batch in model.asked] == requests
        assert (len(done), asker.asked.resumed) == (2, 2 - len(requests))


def test_batches_of_other_lengths_are_refused(tmp_path: Path) -> None:
    asker = embedding_asker(Lengths(is_steady=False), RawAnswers(tmp_path / "a.jsonl"), workers=1)
    with pytest.raises(ValueError, match=r"vectors of \[2, 3\] numbers in one run"):
        embed_texts(["x"] * 70, asker, lambda: None)


def test_the_question_is_the_texts_alone() -> None:
    assert embed_question(["光照: 亮", 'a "b"']).data == '["光照: 亮", "a \\"b\\""]'
