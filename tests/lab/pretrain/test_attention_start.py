import pytest
import torch

from vltune_lab.pretrain.attention_start import aim_attention
from vltune_lab.pretrain.florence2 import build_backbone
from vltune_lab.pretrain.grounding import GroundingHead
from vltune_lab.pretrain.tokenizer import load_lexicon
from vltune_lab.pretrain.word_alignment import align_words
from vltune_lab.scenes.library import PACKAGED_ASSETS
from vltune_lab.scenes.world import load_priors

MODEL = PACKAGED_ASSETS / "florence2-compact"
NAMES = ("dog", *(name for name in load_lexicon().classes if name != "dog"))
CELL = 10


@pytest.fixture(scope="module")
def aimed():
    """A random model and head; image tokens of noise, but cell 10 shows a dog."""
    torch.manual_seed(0)
    backbone = build_backbone(MODEL, seed=0)
    head = GroundingHead(128, 192, len(NAMES), len(load_priors().scenes))
    model = backbone.model.eval()
    align_words(model.get_input_embeddings().weight, backbone.tokenizer, head, NAMES)
    aim_attention(model, backbone.tokenizer, head, side=4, seed=1)
    readings = head.covers.weight - head.covers.weight.mean(dim=0)
    tokens = torch.randn(1, 17, 192)
    tokens[0, 1 + CELL] += 8 * readings[0] / readings[0].norm()
    tokens = torch.nn.functional.layer_norm(tokens, (192,))
    return backbone, head, tokens.detach()


def attention_of(backbone, tokens: torch.Tensor, text: str) -> torch.Tensor:
    """Weights of the first head: from the text's one word to the 16 cells, and to itself."""
    (word,) = backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
    encoder = backbone.model.model.language_model.encoder
    encoder.set_attn_implementation("eager")
    embeddings = torch.cat(
        [tokens, backbone.model.get_input_embeddings()(torch.tensor([[word]]))], 1
    )
    with torch.no_grad():
        weights = encoder(inputs_embeds=embeddings, output_attentions=True).attentions[0]
    return weights[0, 0, -1, 1:]


def test_a_word_looks_at_the_cell_that_shows_it(aimed) -> None:
    backbone, _, tokens = aimed
    weights = attention_of(backbone, tokens, "dog")
    assert weights[:16].argmax() == CELL
    assert weights[CELL] > 5 * (weights[:16].sum() - weights[CELL]) / 15
    assert weights[16] < 0.1, "not at itself"
    absent = attention_of(backbone, tokens, "pizza")
    assert absent[CELL] < 0.3
    assert absent[:16].sum() > 0.7, "nothing is there: at all image tokens"


def test_codes_of_places_differ_and_say_no_class(aimed) -> None:
    backbone, head, _ = aimed
    encoder = backbone.model.model.language_model.encoder
    fresh = build_backbone(MODEL, seed=0).model.model.language_model.encoder
    codes = (encoder.embed_positions.weight - fresh.embed_positions.weight).detach()
    assert (codes.norm(dim=1) > 0).nonzero().flatten().tolist() == list(range(3, 19))
    cells = codes[3:19]
    torch.testing.assert_close(cells.norm(dim=1), torch.full((16,), (16 + 9 + 9) ** 0.5))
    apart = torch.cdist(cells, cells) + 99 * torch.eye(16)
    assert apart.min() == pytest.approx(3 * 2**0.5, abs=1e-4), "one row or one column apart"
    readings = head.covers.weight - head.covers.weight.mean(dim=0)
    assert (cells @ readings.T).abs().max() < 1e-4


def test_words_of_position_lean_towards_their_cells(aimed) -> None:
    """The top left cell is nearest to "top" and "left", the bottom right one farthest from both."""
    backbone, _, _ = aimed
    fresh = build_backbone(MODEL, seed=0).model
    table = backbone.model.get_input_embeddings().weight - fresh.get_input_embeddings().weight
    positions = backbone.model.model.language_model.encoder.embed_positions.weight[3:19]
    codes = positions - fresh.model.language_model.encoder.embed_positions.weight[3:19]
    (top, left) = (
        backbone.tokenizer(word, add_special_tokens=False)["input_ids"][0]
        for word in ("top", "left")
    )
    likeness = (codes @ (table[top] + table[left])).detach()
    assert likeness.argmax() == 0
    assert likeness[[5, 6, 9, 10, 15]].abs().max() < 1e-4
    assert (likeness[[1, 2, 3, 4, 8, 12]] > 1).all()


def test_a_narrow_model_is_refused() -> None:
    backbone = build_backbone(MODEL, seed=0)
    model, tokenizer = backbone.model, backbone.tokenizer
    many = GroundingHead(128, 192, 170, len(load_priors().scenes))
    with pytest.raises(ValueError, match="198 readings leave no room for 9 codes in 192"):
        aim_attention(model, tokenizer, many, side=4, seed=0)
    with pytest.raises(ValueError, match="cannot carry 60 codes"):
        aim_attention(model, tokenizer, many, side=30, seed=0)
