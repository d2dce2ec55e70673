"""Questions about images in the official files of VQA v2: `questions` and `annotations`.

Each question has ten answers, of ten people. What is trained on is the answer that most of them
gave; where several are as frequent, `multiple_choice_answer` decides, then the order of the file.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from vltune.data.image_sources import ImageFile
from vltune.data.image_text import ImageTextSamples, Parsed, collect
from vltune.data.images import stays_inside
from vltune.data.rows import RecordError, clean_text
from vltune.site_data import VqaFiles

NUM_ANSWERS = 10
"""People who answer each question of VQA v2; its metric leaves out one of them at a time."""

Entries = dict[int, dict[str, Any]]


def load_vqa(
    files: VqaFiles,
    *,
    on_bad_image: Literal["stop", "skip"] = "stop",
    max_skipped_share: float = 0.1,
    already_read: Callable[[bytes], bool] | None = None,
) -> ImageTextSamples:
    """Read questions with their answers and check every image; see `collect`.

    Args:
        files: Both JSON files and the folder of the images.
        on_bad_image: What a missing or unreadable image does.
        max_skipped_share: Largest share of the images that may be left out.
        already_read: Says of a content whether it was decoded before.

    Returns:
        Records with ten answers, the one to learn first, the others in the file's order.

    Raises:
        RecordError: A file is wrong: missing, no JSON, a missing key, a question id twice or in one
            file only, two image ids for one question, not ten answers or all empty, no text, no
            name for the images.
        ImageError: Bad images (`collect`).
    """
    return collect(
        _parse(files),
        on_bad_image=on_bad_image,
        max_skipped_share=max_skipped_share,
        already_read=already_read,
    )


def _parse(files: VqaFiles) -> Iterator[Parsed]:
    content = _read_json(files.questions, "questions")
    questions = _by_id(content, "questions", files.questions)
    annotations = _by_id(
        _read_json(files.annotations, "annotations"), "annotations", files.annotations
    )
    _check_pairs(questions, annotations, files)
    pattern = files.pattern or _official_pattern(content, files.questions)
    if not stays_inside(pattern % 0):
        raise RecordError(
            f"{files.questions}: the pattern of the images' names does not stay inside `images:`. "
            "Use a name relative to that folder, without '..'."
        )
    for identity, entry in questions.items():
        where = f"{files.questions}: question {identity}"
        image = _image_id(entry, where)
        annotation = annotations[identity]
        answered = f"{files.annotations}: question {identity}"
        if annotation.get("image_id", image) != image:
            raise RecordError(
                f"{answered}: image_id differs from that of the questions file. Take both "
                "files from one release."
            )
        source = ImageFile(files.images / (pattern % image), where)
        prompt = clean_text(entry.get("question"), f"{where}: 'question'")
        yield Parsed(where, source, prompt, _answers(annotation, answered), None)


def _answers(entry: dict[str, Any], where: str) -> tuple[str, ...]:
    """Ten answers, the most frequent one first."""
    listed = entry.get("answers")
    if not isinstance(listed, list) or len(listed) != NUM_ANSWERS:
        found = f"{len(listed)} entries" if isinstance(listed, list) else type(listed).__name__
        raise RecordError(
            f"{where}: 'answers' is {found}; expected a list of {NUM_ANSWERS}. Give one for each "
            "annotator, or use `data: captions`, which takes any number."
        )
    texts = []
    for index, item in enumerate(listed):
        inner = f"{where}: 'answers[{index}]'"
        if isinstance(item, dict):
            raise RecordError(f"{inner}: key 'answer' is missing. Add it.")
        # A person who said nothing still is one of the ten.
        is_blank = isinstance(item, str) and not item.strip()
        texts.append("" if is_blank else clean_text(item, inner))
    if not any(texts):
        raise RecordError(f"{where}: all {NUM_ANSWERS} answers are empty. Remove the question.")
    return most_common_first(texts, entry.get("multiple_choice_answer"))


def most_common_first(answers: list[str], preferred: Any = None) -> tuple[str, ...]:
    """The same answers with the most frequent one at the front, where it stands once.

    Args:
        answers: At least one that is not empty; empty ones are never at the front.
        preferred: Wins among answers that are as frequent as any, where it is one of them.
    """
    counts = Counter(text for text in answers if text)
    most = max(counts.values())
    tied = [text for text in counts if counts[text] == most]
    chosen = preferred if preferred in tied else tied[0]
    first = answers.index(chosen)
    return (answers[first], *answers[:first], *answers[first + 1 :])


def _official_pattern(content: dict[str, Any], path: Path) -> str:
    subtype = content.get("data_subtype")
    if not isinstance(subtype, str) or not subtype.isalnum():
        raise RecordError(
            f"{path}: says no 'data_subtype' such as train2014, so the images' names are not known."
            " Give `pattern: NAME_%012d.jpg` beside `images:` in vltune_site.yaml."
        )
    return f"COCO_{subtype}_%012d.jpg"


def _check_pairs(questions: Entries, annotations: Entries, files: VqaFiles) -> None:
    for first, second, path in (
        (questions, annotations, files.annotations),
        (annotations, questions, files.questions),
    ):
        missing = [identity for identity in first if identity not in second]
        if missing:
            raise RecordError(
                f"{path}: question {missing[0]} and {len(missing) - 1} others of the other file "
                "are not in it. Take both files from one release and one split."
            )


def _image_id(entry: dict[str, Any], where: str) -> int:
    image = entry.get("image_id")
    if type(image) is not int or image < 0:
        raise RecordError(
            f"{where}: image_id is {type(image).__name__} or negative; expected the number of an "
            "image. Correct it."
        )
    return image


def _by_id(content: dict[str, Any], section: str, path: Path) -> Entries:
    entries = content.get(section)
    if not isinstance(entries, list) or not entries:
        found = (
            "is empty" if entries == [] else "is no list" if section in content else "is missing"
        )
        raise RecordError(
            f"{path}: {section!r} {found}; expected a list. Give the {section} file of VQA v2."
        )
    by_id: Entries = {}
    for index, entry in enumerate(entries):
        where = f"{path}: {section}[{index}]"
        identity = entry.get("question_id") if isinstance(entry, dict) else None
        if type(identity) is not int:
            raise RecordError(
                f"{where}: question_id is {type(identity).__name__}; expected a whole number. "
                "Correct it."
            )
        if identity in by_id:
            raise RecordError(f"{where}: question_id {identity} is there twice. Keep one.")
        by_id[identity] = entry
    return by_id


def _read_json(path: Path, section: str) -> dict[str, Any]:
    if not path.is_file():
        raise RecordError(f"{path}: no such file. Correct `{section}:` in vltune_site.yaml.")
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"), object_hook=_answer_alone)
    except UnicodeDecodeError as error:
        raise RecordError(f"{path}: not UTF-8 text. Save the file as UTF-8.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(
            f"{path}: not JSON ({type(error).__name__}). The file may be cut off; copy it again."
        ) from error
    if not isinstance(content, dict):
        raise RecordError(f"{path}: expected an object with {section!r}, got a list or a value.")
    return content


def _answer_alone(record: dict[str, Any]) -> Any:
    """Keep the text of an answer, each text once: four million small objects need gigabytes."""
    if "answer" in record and "question_id" not in record:
        answer = record["answer"]
        return sys.intern(answer) if isinstance(answer, str) else answer
    return record
