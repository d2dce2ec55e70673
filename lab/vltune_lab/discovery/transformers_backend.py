"""A causal language model from a folder on this disk, run by transformers in this process."""

import threading
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from vltune_lab.discovery.backend import Answer, BackendError, Budget, Question
from vltune_lab.discovery.chat_form import encode_question, find_form
from vltune_lab.discovery.model_folder import LocalModel


class GumbelNoise:
    r"""A logits processor that makes the likeliest token a sampled one.

    With z the logits, T the temperature and g independent standard Gumbel noise,

        argmax_i (z_i / T + g_i)  has probability  softmax(z / T)_i.

    So greedy decoding samples, with a generator of our own: the process's one stays untouched, and
    the same seed gives the same answer. The noise is drawn on the CPU for every device.
    """

    def __init__(self, temperature: float, seed: int) -> None:
        self._temperature = temperature
        self._generator = torch.Generator().manual_seed(seed % 2**63)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return noisy scores for `scores`, (B, vocabulary)."""
        noise = -torch.empty(scores.shape).exponential_(generator=self._generator).log()
        return scores.float() / self._temperature + noise.to(scores.device)


class StopWhen:
    """A stopping criterion that ends a generation at its next token once `event` is set."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, input_ids: Tensor, scores: object, **_others: object) -> Tensor:
        """Return for each of B texts whether it ends, (B,)."""
        return torch.full((len(input_ids),), self._event.is_set(), device=input_ids.device)


class TransformersBackend:
    """Asks a local model, one question at a time.

    Only the question's temperature and seed decide how an answer is sampled; of the folder's own
    generation settings the end token alone counts.

    Args:
        local: Model and tokenizer.
        max_answer_tokens: Longest answer, 1 or more.
        budget: Each question is one request.
    """

    def __init__(self, local: LocalModel, max_answer_tokens: int, budget: Budget) -> None:
        if max_answer_tokens < 1:
            raise BackendError(f"--max-answer-tokens is {max_answer_tokens}; expected 1 or more.")
        self._local = local
        self._max_answer_tokens = max_answer_tokens
        self._budget = budget
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._ends = _end_tokens(local)
        self._form = find_form(local.tokenizer)
        from transformers import GenerationConfig

        # The folder's own may hold penalties and nucleus sizes that `generate` would mix in.
        local.model.generation_config = GenerationConfig(
            eos_token_id=self._ends or None, pad_token_id=self._ends[0] if self._ends else 0
        )

    def parameters(self) -> dict[str, Any]:
        """Return model and settings; of the folder only its name, as the path may be private."""
        return {
            "backend": "transformers",
            "model": self._local.name,
            "weights_sha256": self._local.weights_sha256,
            "max_answer_tokens": self._max_answer_tokens,
            "arithmetic": self._local.arithmetic,
        }

    def stop(self) -> None:
        """End the generation under way at its next token, and answer nothing more."""
        self._stopped.set()

    def ask(self, question: Question) -> Answer:
        """Generate an answer; other threads wait their turn.

        Raises:
            BudgetError: The budget does not allow another question.
            BackendError: Stopped, the question and its answer do not fit, or the model failed.
        """
        with self._lock:
            if self._stopped.is_set():
                raise BackendError(f"{self._local.name}: stopped before the question.")
            ids = encode_question(self._local.tokenizer, self._form, question)
            limit = self._room(len(ids))
            reserved = len(ids) + limit
            self._budget.reserve(reserved)
            used = len(ids)
            try:
                written = self._generate(ids, limit, question)
                used += len(written)
            finally:
                self._budget.settle(reserved, used)
        has_end = bool(written) and written[-1] in self._ends
        if not has_end and len(written) < limit:
            raise BackendError(f"{self._local.name}: stopped after {len(written)} tokens.")
        if not has_end and limit < self._max_answer_tokens:
            raise BackendError(
                f"{self._local.name}: the question has {len(ids)} tokens and the model's context "
                f"{self._local.context}, which cut the answer after {limit}. Choose a --model with "
                "a longer context."
            )
        text = self._local.tokenizer.decode(written, skip_special_tokens=True)
        return Answer(
            text=text.encode("utf-8", "replace").decode(),
            model=type(self._local.model).__name__,
            tokens=used,
            is_cut=not has_end,
            asked_as=self._form,
        )

    def _room(self, asked: int) -> int:
        """Return how many tokens an answer to a question of `asked` tokens may have.

        Raises:
            BackendError: None, or the model cannot read the question.
        """
        context = self._local.context
        if context is None:
            return self._max_answer_tokens
        if asked >= context:
            raise BackendError(
                f"{self._local.name}: the question has {asked} tokens, the model's context "
                f"{context}. Choose a --model with a longer context, or shorten the class names."
            )
        return min(self._max_answer_tokens, context - asked)

    @torch.inference_mode()
    def _generate(self, ids: list[int], limit: int, question: Question) -> list[int]:
        """Return the tokens written, the end token included.

        Raises:
            BackendError: The model failed, as when memory is out.
        """
        start = torch.tensor([ids], device=self._local.model.device)
        noise = [GumbelNoise(question.temperature, question.seed)] if question.temperature else []
        try:
            result: Tensor = self._local.model.generate(
                input_ids=start,
                attention_mask=torch.ones_like(start),
                do_sample=False,
                max_new_tokens=limit,
                logits_processor=noise,
                stopping_criteria=[StopWhen(self._stopped)],
            )
        except (RuntimeError, MemoryError, IndexError) as error:
            raise BackendError(
                f"{self._local.name}: failed on {len(ids)} tokens and at most {limit} more "
                f"({error!s:.200}). If memory is out, lower --max-answer-tokens or choose a "
                "smaller --model; answers so far are kept."
            ) from error
        written: list[int] = result[0, len(ids) :].tolist()
        return written


def _end_tokens(local: LocalModel) -> list[int]:
    """Return the tokens that end an answer, by the folder's generation settings and tokenizer."""
    found: set[int] = set()
    for ends in (local.model.generation_config.eos_token_id, local.tokenizer.eos_token_id):
        if isinstance(ends, Iterable):
            found.update(ends)
        elif ends is not None:
            found.add(ends)
    return sorted(found)
