"""An embedding model behind any endpoint that speaks OpenAI's embeddings."""

import json
from typing import Any

from vltune_lab.discovery.backend import Answer, Budget, Question
from vltune_lab.discovery.openai_calls import (
    Body,
    Call,
    Caller,
    OpenAIOptions,
    counted_tokens,
    estimate_tokens,
    model_name,
)
from vltune_lab.discovery.openai_http import Endpoint, NoReplyError, Reply

ROUTE = "/embeddings"


class OpenAIEmbedder:
    """Asks for the vectors of texts; see `embedding.embed_question`."""

    def __init__(self, endpoint: Endpoint, options: OpenAIOptions, budget: Budget) -> None:
        self._model = options.model
        self._caller = Caller(endpoint, options, budget)

    def parameters(self) -> dict[str, Any]:
        """Return the model; the address stays out, as it may be an internal one."""
        return {"backend": "openai", "embedding_model": self._model}

    def stop(self) -> None:
        """Send nothing more; questions that wait for a repeat end with a BackendError."""
        self._caller.stop()

    def ask(self, question: Question) -> Answer:
        """Ask until there is an answer, whose text is the reply's `data`, unchecked.

        Raises:
            BudgetError: The budget does not allow another request.
            BackendError: Refused for good, or no answer after all repeats.
        """
        texts = json.loads(question.data)
        call = Call(
            route=ROUTE,
            body=lambda: {"model": self._model, "input": texts},
            read=_answer,
            adapt=_nothing_to_change,
            max_answer_tokens=0,
            not_found=f"Check --embedding-model, and that the endpoint serves {ROUTE}.",
            without="Leave --embedding-model out to compare names by their letters.",
        )
        return self._caller.call(call)


def _nothing_to_change(_reply: Reply, _body: Body, _is_first: bool) -> bool:
    return False


def _answer(text: str, body: Body) -> Answer:
    """Read a list of embeddings.

    Raises:
        NoReplyError: It is none.
    """
    try:
        content = json.loads(text)
        data = content["data"]
        if not isinstance(data, list):
            raise TypeError(f"data is {type(data).__name__}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise NoReplyError(
            f"the answer is no list of embeddings ({type(error).__name__}: {error!s:.80})"
        ) from error
    tokens = counted_tokens(content, "prompt_tokens")
    is_estimate = tokens < 1
    return Answer(
        text=json.dumps(data),
        model=model_name(content.get("model")),
        tokens=estimate_tokens(body) if is_estimate else tokens,
        is_estimate=is_estimate,
    )
