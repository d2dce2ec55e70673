"""A BLIP3-o in a folder: config.json, model.safetensors, tokenizer.json. Our own format.

config.json holds `Blip3oSettings`; the tensors are those of `Blip3oModel`, fp32 or fp16, a tied
output projection left out. Keys and shapes must agree both ways, and no code of a checkpoint is
ever run. The published checkpoints (BLIP3o/BLIP3o-Model-4B, -8B) have another layout and are not
read: see docs/blip3o.md.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from vltune.backbones.blip3o_config import FORMAT, Blip3oSettings
from vltune.backbones.blip3o_model import Blip3oModel
from vltune.backbones.checkpoint import BackboneConfig, BackboneError
from vltune.backbones.weights import load_strictly, read_state
from vltune.config import ConfigError, from_mapping, read_mapping, to_mapping
from vltune.files import atomic_path, sha256_file, sha256_json, write_json_atomic

CONFIG_NAME, WEIGHTS_NAME, TOKENIZER_NAME = "config.json", "model.safetensors", "tokenizer.json"
TIED = "language_model.lm_head.weight"
START, END, PAD = "<s>", "</s>", "<pad>"


def read_folder(config: BackboneConfig) -> tuple[Blip3oModel, Any]:
    """Load model (fp32, CPU, eval, frozen) and tokenizer of a folder.

    Raises:
        BackboneError: A file is missing or damaged, the hash is another, a tensor is missing,
            unknown, of another shape or not finite, or the tokenizer does not fit.
    """
    folder = Path(config.weights).expanduser()
    if not folder.is_dir():
        raise BackboneError(
            f"backbone.weights {config.weights!r}: no such folder (looked at {folder.resolve()}). "
            f"A BLIP3-o is a folder with {CONFIG_NAME}, {WEIGHTS_NAME} and {TOKENIZER_NAME}."
        )
    settings = read_settings(folder / CONFIG_NAME)
    tokenizer = read_tokenizer(folder / TOKENIZER_NAME)
    check_tokenizer(tokenizer, settings, str(folder))
    model = build_model(settings, str(folder))
    weights = folder / WEIGHTS_NAME
    if not weights.is_file():
        raise BackboneError(f"{weights}: no such file. Copy the whole folder.")
    if config.sha256 and (found := sha256_file(weights)) != config.sha256.lower():
        raise BackboneError(
            f"{weights}: SHA-256 is {found}, the job expects {config.sha256.lower()}. "
            "Get the checkpoint that the job was written for."
        )
    state = {key: _to_fp32(value) for key, value in read_state(weights).items()}
    if is_tied(model) and TIED not in state:
        state[TIED] = state.get("language_model.model.embed_tokens.weight", torch.empty(0))
    load_strictly(model, state, weights)
    model.eval().requires_grad_(False)
    return model, tokenizer


def write_folder(
    folder: Path, model: Blip3oModel, tokenizer: Any, dtype: torch.dtype = torch.float16
) -> Path:
    """Write config, weights and tokenizer, each whole or not at all; return the weights' path."""
    state = {
        key: value.detach().cpu().to(dtype if value.is_floating_point() else value.dtype)
        for key, value in model.state_dict().items()
        if not (key == TIED and is_tied(model))
    }
    write_json_atomic(folder / CONFIG_NAME, to_mapping(model.settings))
    with atomic_path(folder / TOKENIZER_NAME) as temporary:
        tokenizer.backend_tokenizer.save(str(temporary))
    with atomic_path(folder / WEIGHTS_NAME) as temporary:
        save_file({k: v.contiguous() for k, v in state.items()}, str(temporary))
    return folder / WEIGHTS_NAME


def read_settings(path: Path) -> Blip3oSettings:
    """Read config.json.

    Raises:
        BackboneError: It is missing or wrong, or another model's.
    """
    try:
        mapping = read_mapping(path)
        if mapping.get("format") != FORMAT:
            raise BackboneError(
                f"{path}: format is {mapping.get('format')!r}, expected {FORMAT!r}. The published "
                "BLIP3o checkpoints have another layout, which is not read; see docs/blip3o.md."
            )
        return from_mapping(Blip3oSettings, mapping, str(path))
    except ConfigError as error:
        raise BackboneError(str(error)) from error


def read_tokenizer(path: Path) -> Any:
    """Read tokenizer.json; special tokens are found by their names.

    Raises:
        BackboneError: It is missing or damaged.
    """
    try:
        return PreTrainedTokenizerFast(
            tokenizer_file=str(path), bos_token=START, eos_token=END, pad_token=PAD
        )
    except Exception as error:  # tokenizers raises nothing narrower
        raise BackboneError(f"{path}: cannot be read as a tokenizer ({error})") from error


def check_tokenizer(tokenizer: Any, settings: Blip3oSettings, source: str) -> None:
    """Every text must be framed by start and end, with ids of the model's table.

    Raises:
        BackboneError: It is not.
    """
    ids = tokenizer("a")["input_ids"]
    size = int(settings.language.get("vocab_size", 0))
    frame = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    if len(ids) < 3 or (ids[0], ids[-1]) != frame or len(tokenizer) > size:
        raise BackboneError(
            f"{source}: the tokenizer does not fit the model: {len(tokenizer)} tokens for a "
            f"vocabulary of {size}, and 'a' becomes {ids} where {frame[0]} ... {frame[1]} was "
            "expected"
        )


def build_model(settings: Blip3oSettings, source: str) -> Blip3oModel:
    """Build an untrained model without touching the caller's random state.

    Raises:
        BackboneError: The settings do not make a model.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            return Blip3oModel(settings)
    except BackboneError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise BackboneError(f"{source}: the model cannot be built: {error}") from error


def is_tied(model: Blip3oModel) -> bool:
    """Whether the output projection is the token table."""
    language: Any = model.language_model
    return bool(language.config.tie_word_embeddings)


def fingerprint_of(model: nn.Module, settings: Blip3oSettings) -> str:
    """Hash architecture and weights, as they are now; sampling defaults do not count."""
    architecture = to_mapping(settings)
    del architecture["generation"]
    digest = hashlib.sha256(sha256_json(architecture).encode())
    state: Mapping[str, Tensor] = model.state_dict()
    for key in sorted(state):
        value: Any = state[key].detach().cpu().contiguous()
        digest.update(f"\0{key}{tuple(value.shape)}".encode())
        digest.update(memoryview(value.numpy()).cast("B"))
    return digest.hexdigest()


def _to_fp32(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value
