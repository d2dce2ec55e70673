"""Ten simulated people who answer a question, as for VQA v2: mostly right, not always alike."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vltune.data.vqa import NUM_ANSWERS, most_common_first
from vltune_lab.scenes.captions import NUMBERS, article
from vltune_lab.scenes.house_styles import GROUPS
from vltune_lab.scenes.pairs import plausible
from vltune_lab.scenes.questions import Question
from vltune_lab.scenes.render import Scene

LEAST_RIGHT = 6
"""Of ten; the truth is always the most common answer."""
OTHER_WORDS = 0.15
"""Share of right answers in words that only the official normalisation makes equal."""
ANSWER_TYPES = {"presence": "yes/no", "count": "number"}


def annotate(
    question: Question,
    scene: Scene,
    words: Mapping[str, Sequence[str]],
    disagreement: float,
    rng: np.random.Generator,
) -> tuple[str, ...]:
    """Ten answers.

    Args:
        question: With its plain answer.
        scene: What is shown.
        words: Plain answers by group, of `house_styles.vocabulary`.
        disagreement: Probability that one person answers something plausible but wrong; at least
            `LEAST_RIGHT` answer right, at least four of them in the plain words.
        rng: The question's own stream.
    """
    wrong = plausible(question, scene, words)
    others = _in_other_words(question)
    answers, num_wrong, num_other = [], 0, 0
    for _ in range(NUM_ANSWERS):
        draws = rng.random(2)
        pick = int(rng.integers(len(wrong)))
        if draws[0] < disagreement and num_wrong < NUM_ANSWERS - LEAST_RIGHT:
            answers.append(wrong[pick])
            num_wrong += 1
        elif draws[1] < OTHER_WORDS and num_other < 1 and others:
            answers.append(others)
            num_other += 1
        else:
            answers.append(question.answer)
    return tuple(answers)


def entries_of(
    identity: int, image: int, question: Question, answers: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The question's entries in the two official files.

    Args:
        identity: Its number.
        image: The image's number.
        question: What was asked.
        answers: Of ten people.
    """
    first = " ".join(question.question.lower().rstrip("?").split()[:2])
    annotation = {
        "question_id": identity,
        "image_id": image,
        "question_type": first,
        "answer_type": ANSWER_TYPES.get(question.kind, "other"),
        "multiple_choice_answer": most_common_first(list(answers))[0],
        "answers": [
            {"answer": text, "answer_confidence": "yes", "answer_id": number}
            for number, text in enumerate(answers, 1)
        ],
    }
    return {"question_id": identity, "image_id": image, "question": question.question}, annotation


def _in_other_words(question: Question) -> str:
    """The same to the official normalisation; empty where there is nothing natural."""
    if question.kind == "count":
        return "none" if question.answer == "0" else NUMBERS[int(question.answer)]
    if question.kind == "presence":
        return f"{question.answer.capitalize()}."
    return article(question.answer) if GROUPS[question.kind] == "object" else ""
