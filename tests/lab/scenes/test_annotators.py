"""Ten simulated people."""

from collections import Counter

import numpy as np
import pytest

from vltune.data.vqa import most_common_first
from vltune.vqa_metrics import normalise_vqa_answer, vqa_accuracy
from vltune_lab.scenes.annotators import annotate, entries_of
from vltune_lab.scenes.house_styles import vocabulary
from vltune_lab.scenes.questions import Question
from vltune_lab.scenes.render import Scene

WORDS = vocabulary(("dog", "cat", "bus"), ("park", "street"))
EMPTY = Scene(np.zeros((8, 8, 3), np.uint8), "park", "noto", (), np.zeros((8, 8), np.int8), "park")
QUESTIONS = (
    Question("presence", "Is there a dog?", "yes"),
    Question("count", "How many dogs are there?", "2"),
    Question("count", "How many cats are there?", "0"),
    Question("colour", "What colour is the dog?", "red"),
    Question("category", "Which animal is shown?", "dog"),
)


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("disagreement", [0.0, 0.3, 1.0])
def test_the_truth_is_the_most_common_answer(question: Question, disagreement: float) -> None:
    for seed in range(30):
        rng = np.random.Generator(np.random.PCG64(seed))
        answers = annotate(question, EMPTY, WORDS, disagreement, rng)
        assert len(answers) == 10
        assert most_common_first(list(answers))[0] == question.answer
        assert vqa_accuracy(question.answer, answers) == 1.0
        counts = Counter(map(normalise_vqa_answer, answers))
        assert counts[normalise_vqa_answer(question.answer)] >= 6


def test_people_disagree_and_use_other_words() -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    said = Counter(
        text for _ in range(100) for text in annotate(QUESTIONS[1], EMPTY, WORDS, 0.2, rng)
    )
    assert set(said) == {"2", "two", "1", "3"}
    assert 100 < said["1"] + said["3"] < 300


def test_entries_of_the_official_files() -> None:
    answers = ("2",) * 6 + ("two", "1", "3", "1")
    asked, answered = entries_of(305, 3, QUESTIONS[1], answers)
    assert asked == {"question_id": 305, "image_id": 3, "question": "How many dogs are there?"}
    assert (answered["question_type"], answered["answer_type"]) == ("how many", "number")
    assert answered["multiple_choice_answer"] == "2"
    assert answered["answers"][6] == {"answer": "two", "answer_confidence": "yes", "answer_id": 7}
