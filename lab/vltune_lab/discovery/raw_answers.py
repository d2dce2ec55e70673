"""The language model's answers as they came, one JSON line each, beside the cache.

Every answer is appended at once and never changed, so an interrupted run goes on from it. Answers
that could not be used are kept too, as evidence, but are asked for again.
"""

import json
import os
import threading
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vltune.files import OutputError, sha256_json
from vltune_lab.discovery.backend import Answer, Question

SUFFIX = ".answers.jsonl"


def answers_path(cache: Path) -> Path:
    """Where the answers of a cache are: `coco-80.json` has `coco-80.answers.jsonl`."""
    return cache.with_name(cache.stem + SUFFIX)


def question_key(question: Question, parameters: dict[str, Any]) -> str:
    """Hex SHA-256 of all that the answer depends on."""
    return sha256_json({"question": asdict(question), "parameters": parameters})


class RawAnswers:
    """An append-only file of answers, for several threads.

    Args:
        path: Of the file; made, with its folder, if it is not there.

    Raises:
        OutputError: It cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._usable: dict[str, Answer] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a+b") as stream:
                stream.seek(0)
                content = stream.read()
                if content and not content.endswith(b"\n"):
                    # The last run died while it wrote; the rest of a line must not join the next.
                    stream.write(b"\n")
        except OSError as error:
            raise OutputError(
                f"{path}: cannot keep the answers ({error.strerror}). Choose an --out in a folder "
                "that is writable."
            ) from error
        for line in content.splitlines():
            self._read(line)

    def __len__(self) -> int:
        """Number of usable answers."""
        return len(self._usable)

    def find(self, key: str) -> Answer | None:
        """Return the usable answer to a question, if there is one."""
        with self._lock:
            return self._usable.get(key)

    def keep(self, key: str, answer: Answer, problem: str) -> None:
        """Append an answer.

        Args:
            key: `question_key` of its question.
            answer: As it came.
            problem: Why it cannot be used; empty if it can.

        Raises:
            OutputError: The disk is full, or the file is gone.
        """
        record = {"key": key, "problem": problem, **asdict(answer)}
        # ensure_ascii: an answer may hold lone surrogates, which UTF-8 has no bytes for.
        line = json.dumps(record).encode() + b"\n"
        try:
            with self._lock, self.path.open("ab") as stream:
                stream.write(line)
                stream.flush()
                os.fsync(stream.fileno())
                if not problem:
                    self._usable[key] = answer
        except OSError as error:
            raise OutputError(
                f"{self.path}: cannot keep an answer ({error.strerror}). Free space and run again."
            ) from error

    def digest(self, keys: Iterable[str]) -> str:
        """Hex SHA-256 of the usable answers to some questions, for `made_by`."""
        return sha256_json({key: self._usable[key].text for key in sorted(keys)})

    def _read(self, line: bytes) -> None:
        """Take a line over; one that was cut off is as if it had never been."""
        try:
            record = json.loads(line)
            key, problem = record.pop("key"), record.pop("problem")
            answer = Answer(**record)
        except (ValueError, KeyError, TypeError, AttributeError):
            return
        if not problem:
            self._usable[key] = answer
