import pytest
import torch
from torch import Tensor, nn

from vltune.config import ConfigError
from vltune.training import DivergedError, RoundPlan, TrainingConfig, TrainingStopped, local_train


class Line(nn.Module):
    """Loss (w x - y)^2 of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (self.w * batch[0] - batch[1]).pow(2).mean()

    def shared_keys(self) -> frozenset[str]:
        return frozenset({"w"})

    def trainable_parameters(self) -> list[nn.Parameter]:
        return [self.w]


X = torch.tensor([1.0, 2.0])
Y = torch.tensor([3.0, 6.0])
SGD = TrainingConfig(
    optimizer="sgd", learning_rate=0.1, momentum=0.0, batch_size=2, max_gradient_norm=1e9
)


def train(
    model: Line,
    config: TrainingConfig = SGD,
    seed: int = 0,
    y: Tensor = Y,
    stop: bool = False,
    span: tuple[float, float] = (0.0, 1.0),
) -> tuple[float, int]:
    result = local_train(
        model,
        num_examples=2,
        batch_at=lambda rows: (X[rows], y[rows]),
        plan=RoundPlan(config, seed, span),
        should_stop=lambda: stop,
    )
    return result.loss, result.steps


def test_one_step_by_hand() -> None:
    """W = 0: loss (9 + 36) / 2 = 22.5.

    Gradient mean(2 x (w x - y)) = (-6 - 24) / 2 = -15, w = 0 + 0.1 * 15.
    """
    model = Line()
    assert train(model) == (22.5, 1)
    assert model.w.item() == pytest.approx(1.5)


def test_learning_rate_falls_over_the_rounds() -> None:
    """Half a cosine: 1, (1 + cos 45 deg) / 2, 1/2, ..., 0.

    Round 2 of 4 starts half way. Its two epochs have a step each: the second stands at 5 / 8.
    """
    config = TrainingConfig(
        "sgd",
        0.1,
        schedule="cosine",
        momentum=0.0,
        batch_size=2,
        local_epochs=2,
        max_gradient_norm=1e9,
    )
    assert config.rate_at(0) == pytest.approx(0.1)
    assert config.rate_at(0.25) == pytest.approx(0.1 * (1 + 0.5**0.5) / 2)
    assert config.rate_at(0.5) == pytest.approx(0.05)
    assert config.rate_at(1) == config.rate_at(1.5) == 0
    model = Line()
    train(model, config, span=(0.5, 0.75))
    after_first = 0.05 * 15
    # y = 3 x: the gradient is mean(2 x^2) (w - 3) = 5 (w - 3).
    expected = after_first - config.rate_at(2.5 / 4) * 5 * (after_first - 3)
    assert model.w.item() == pytest.approx(expected)


def test_gradient_is_clipped_to_the_norm() -> None:
    """Gradient -15 clipped to norm 3: w = 0.1 * 3."""
    model = Line()
    train(model, TrainingConfig("sgd", 0.1, momentum=0.0, batch_size=2, max_gradient_norm=3.0))
    assert model.w.item() == pytest.approx(0.3)


def test_same_seed_gives_the_same_bits_and_epochs_count() -> None:
    config = TrainingConfig("adamw", 0.05, batch_size=1, local_epochs=3)
    first, second, other = Line(), Line(), Line()
    assert train(first, config) == train(second, config)
    assert torch.equal(first.w, second.w)
    assert train(other, config, seed=1)[1] == 6


def test_loss_falls() -> None:
    config = TrainingConfig("adamw", 0.1, batch_size=2, local_epochs=60)
    model = Line()
    train(model, config)
    assert train(model, SGD)[0] < 0.1


def test_stop_is_honoured_before_the_next_step() -> None:
    model = Line()
    with pytest.raises(TrainingStopped):
        train(model, stop=True)
    assert model.w.item() == 0.0


def test_divergence_is_an_error_that_names_the_cure() -> None:
    with pytest.raises(DivergedError, match="lower learning_rate"):
        train(Line(), y=torch.full((2,), float("inf")))


@pytest.mark.parametrize("values", [{"learning_rate": 0.0}, {"batch_size": 0}, {"local_epochs": 0}])
def test_wrong_values_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        TrainingConfig(**values)  # type: ignore[arg-type] # wrong on purpose
