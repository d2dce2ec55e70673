"""Reads a causal language model from a folder on this disk, and says what is wrong with the folder.

Nothing is fetched, no code of the folder is run, and only safetensors are read, which unlike
pickled weights cannot run code either.
"""

import hashlib
import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from vltune.backbones.precision import fast_bfloat16
from vltune_lab.discovery.backend import BackendError

WEIGHTS = "*.safetensors"


@dataclass(frozen=True)
class LocalModel:
    """A causal language model in evaluation mode, with its tokenizer.

    Attributes:
        model: A transformers model that can `generate`.
        tokenizer: Its tokenizer.
        name: Of the folder; the path may be private.
        weights_sha256: `weights_sha256` of the folder.
    """

    model: Any
    tokenizer: Any
    name: str
    weights_sha256: str

    @property
    def arithmetic(self) -> str:
        """Number format and kind of device, such as "float32 on cpu"."""
        return f"{str(self.model.dtype).removeprefix('torch.')} on {self.model.device.type}"

    @property
    def context(self) -> int | None:
        """Longest question and answer together, in tokens; None if the model states none."""
        length = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return length if isinstance(length, int) and length > 0 else None


def load_model_folder(model: str) -> LocalModel:
    """Load a folder with `config.json`, a tokenizer and weights in safetensors.

    CUDA where there is one, else the CPU; bfloat16 where the device multiplies it in hardware, else
    float32.

    Raises:
        BackendError: transformers or the folder is missing, or the folder is incomplete or damaged.
    """
    if find_spec("transformers") is None:
        raise BackendError(
            "--llm transformers needs transformers, not installed here. Say "
            "pip install 'vltune[transformers]'."
        )
    folder = _checked(model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if fast_bfloat16(device) else torch.float32
    try:
        tokenizer, loaded, absent = _load(folder, dtype)
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        if "trust_remote_code" in str(error):
            raise BackendError(
                f"--model {model}: wants to run code of its own, which we never do. Choose a model "
                "that transformers knows."
            ) from error
        raise BackendError(
            f"--model {model}: cannot be loaded ({type(error).__name__}: {error!s:.300}). If files "
            "are damaged or missing, copy the folder anew."
        ) from error
    if absent:
        raise BackendError(
            f"--model {model}: {len(absent)} weights are missing or of another shape, the first is "
            f"{absent[0]}. Copy the folder anew."
        )
    rows = loaded.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise BackendError(
            f"--model {model}: the tokenizer has {len(tokenizer)} tokens, the model {rows}. They "
            "do not belong together; copy the folder anew."
        )
    loaded = loaded.to(device).eval()
    return LocalModel(loaded, tokenizer, folder.resolve().name, weights_sha256(folder))


def _load(folder: Path, dtype: torch.dtype) -> tuple[Any, Any, list[str]]:
    """Return tokenizer, model, and the weights that the folder lacks."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    # trust_remote_code: left open, transformers would ask at the terminal.
    source: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(folder, **source)
    # A weight of another shape is left to us to report; a missing one transformers fills at random.
    model, report = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        use_safetensors=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **source,
    )
    absent = {str(name) for name in report["missing_keys"]}
    absent |= {str(entry[0]) for entry in report["mismatched_keys"]}
    return tokenizer, model, sorted(absent)


def weights_sha256(folder: Path) -> str:
    """Hex SHA-256 over the weight files: that of `LC_ALL=C sha256sum *.safetensors`' output."""
    lines = []
    for path in sorted(folder.glob(WEIGHTS)):
        with path.open("rb") as stream:
            lines.append(f"{hashlib.file_digest(stream, 'sha256').hexdigest()}  {path.name}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _checked(model: str) -> Path:
    """Return the folder.

    Raises:
        BackendError: It is none, or what a causal language model needs is not in it.
    """
    if not model.strip():
        raise BackendError("--model is empty; --llm transformers needs a folder on this disk.")
    folder = Path(model)
    if not folder.is_dir():
        raise BackendError(
            f"--model {model}: no such folder. Models are read from this disk only; download it "
            "first, then give its folder."
        )
    config = folder / "config.json"
    try:
        if not isinstance(json.loads(config.read_bytes()), dict):
            raise ValueError("no JSON object")
    except FileNotFoundError as error:
        raise BackendError(
            f"--model {model}: has no config.json. Give the folder that holds the model's "
            "config.json, tokenizer and safetensors."
        ) from error
    except (OSError, ValueError) as error:
        raise BackendError(
            f"{config}: not a readable JSON object ({error!s:.100}). Copy the folder anew."
        ) from error
    if not any(folder.glob(WEIGHTS)):
        raise BackendError(
            f"--model {model}: has no {WEIGHTS}. Other weights are not read; save the model with "
            "save_pretrained, which writes them."
        )
    return folder
