import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BartConfig, BartForConditionalGeneration

from vltune.files import OutputError
from vltune.lora import add_lora, read_factors, set_residual, write_factors
from vltune.lora_aggregation import aggregate
from vltune.lora_export import WEIGHTS_FILE, export_peft
from vltune.lora_factors import LoraError, LoraSettings, factor_name
from vltune.lora_modes import LoraAggregation
from vltune.parameters import ParameterError

SETTINGS = LoraSettings(3, 6.0, r"text\.(0|2)", dropout=0.1)


class Toy(nn.Module):
    """Two layers of distinct sizes, large enough for a factored residual."""

    def __init__(self) -> None:
        super().__init__()
        self.text = nn.Sequential(nn.Linear(23, 29), nn.Tanh(), nn.Linear(29, 31))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.text(x)
        return output


def toy() -> Toy:
    torch.manual_seed(0)
    return Toy().eval()


def lora_toy() -> PeftModel:
    return add_lora(toy(), SETTINGS, 1, allowed="text").eval()


def moved(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    start = read_factors(lora_toy())
    return {n: 0.3 * torch.randn(v.shape, generator=generator) for n, v in start.items()}


X = torch.randn(13, 23, generator=torch.Generator().manual_seed(3))


def test_peft_loads_it_with_identical_outputs(tmp_path: Path) -> None:
    model = lora_toy()
    write_factors(model, moved(1))
    folder = export_peft(read_factors(model), SETTINGS, "some/base", tmp_path / "site" / "adapter")
    loaded = PeftModel.from_pretrained(toy(), str(folder)).eval()
    assert torch.equal(loaded(X), model(X))
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "some/base"
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (3, 6.0, 0.1)
    assert config["peft_type"] == "LORA"
    saved = load_file(folder / WEIGHTS_FILE)
    assert saved.keys() == moved(1).keys()
    assert os.listdir(tmp_path / "site") == ["adapter"]
    assert stat.S_IMODE(folder.stat().st_mode) & 0o500 == 0o500


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_peft_loads_it_on_an_encoder_decoder(tmp_path: Path) -> None:
    def base() -> BartForConditionalGeneration:
        torch.manual_seed(0)
        sides = ("encoder", "decoder")
        sizes = {f"{s}_{k}": v for s in sides for k, v in (("layers", 1), ("ffn_dim", 64))}
        heads = {f"{s}_attention_heads": 2 for s in sides}
        config = BartConfig(d_model=32, vocab_size=60, max_position_embeddings=64, **sizes, **heads)
        return BartForConditionalGeneration(config).eval()

    settings = LoraSettings(2, 4.0, r"model\.(en|de)coder\..*\.(q_proj|v_proj|fc1)")
    model = add_lora(base(), settings, 0, allowed=r"model\.").eval()
    generator = torch.Generator().manual_seed(5)
    new = {n: torch.randn(v.shape, generator=generator) for n, v in read_factors(model).items()}
    write_factors(model, new)
    folder = export_peft(new, settings, "bart", tmp_path / "a")
    loaded = PeftModel.from_pretrained(base(), str(folder)).eval()
    tokens = torch.tensor([[0, 7, 8, 2]])
    logits = model(input_ids=tokens, labels=tokens).logits
    assert torch.equal(loaded(input_ids=tokens, labels=tokens).logits, logits)
    assert not torch.allclose(base()(input_ids=tokens, labels=tokens).logits, logits)


@pytest.mark.parametrize("num_sites", [2, 12])
def test_a_residual_is_exported_too(tmp_path: Path, num_sites: int) -> None:
    """Factored with 2 sites, dense with 12; the adapter alone gives what the site's model gives."""
    updates = {f"site-{s}": moved(s) for s in range(num_sites)}
    examples = {site: number + 1 for number, site in enumerate(updates)}
    start = read_factors(lora_toy())
    result = aggregate(LoraAggregation("fedex"), start, updates, examples)
    assert all(name.endswith("residual.weight") == (num_sites == 12) for name in result.residual)
    model = lora_toy()
    write_factors(model, result.tensors)
    set_residual(model, result.residual, SETTINGS)
    folder = export_peft(result.tensors, SETTINGS, "base", tmp_path / "a", result.residual)
    loaded = PeftModel.from_pretrained(toy(), str(folder)).eval()
    assert torch.allclose(loaded(X), model(X), rtol=1e-5, atol=1e-5)
    set_residual(model, {}, SETTINGS)
    assert not torch.allclose(loaded(X), model(X), rtol=1e-2, atol=1e-2)


def test_an_earlier_export_is_replaced(tmp_path: Path) -> None:
    export_peft(moved(1), SETTINGS, "base", tmp_path / "a")
    export_peft(moved(2), SETTINGS, "base", tmp_path / "a")
    saved = load_file(tmp_path / "a" / WEIGHTS_FILE)
    assert all(torch.equal(saved[name], value) for name, value in moved(2).items())
    assert os.listdir(tmp_path) == ["a"]


def test_another_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("mine")
    (tmp_path / "b").write_text("a file")
    for name in ("a", "b", "b/c"):
        with pytest.raises(OutputError, match=r"Choose another|another place"):
            export_peft(moved(1), SETTINGS, "base", tmp_path / name)
    assert (tmp_path / "a" / "notes.txt").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({factor_name("text.2", "B"): None}, "text.2 has no factor B"),
        ({"base_model.model.text.2.weight": torch.ones(1)}, "not the name of a LoRA factor"),
        ({factor_name("text.2", "B"): torch.full((31, 3), torch.nan)}, "NaN"),
    ],
)
def test_bad_factors_write_nothing(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    tensors = {n: v for n, v in {**moved(1), **change}.items() if v is not None}
    with pytest.raises(ParameterError, match=message):
        export_peft(tensors, SETTINGS, "base", tmp_path / "a")
    with pytest.raises(LoraError, match="nothing to export"):
        export_peft({}, SETTINGS, "base", tmp_path / "a")
    assert os.listdir(tmp_path) == []


def test_a_residual_that_does_not_fit(tmp_path: Path) -> None:
    name = "base_model.model.{}.residual.weight"
    with pytest.raises(LoraError, match=r"without factors: \['text.1'\]"):
        export_peft(moved(1), SETTINGS, "b", tmp_path / "a", {name.format("text.1"): torch.eye(2)})
    with pytest.raises(LoraError, match=r"residual of text\.0: expected 29 x 23, got 2 x 2"):
        export_peft(moved(1), SETTINGS, "b", tmp_path / "a", {name.format("text.0"): torch.eye(2)})
