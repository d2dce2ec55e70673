import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "vltune"))

from tiny_blip3o import TINY, make_tiny_blip3o, write_tiny_blip3o

from vltune.backbones.blip3o_model import LORA_SCOPE, Blip3oModel
from vltune.config import ConfigError
from vltune.lora import add_lora, read_factors
from vltune.lora_factors import LoraSettings
from vltune.lora_modes import MODES
from vltune.parameters import spec_of
from vltune_lab.bench import model_shapes
from vltune_lab.bench.model_shapes import (
    SHAPES,
    Shape,
    count_parts,
    factor_shapes,
    run_traffic,
    traffic_row,
    wire_bytes,
)
from vltune_lab.bench.results import validate_results
from vltune_lab.bench.tables import table_of

BY_NAME = {shape.name: shape for shape in SHAPES}


@pytest.fixture(autouse=True)
def small_rank(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "tiny" in request.node.name:
        monkeypatch.setattr(model_shapes, "RANK", 3)
        monkeypatch.setattr(model_shapes, "ALPHA", 6.0)


def test_tiny_counts_are_those_of_the_real_adapter() -> None:
    """The same names and shapes as peft's own factors on a model with values."""
    with torch.device("meta"):
        spec = factor_shapes(Blip3oModel(TINY), LORA_SCOPE)
    lora = add_lora(make_tiny_blip3o(), LoraSettings(3, 6.0, LORA_SCOPE), 0, allowed=LORA_SCOPE)
    real = spec_of(read_factors(lora))
    assert spec == real
    values = MODES["fedavg"].upload_bytes(real)
    assert values < wire_bytes(spec) < 1.5 * values + 20_000


def test_tiny_full_fine_tuning_leaves_frozen_parts_out() -> None:
    """Baseline is 4 bytes a parameter outside the tower and the decoder."""
    model = make_tiny_blip3o()
    parts = count_parts(model)
    assert parts == {k: v for k, v in model.count_parameters().items() if v}
    shape = Shape(
        "tiny", lambda: Blip3oModel(TINY), LORA_SCOPE, ("vision_tower.", "feature_decoder.")
    )
    row = traffic_row(shape)
    trained = sum(parts.values()) - parts["vision_tower"] - parts["feature_decoder"]
    assert row["baseline"] == 4 * trained
    assert row["ratio"] == pytest.approx(row["baseline"] / row["ours"])
    content = {"benchmark": "traffic", "command": "x", "commit": "y", "versions": {}}
    content |= {"hardware": "z", "rows": [row]}
    validate_results(content)
    assert table_of(content).startswith("| model | parameters | full fine-tuning, MB |")


@pytest.mark.slow
def test_tiny_model_in_a_real_round(tmp_path: Path) -> None:
    """The message down is the computed one; up go metrics and counts beside the factors."""
    weights = write_tiny_blip3o(tmp_path / "model")
    shape = Shape(
        "blip3o-tiny", lambda: Blip3oModel(TINY), LORA_SCOPE, ("vision_tower.", "feature_decoder.")
    )
    (row,) = run_traffic((shape,), {"blip3o-tiny": weights})
    assert row["wire_bytes_down"] == pytest.approx(row["ours"], abs=64)
    assert row["ours"] < row["wire_bytes_up"] < row["ours"] + 4_000
    content = {"benchmark": "traffic", "command": "x", "commit": "y", "versions": {}}
    content |= {"hardware": "z", "rows": [row]}
    assert "sent in a real round, MB" in table_of(content)
    with pytest.raises(ConfigError, match="--exchange: blip3o is no model of this table"):
        run_traffic((shape,), {"blip3o": weights})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters", "lora"),
    [("Janus-Pro-1B", 2_076_636_811, 6_651_904), ("Janus-Pro-7B", 7_407_773_323, 16_187_392)],
)
def test_janus_counts_are_those_measured_before(name: str, parameters: int, lora: int) -> None:
    shape = BY_NAME[name]
    with torch.device("meta"):
        model = shape.build()
    assert sum(count_parts(model).values()) == parameters
    assert sum(a * b for a, b in factor_shapes(model, shape.scope).values()) == lora


@pytest.mark.slow
@pytest.mark.parametrize(("name", "language"), [("BLIP3o-4B", 3.1e9), ("BLIP3o-8B", 7.6e9)])
def test_published_blip3o_has_the_published_sizes(name: str, language: float) -> None:
    """Qwen2.5-3B 3.09 B, -7B 7.62 B; the paper's diffusion transformer 1.4 B; EVA-CLIP-E 4.35 B."""
    with torch.device("meta"):
        parts = count_parts(BY_NAME[name].build())
    assert parts["language_model"] == pytest.approx(language, rel=0.02)
    assert parts["flow_transformer"] == pytest.approx(1.4e9, rel=0.1)
    assert parts["vision_tower"] == pytest.approx(4.35e9, rel=0.03)
