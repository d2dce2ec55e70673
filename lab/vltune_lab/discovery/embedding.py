"""How alike texts are by the vectors of a language model, which are asked for in batches."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from vltune_lab.discovery.answers import AnswerError
from vltune_lab.discovery.asking import Asker
from vltune_lab.discovery.backend import Answer, Backend, BackendError, Question
from vltune_lab.discovery.raw_answers import RawAnswers

BATCH = 64
CURE = "choose another --embedding-model, or leave it out to compare names by their letters"


def embedding_asker(backend: Backend, raw: RawAnswers, workers: int) -> Asker:
    """Return what asks for vectors; a second try would get the same ones, so there is none."""
    return Asker(backend, raw, workers, attempts=1, cure=CURE)


def embed_question(texts: Sequence[str]) -> Question:
    """Return the question for the vectors of N texts: a JSON array of them, nothing around."""
    data = json.dumps(list(texts), ensure_ascii=False)
    return Question("", data, {}, "embeddings", temperature=0.0, seed=0)


def batch_texts(texts: Sequence[str]) -> list[Sequence[str]]:
    """Cut into batches of at most 64 texts."""
    return [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]


def embed_texts(texts: Sequence[str], asker: Asker, progress: Callable[[], None]) -> np.ndarray:
    """Ask for the vectors of texts, batch by batch.

    Args:
        texts: N texts, at least one.
        asker: Embedding model and memory.
        progress: Called after each batch.

    Returns:
        (N, D) float64, finite, none of them zero.

    Raises:
        BackendError: No usable answer, the budget is spent, or batches disagree about D.
    """
    batches = batch_texts(texts)
    questions = [embed_question(batch) for batch in batches]
    readers = [partial(read_vectors, count=len(batch)) for batch in batches]
    parts = asker.ask_all(questions, readers, progress)
    sizes = sorted({part.shape[1] for part in parts})
    if len(sizes) > 1:
        raise BackendError(f"vectors of {sizes} numbers in one run; expected one length; {CURE}.")
    return np.concatenate(parts)


def read_vectors(answer: Answer, count: int) -> np.ndarray:
    """Return the vectors of an answer in the order of their `index`, (count, D) float64.

    Raises:
        AnswerError: Not one vector for each index, of one length, of finite numbers, not all zero.
    """
    try:
        entries = json.loads(answer.text)
    except (ValueError, RecursionError) as error:
        raise AnswerError(f"is no JSON ({error!s:.80})") from error
    rows: dict[int, list[float]] = {}
    for entry in entries if isinstance(entries, list) else []:
        index = entry.get("index") if isinstance(entry, dict) else None
        if type(index) is not int or not 0 <= index < count or index in rows:
            raise AnswerError(
                f"has an embedding with index {index!r:.20}; expected each of 0 to {count - 1} once"
            )
        rows[index] = _vector(entry.get("embedding"), index)
    if len(rows) != count:
        raise AnswerError(f"has {len(rows)} embeddings for {count} texts")
    sizes = sorted({len(row) for row in rows.values()})
    if len(sizes) > 1:
        raise AnswerError(f"has embeddings of {sizes[0]} and of {sizes[-1]} numbers")
    return np.array([rows[index] for index in range(count)], dtype=np.float64)


def cosine_similarity(vectors: np.ndarray) -> np.ndarray:
    """Return <x_i, x_j> / |x_i| |x_j|, (N, N) in [-1, 1] with ones on the diagonal.

    Args:
        vectors: x, (N, D), finite, none of them zero.
    """
    # Scaled first: squares of very large or small numbers leave float64.
    x = vectors / np.abs(vectors).max(axis=1, keepdims=True)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    cosines: np.ndarray = np.clip(x @ x.T, -1.0, 1.0)
    np.fill_diagonal(cosines, 1.0)
    return cosines


def _vector(numbers: Any, index: int) -> list[float]:
    if not isinstance(numbers, list) or any(type(value) not in (int, float) for value in numbers):
        raise AnswerError(f"has no list of numbers as embedding {index}")
    if not numbers:
        raise AnswerError(f"has an empty embedding {index}")
    try:
        vector = [float(value) for value in numbers]
    except OverflowError:
        vector = [np.inf]
    if not np.isfinite(vector).all():
        raise AnswerError(f"has a number in embedding {index} that is not finite")
    if not any(vector):
        raise AnswerError(f"has only zeros in embedding {index}, which is like nothing")
    return vector
