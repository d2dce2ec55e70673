"""Asks many questions at once, keeps every answer, and asks again where one cannot be used."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from vltune_lab.discovery.answers import AnswerError
from vltune_lab.discovery.backend import Answer, Backend, BackendError, Question
from vltune_lab.discovery.raw_answers import RawAnswers, question_key

ATTEMPTS = 3

Read = TypeVar("Read")


class _StoppedError(Exception):
    """Not asked, as another question failed."""


@dataclass
class Asked:
    """What was used, over all threads.

    Attributes:
        keys: Of the answers in use.
        models: Names that the model gave itself.
        forms: `asked_as` of the answers.
        tokens: Of the answers in use, earlier runs included.
        estimated: Answers whose tokens the endpoint did not count.
        resumed: Answers taken over from an earlier run.
        unusable: Answers that were asked for again.
    """

    keys: list[str] = field(default_factory=list)
    models: set[str] = field(default_factory=set)
    forms: set[str] = field(default_factory=set)
    tokens: int = 0
    estimated: int = 0
    resumed: int = 0
    unusable: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def use(self, key: str, answer: Answer, *, is_resumed: bool) -> None:
        """Count an answer that is used."""
        with self.lock:
            self.keys.append(key)
            self.models |= {answer.model} - {""}
            self.forms |= {answer.asked_as} - {""}
            self.tokens += answer.tokens
            self.estimated += answer.is_estimate
            self.resumed += is_resumed

    def refuse(self) -> None:
        """Count an answer that cannot be used."""
        with self.lock:
            self.unusable += 1


@dataclass(frozen=True)
class Asker:
    """A backend with its memory.

    Attributes:
        backend: Answers what the memory does not hold.
        raw: Where answers are kept.
        workers: Questions under way at once.
        attempts: Answers to one question, all but the last of which could not be used.
        cure: What to do if none could, for the message.
        asked: What was used so far.
    """

    backend: Backend
    raw: RawAnswers
    workers: int = 4
    attempts: int = ATTEMPTS
    cure: str = "try another --model"
    asked: Asked = field(default_factory=Asked)

    def ask_all(
        self,
        questions: Sequence[Question],
        readers: Sequence[Callable[[Answer], Read]],
        progress: Callable[[], None],
    ) -> list[Read]:
        """Ask every question; the first that fails ends the others that are not under way.

        Args:
            questions: N questions.
            readers: N functions that read the answer or raise AnswerError.
            progress: Called after each.

        Returns:
            What the readers made of the answers, in the order of the questions.

        Raises:
            BackendError: A question has no usable answer.
        """
        stop = threading.Event()

        def ask(question: Question, reader: Callable[[Answer], Read]) -> Read:
            if stop.is_set():
                raise _StoppedError
            try:
                return self._ask(question, reader)
            except BaseException:
                # Here, not where the results are read: the thread takes its next question first.
                stop.set()
                raise

        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="ask")
        try:
            futures = []
            for question, reader in zip(questions, readers, strict=True):
                futures.append(pool.submit(ask, question, reader))
            for future in as_completed(futures):
                error = future.exception()
                if error is None:
                    progress()
                elif not isinstance(error, _StoppedError):
                    raise error
            return [future.result() for future in futures]
        except BaseException:
            stop.set()
            self.backend.stop()
            raise
        finally:
            # Answers under way are waited for and kept: they are paid for.
            pool.shutdown(wait=True, cancel_futures=True)

    def record(self) -> dict[str, Any]:
        """Return what a reader needs to judge the answers in use, for `made_by`."""
        return {
            "file": self.raw.path.name,
            "sha256": self.raw.digest(self.asked.keys),
            "used": len(self.asked.keys),
            "unusable": self.asked.unusable,
            "tokens": self.asked.tokens,
            "tokens_estimated_in": self.asked.estimated,
        }

    def _ask(self, question: Question, reader: Callable[[Answer], Read]) -> Read:
        problem = ""
        for attempt in range(self.attempts):
            # Another seed each time, or a model that samples greedily repeats its mistake.
            varied = replace(question, seed=question.seed + attempt)
            key = question_key(varied, self.backend.parameters())
            kept = self.raw.find(key)
            answer = kept or self.backend.ask(varied)
            try:
                read = reader(answer)
            except AnswerError as error:
                problem = str(error)
                self.asked.refuse()
                self.raw.keep(key, answer, problem)
                continue
            if kept is None:
                self.raw.keep(key, answer, "")
            self.asked.use(key, answer, is_resumed=kept is not None)
            return read
        which = "an answer cannot be used; it"
        if self.attempts > 1:
            which = f"{self.attempts} answers in a row cannot be used; the last one"
        raise BackendError(f"{which} {problem}. What came is kept in {self.raw.path}; {self.cure}.")
