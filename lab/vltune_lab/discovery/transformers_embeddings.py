"""Vectors of texts from the causal language model that answers the questions: a weak embedding.

Such a model is trained to say the next token, not to place texts of one meaning together, and its
vectors all point much the same way. It costs no second model.
"""

import json
import threading
from typing import Any

import torch

from vltune_lab.discovery.backend import Answer, BackendError, Budget, Question
from vltune_lab.discovery.model_folder import LocalModel

POOLING = "mean of the last hidden states"


class TransformersEmbedder:
    r"""Embeds with a local model, one text at a time.

    With h_1..h_L the last hidden states over the L tokens of a text, nothing added to it:

        x = (1 / L) sum_i h_i.

    Args:
        local: Model and tokenizer.
        budget: Each question is one request.
    """

    def __init__(self, local: LocalModel, budget: Budget) -> None:
        self._local = local
        self._budget = budget
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def parameters(self) -> dict[str, Any]:
        """Return model and settings; of the folder only its name, as the path may be private."""
        return {
            "backend": "transformers",
            "embedding_model": self._local.name,
            "weights_sha256": self._local.weights_sha256,
            "arithmetic": self._local.arithmetic,
            "pooling": POOLING,
        }

    def stop(self) -> None:
        """End before the next text."""
        self._stopped.set()

    def ask(self, question: Question) -> Answer:
        """Return the vectors of an `embedding.embed_question`; other threads wait their turn.

        Raises:
            BudgetError: The budget does not allow another question.
            BackendError: Stopped, a text is longer than the context, or the model failed.
        """
        tokens = [self._encode(text) for text in json.loads(question.data)]
        used = sum(map(len, tokens))
        with self._lock:
            self._budget.reserve(used)
            data = [
                {"index": index, "embedding": self._embed(ids)} for index, ids in enumerate(tokens)
            ]
        return Answer(json.dumps(data), type(self._local.model).__name__, used)

    def _encode(self, text: str) -> list[int]:
        # A gloss that spells a control token is text like any other.
        ids = self._local.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        tokens: list[int] = list(ids["input_ids"])
        context = self._local.context
        if not tokens or (context is not None and len(tokens) > context):
            raise BackendError(
                f"{self._local.name}: a name with its gloss has {len(tokens)} tokens, expected 1 "
                f"to {context}. Leave --embedding-model out to compare names by their letters."
            )
        return tokens

    @torch.inference_mode()
    def _embed(self, ids: list[int]) -> list[float]:
        """Return x, D numbers."""
        if self._stopped.is_set():
            raise BackendError(f"{self._local.name}: stopped before the next text.")
        # Alone, without padding: a text's vector does not depend on its neighbours.
        inputs = torch.tensor([ids], device=self._local.model.device)
        try:
            states = self._local.model(
                input_ids=inputs,
                attention_mask=torch.ones_like(inputs),
                output_hidden_states=True,
                use_cache=False,
            ).hidden_states[-1]
        except (RuntimeError, MemoryError, IndexError) as error:
            raise BackendError(
                f"{self._local.name}: failed on {len(ids)} tokens ({error!s:.200}). If memory is "
                "out, choose a smaller --model; answers so far are kept."
            ) from error
        vector: list[float] = states[0].float().mean(dim=0).tolist()
        return vector
