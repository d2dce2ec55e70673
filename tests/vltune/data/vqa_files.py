"""Small files in the form of VQA v2; written by tests."""

import json
from pathlib import Path
from typing import Any

from answer_files import picture

PATTERN = "COCO_train2014_%012d.jpg"


def write_vqa(folder: Path, images: range = range(3), per_image: int = 2) -> tuple[Path, Path]:
    """questions.json, annotations.json and images/ below `folder`."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    questions, annotations = [], []
    for image in images:
        (folder / "images" / (PATTERN % image)).write_bytes(picture(image, "JPEG"))
        for number in range(per_image):
            identity = image * 1000 + number
            questions.append(
                {"question_id": identity, "image_id": image, "question": f"What is {number}?"}
            )
            annotations.append(annotation(identity, image, ["cat"] * 4 + ["dog"] * 6))
    content: dict[str, Any] = {"data_subtype": "train2014", "questions": questions}
    write_json(folder / "questions.json", content)
    write_json(folder / "annotations.json", {"annotations": annotations})
    return folder / "questions.json", folder / "annotations.json"


def annotation(identity: int, image: int, answers: list[str]) -> dict[str, Any]:
    """An entry of the annotations file."""
    return {
        "question_id": identity,
        "image_id": image,
        "question_type": "what is",
        "answer_type": "other",
        "multiple_choice_answer": max(answers, key=answers.count),
        "answers": [
            {"answer": text, "answer_confidence": "yes", "answer_id": number + 1}
            for number, text in enumerate(answers)
        ],
    }


def write_json(path: Path, content: Any) -> None:
    """As it is."""
    path.write_text(json.dumps(content), encoding="utf-8")
