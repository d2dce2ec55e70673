"""DP-SGD on a linear model: by hand, against Opacus, and with training that must fail."""

import math
from pathlib import Path

import pytest
import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn

from vltune.privacy import PrivacyConfig, PrivacyError
from vltune.privacy_ledger import Charge, PrivacyLedger, epsilon_of
from vltune.private_training import add_noise, clipped_sum, private_train, sampling_of
from vltune.seed import torch_generator
from vltune.training import (
    DivergedError,
    RoundPlan,
    TrainingConfig,
    TrainingStopped,
    local_train,
)

N, D = 13, 5
SGD = TrainingConfig("sgd", 0.1, momentum=0.0, batch_size=N, local_epochs=3, max_gradient_norm=1e9)
WIDE = 1e6


class Linear(nn.Module):
    """Loss (w x + b - y)^2, mean over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D, 1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))

    def example_losses(self, batch: tuple[Tensor, Tensor]) -> list[Tensor]:
        return list((self.layer(batch[0]).squeeze(1) - batch[1]).square().unbind())

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return torch.stack(self.example_losses(batch)).mean()

    def shared_keys(self) -> frozenset[str]:
        return frozenset(self.state_dict())

    def trainable_parameters(self) -> list[nn.Parameter]:
        return list(self.parameters())


X = torch.randn(N, D, generator=torch_generator(3))
Y = X @ torch.arange(1.0, D + 1)


def run(
    folder: Path,
    config: TrainingConfig = SGD,
    noise: float = 1e-9,
    clip: float = WIDE,
    **keys: float,
) -> tuple[Linear, float]:
    """Train; returns the model and the distance of its predictions."""
    model = Linear()
    privacy = PrivacyConfig("record", noise, clip, keys.pop("delta", 1e-3), **keys)
    private_train(
        model,
        num_examples=N,
        batch_at=lambda rows: (X[rows], Y[rows]),
        plan=RoundPlan(config, 0),
        privacy=privacy,
        ledger=PrivacyLedger(folder / "ledger.json", privacy),
        should_stop=lambda: False,
    )
    return model, float(model.loss((X, Y)).detach())


def test_without_noise_and_bound_it_is_plain_training(tmp_path: Path) -> None:
    private, _ = run(tmp_path, noise=1e-12, clip=WIDE / 1e3)
    plain = Linear()
    local_train(
        plain,
        num_examples=N,
        batch_at=lambda rows: (X[rows], Y[rows]),
        plan=RoundPlan(SGD, 0),
        should_stop=lambda: False,
    )
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(private.state_dict()[name], value, rtol=1e-5, atol=1e-5)


def test_the_clipped_sum_is_that_of_opacus() -> None:
    clip = 2.0
    model = Linear()
    ours = clipped_sum(model.example_losses((X, Y)), model.trainable_parameters(), clip)
    wrapped = GradSampleModule(Linear().layer, loss_reduction="sum")
    (wrapped(X.clone().requires_grad_()).squeeze(1) - Y).square().sum().backward()
    samples = [p.grad_sample for p in wrapped.parameters()]
    norms = torch.stack([s.flatten(1).norm(dim=1) for s in samples]).norm(dim=0)
    scale = (clip / norms).clamp(max=1.0)
    assert 0 < int((scale < 1).sum()) <= N
    for mine, sample in zip(ours, samples, strict=True):
        torch.testing.assert_close(mine, torch.einsum("n,n...->...", scale, sample))


def test_no_record_moves_the_sum_further_than_the_bound() -> None:
    """A wild image more or less changes the sum by the bound and no more."""
    model, clip = Linear(), 0.25
    wild = (torch.cat([X, torch.full((1, D), 1e4)]), torch.cat([Y, torch.tensor([-1e4])]))
    parameters = model.trainable_parameters()
    without = clipped_sum(model.example_losses((X, Y)), parameters, clip)
    with_it = clipped_sum(model.example_losses(wild), parameters, clip)
    moved = math.sqrt(
        sum(float((a - b).square().sum()) for a, b in zip(with_it, without, strict=True))
    )
    assert moved == pytest.approx(clip, rel=1e-3)
    one = clipped_sum(model.example_losses((X[:1], Y[:1]))[:1], parameters, WIDE)
    plain = torch.autograd.grad(model.loss((X[:1], Y[:1])), parameters)
    assert all(torch.equal(a, b) for a, b in zip(one, plain, strict=True))


def test_training_learns_with_little_noise_and_huge_noise_destroys_it(tmp_path: Path) -> None:
    """The canaries: they fail where noise is forgotten, or where gradients are lost."""
    config = TrainingConfig("sgd", 0.05, momentum=0.0, batch_size=N, local_epochs=60)
    start = float(Linear().loss((X, Y)).detach())
    _, quiet = run(tmp_path / "a", config, noise=0.05, clip=20.0)
    _, loud = run(tmp_path / "b", config, noise=1000.0, clip=20.0)
    assert quiet < 0.2 * start
    assert loud > 10 * start


def test_noise_alone_moves_a_model_that_drew_no_image() -> None:
    """A step without images must look like any other: its gradient is noise of the same spread."""
    gradients = [torch.zeros(101, 103)]
    add_noise(gradients, 3.0, torch_generator(1))
    assert float(gradients[0].std()) == pytest.approx(3.0, rel=0.02)
    assert clipped_sum([], Linear().trainable_parameters(), 1.0)[0].abs().sum() == 0


def test_epsilon_is_that_of_the_steps_that_were_made(tmp_path: Path) -> None:
    """13 images in batches of 4: q = 4 / 13, 2 epochs of ceil(13 / 4) = 4 steps."""
    config = TrainingConfig("sgd", 0.01, batch_size=4, local_epochs=2)
    assert sampling_of(config, N) == (4 / 13, 8)
    privacy = PrivacyConfig("record", 1.5, 1.0, 1e-3)
    run(tmp_path, config, noise=1.5, clip=1.0)
    run(tmp_path, config, noise=1.5, clip=1.0)  # the second round of the same run
    spent = PrivacyLedger(tmp_path / "ledger.json", privacy).epsilon
    assert spent == pytest.approx(epsilon_of([Charge(1.5, 4 / 13, 16)], 1e-3), rel=1e-9)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match=r"with 13 training images it must be below 0.077"):
        run(tmp_path, noise=1.0, delta=0.1)
    with pytest.raises(PrivacyError, match="budget is spent"):
        run(tmp_path, noise=1.0, max_epsilon=0.1)
    assert not (tmp_path / "ledger.json").exists()
    weight = nn.Parameter(torch.ones(1))
    with pytest.raises(DivergedError, match="a gradient is not finite"):
        clipped_sum([weight.sum() * math.nan], [weight], 1.0)


def test_it_can_be_stopped(tmp_path: Path) -> None:
    privacy = PrivacyConfig("record", 1.0, 1.0, 1e-3)
    with pytest.raises(TrainingStopped):
        private_train(
            Linear(),
            num_examples=N,
            batch_at=lambda rows: (X[rows], Y[rows]),
            plan=RoundPlan(SGD, 0),
            privacy=privacy,
            ledger=PrivacyLedger(tmp_path / "ledger.json", privacy),
            should_stop=lambda: True,
        )
