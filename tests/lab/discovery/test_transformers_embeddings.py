"""Vectors of a tiny random Llama with a tokenizer of bytes, read from a real folder."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import Result

from vltune_lab.discovery.backend import BackendError, Budget, BudgetError
from vltune_lab.discovery.backends import BackendOptions, open_backend
from vltune_lab.discovery.embedding import embed_question, embed_texts, embedding_asker
from vltune_lab.discovery.model_folder import load_model_folder, weights_sha256
from vltune_lab.discovery.raw_answers import RawAnswers
from vltune_lab.discovery.transformers_embeddings import TransformersEmbedder

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

TEXTS = ["pose: How it stands.", "light: Hell<|end|>.", "光照: 亮"]


def opened(folder: Path, **limits: int) -> tuple[TransformersEmbedder, Budget]:
    budget = Budget(**{"max_requests": 10, "max_tokens": 10_000, **limits})
    return TransformersEmbedder(load_model_folder(str(folder)), budget), budget


def vectors(folder: Path, kept: Path, texts: list[str]) -> np.ndarray:
    asker = embedding_asker(opened(folder)[0], RawAnswers(kept), workers=1)
    return embed_texts(texts, asker, lambda: None)


def test_a_vector_is_the_mean_of_the_last_states(tiny: Path, tmp_path: Path) -> None:
    """Llama's own body gives the last states, after its norm; the tokenizer's tokens are bytes."""
    found = vectors(tiny, tmp_path / "a.jsonl", TEXTS)
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny).model
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    for vector, text in zip(found, TEXTS, strict=True):
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert len(ids) == len(text.encode()), "a control token in a gloss is text"
        with torch.inference_mode():
            states = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        torch.testing.assert_close(torch.tensor(vector).float(), states.mean(0))


def test_vectors_are_repeatable_and_know_no_neighbours(tiny: Path, tmp_path: Path) -> None:
    first = vectors(tiny, tmp_path / "a.jsonl", TEXTS)
    assert np.array_equal(first, vectors(tiny, tmp_path / "b.jsonl", TEXTS))
    assert np.array_equal(first[::-1], vectors(tiny, tmp_path / "c.jsonl", TEXTS[::-1]))


def test_the_budget_counts_tokens_and_refuses_before(tiny: Path) -> None:
    """A token is a byte: 20 + 19 + 11 = 50."""
    tokens = sum(len(text.encode()) for text in TEXTS)
    embedder, budget = opened(tiny, max_tokens=tokens)
    answer = embedder.ask(embed_question(TEXTS))
    assert (answer.tokens, budget.requests, budget.tokens) == (50, 1, 50)
    assert (answer.is_estimate, answer.model) == (False, "LlamaForCausalLM")
    with pytest.raises(BudgetError, match="50 of 50 tokens are spent"):
        embedder.ask(embed_question(TEXTS))


def test_a_text_beyond_the_context_and_a_stop(tiny: Path) -> None:
    embedder, budget = opened(tiny)
    with pytest.raises(BackendError, match=r"has 513 tokens, expected 1 to 512\. Leave"):
        embedder.ask(embed_question(["x" * 513]))
    assert budget.requests == 0
    embedder.ask(embed_question(["x" * 512]))
    embedder.stop()
    with pytest.raises(BackendError, match="stopped before the next text"):
        embedder.ask(embed_question(["x"]))


def test_parameters_name_the_folder_but_not_its_path(tiny: Path) -> None:
    embedder, _ = opened(tiny)
    parameters = embedder.parameters()
    assert parameters["embedding_model"] == "tiny-llama"
    assert parameters["weights_sha256"] == weights_sha256(tiny)
    assert parameters["pooling"] == "mean of the last hidden states"
    assert str(tiny.parent) not in json.dumps(parameters)


def test_another_model_than_the_one_that_is_asked_is_refused(
    conditions: Callable[..., Result], tiny: Path, tmp_path: Path
) -> None:
    classes = tmp_path / "classes.txt"
    classes.write_text("cat\ndog\n")
    arguments = ("build", "--classes", classes, "--out", tmp_path / "mine.json", "--model", tiny)
    result = conditions(*arguments, "--llm", "transformers", "--embedding-model", tmp_path)
    assert isinstance(result.exception, BackendError)
    assert "compares with the model that it asks" in str(result.exception)


@pytest.mark.parametrize("wanted", ["", "same"])
def test_the_model_that_is_asked_also_embeds_if_wanted(tiny: Path, wanted: str) -> None:
    """Another spelling of the same folder counts; model and budget are shared."""
    name = f"{tiny}/../{tiny.name}" if wanted else ""
    budget = Budget(10, 1000)
    options = BackendOptions("transformers", str(tiny), "", 20, 4, 5.0, 0, name)
    opened_backend = open_backend(options, budget)
    assert (opened_backend.embedder is not None) == bool(wanted)
    if opened_backend.embedder is not None:
        opened_backend.embedder.ask(embed_question(["pose"]))
        assert (budget.requests, budget.tokens) == (1, 4)
