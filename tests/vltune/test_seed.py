import torch

from vltune.seed import derive_seed, torch_generator


def test_seed_depends_on_every_part_and_on_nothing_else() -> None:
    base = (7, "site-1", 3, "train")
    others = [
        (8, "site-1", 3, "train"),
        (7, "site-2", 3, "train"),
        (7, "site-1", 4, "train"),
        (7, "site-1", 3, "x"),
    ]
    assert derive_seed(*base) == derive_seed(*base)
    assert len({derive_seed(*base), *(derive_seed(*other) for other in others)}) == 5
    # The separator keeps (1, "1") and (11, "") apart.
    assert derive_seed(1, "1", 0) != derive_seed(11, "", 0)
    assert 0 <= derive_seed(*base) < 2**63


def test_generators_of_one_seed_agree() -> None:
    seed = derive_seed(7, "site-1", 0)
    assert torch.equal(
        torch.rand(5, generator=torch_generator(seed)),
        torch.rand(5, generator=torch_generator(seed)),
    )
