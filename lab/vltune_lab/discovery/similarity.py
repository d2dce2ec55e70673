"""How alike two names are, from their letters alone."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from vltune_lab.discovery.answers import one_line

# Any measure that gives (N, N) cosines for N texts fits here, embeddings too.
Similarity = Callable[[Sequence[str]], np.ndarray]

NGRAMS = (2, 3, 4)
_APOSTROPHE = {0x2019: "'"}
_EMPTY_WORDS = ("a", "an", "the", "condition", "conditions", "visual", "overall")


def normalise_name(name: str) -> str:
    """Return a condition's name in one spelling.

    One line, lower case, Unicode NFC; punctuation and symbols as spaces, but an apostrophe within a
    word stays; no number in front; articles and the words "visual", "overall" and "condition" left
    out.
    """
    text = unicodedata.normalize("NFC", one_line(name).casefold()).translate(_APOSTROPHE)
    spaced = "".join(
        " " if unicodedata.category(letter)[0] in "PS" and letter != "'" else letter
        for letter in text
    )
    words = [word.strip("'") for word in spaced.split()]
    if len(words) > 1 and words[0].isdecimal():
        words = words[1:]
    return " ".join(word for word in words if word and word not in _EMPTY_WORDS)


def letter_similarity(texts: Sequence[str]) -> np.ndarray:
    r"""Cosine of TF-IDF vectors of the letter n-grams within words, n = 2, 3, 4.

    With tf(g, t) the number of times that n-gram g stands in text t, each word with a space on both
    sides, N texts and df(g) the texts that have g:

        x(g, t) = tf(g, t) * (1 + ln((1 + N) / (1 + df(g)))),   s(t, u) = <x_t, x_u> / |x_t| |x_u|.

    Args:
        texts: N texts.

    Returns:
        s, (N, N), in [0, 1], with ones on the diagonal; a text without letters is like itself only.
    """
    counts = [_ngrams(text) for text in texts]
    grams = {gram: column for column, gram in enumerate(sorted(set().union(*counts)))}
    tf = np.zeros((len(texts), len(grams)))
    for row, count in enumerate(counts):
        for gram, number in count.items():
            tf[row, grams[gram]] = number
    idf = 1 + np.log((1 + len(texts)) / (1 + (tf > 0).sum(axis=0)))
    x = tf * idf
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    x = np.divide(x, norms, out=np.zeros_like(x), where=norms > 0)
    similarity: np.ndarray = np.clip(x @ x.T, 0.0, 1.0)
    np.fill_diagonal(similarity, 1.0)
    return similarity


def _ngrams(text: str) -> Counter[str]:
    return Counter(
        padded[start : start + n]
        for padded in (f" {word} " for word in text.split())
        for n in NGRAMS
        for start in range(len(padded) - n + 1)
    )
