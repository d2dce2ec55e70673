"""What discovery needs of a language model: one question, one answer, within a budget."""

import threading
from dataclasses import dataclass, field
from typing import Any, Protocol


class BackendError(ValueError):
    """The language model gave no usable answer; the message says why and what to do."""


class BudgetError(BackendError):
    """The budget of requests or tokens is spent."""


@dataclass(frozen=True)
class Question:
    """One question to a language model.

    Attributes:
        system: The instructions.
        data: One JSON document. Class names and sentences stand only here, never in `system`.
        schema: JSON schema of the wanted answer.
        title: Name of the schema, letters and underscores.
        temperature: Sampling temperature, 0 and up.
        seed: Of the model's sampling, where it has one.
    """

    system: str
    data: str
    schema: dict[str, Any]
    title: str
    temperature: float
    seed: int


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        text: As the model wrote it.
        model: The model's own name of itself.
        tokens: Of question and answer.
        is_estimate: The endpoint did not count; `tokens` is our estimate.
        is_cut: The answer stopped at its limit of tokens.
        asked_as: Form of the question that got it, such as "json_object without seed".
    """

    text: str
    model: str
    tokens: int
    is_estimate: bool = False
    is_cut: bool = False
    asked_as: str = ""


class Backend(Protocol):
    """A language model."""

    def ask(self, question: Question) -> Answer:
        """Answer; several threads may call at once.

        Raises:
            BudgetError: The budget does not allow another request.
            BackendError: There is no answer, for good or after all repeats.
        """
        ...

    def parameters(self) -> dict[str, Any]:
        """Return what a reader needs to repeat it (no key, no address), for `made_by`."""
        ...

    def stop(self) -> None:
        """Send nothing more; questions that wait for a repeat end with a BackendError."""
        ...


@dataclass
class Budget:
    """Requests and tokens that may be spent, counted over all threads.

    A request first reserves the most it may cost and gives back what it did not use, so requests
    under way cannot overrun the budget together.

    Attributes:
        max_requests: HTTP requests, repeats included.
        max_tokens: Tokens of questions and answers.
        requests: Spent so far.
        tokens: Spent or reserved so far.
    """

    max_requests: int
    max_tokens: int
    requests: int = 0
    tokens: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        if self.max_requests < 1 or self.max_tokens < 1:
            raise BudgetError(
                f"budget of {self.max_requests} requests and {self.max_tokens} tokens; give at "
                "least 1 of each."
            )

    def reserve(self, tokens: int) -> None:
        """Take one request and `tokens`.

        Raises:
            BudgetError: One of them would go over the budget; nothing is taken.
        """
        with self._lock:
            if self.requests + 1 > self.max_requests:
                raise BudgetError(
                    f"all {self.max_requests} requests of the budget are spent. Run again to go on "
                    "from the answers that are kept, or raise --max-requests."
                )
            if self.tokens + tokens > self.max_tokens:
                raise BudgetError(
                    f"{self.tokens} of {self.max_tokens} tokens are spent and the next request may "
                    f"take {tokens}. Run again to go on from the answers that are kept, or raise "
                    "--max-tokens."
                )
            self.requests += 1
            self.tokens += tokens

    def settle(self, reserved: int, used: int) -> None:
        """Replace a reservation by what was used."""
        with self._lock:
            self.tokens += used - reserved
