import torch

from vltune_lab.pretrain.florence2 import build_backbone
from vltune_lab.pretrain.grounding import GroundingHead
from vltune_lab.pretrain.word_alignment import LENGTH, align_words
from vltune_lab.scenes.library import PACKAGED_ASSETS
from vltune_lab.scenes.questions import COLOURS
from vltune_lab.scenes.world import load_priors

MODEL = PACKAGED_ASSETS / "florence2-compact"


def test_words_start_where_the_head_reads_them() -> None:
    """Classes read axes 0, 1, 2; each row loses the mean row, so axis 3, in all rows, drops out.

    A row e_i + e_3 becomes e_i - (e_0 + e_1 + e_2) / 3: (2, -1, -1) / 3 for "cat". "hot dog" shares
    its second word with "dog", which takes the mean of both directions.
    """
    width = 64
    classnames = ("cat", "dog", "hot dog")
    tokenizer = build_backbone(MODEL, seed=0).tokenizer
    head = GroundingHead(7, width, 3, len(load_priors().scenes))
    with torch.no_grad():
        head.covers.weight.zero_()
        head.covers.weight[:, 3] = 5.0
        for row in range(3):
            head.covers.weight[row, row] = 2.0
        head.colours.weight.zero_()
        for row in range(len(COLOURS)):
            head.colours.weight[row, 10 + row] = 1.0
    table = torch.randn(len(tokenizer), width)
    before = table.clone()
    written = align_words(table, tokenizer, head, classnames)

    def word(text: str) -> torch.Tensor:
        (token,) = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert token in written
        return table[token]

    cat = torch.zeros(width)
    cat[:3] = torch.tensor([2.0, -1.0, -1.0])
    torch.testing.assert_close(word("cat"), LENGTH * cat / cat.norm())
    torch.testing.assert_close(word("cats"), word("cat"))
    torch.testing.assert_close(word("hot")[:3], word("cat")[[1, 2, 0]])
    torch.testing.assert_close(word("dog"), -word("cat"), msg="the mean of dog and hot dog")
    assert word("red").argmax() == 10 + COLOURS.index("red")
    untouched = [token for token in range(len(table)) if token not in written]
    assert torch.equal(table[untouched], before[untouched])
    torch.testing.assert_close(table[written].norm(dim=1), torch.full((len(written),), LENGTH))


def test_nothing_is_undefined_where_a_reading_is_constant() -> None:
    tokenizer = build_backbone(MODEL, seed=0).tokenizer
    head = GroundingHead(7, 8, 1, len(load_priors().scenes))
    table = torch.randn(len(tokenizer), 8)
    align_words(table, tokenizer, head, ("dog",))
    assert table.isfinite().all()
