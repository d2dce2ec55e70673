"""The global adapter on the server's disk: safetensors, whole or absent, one file a round.

`global_adapter_round<N>.safetensors` is the global model after N rounds (0: the seeded start),
`last_` and `best_global_adapter.safetensors` are copies. The server never builds the backbone.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.model import (
    ModelLearnable,
    ModelLearnableKey,
    make_model_learnable,
)
from nvflare.app_common.abstract.model_persistor import ModelPersistor
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from vltune.files import write_bytes_atomic
from vltune.flare.exchange import to_arrays, to_tensors

LAST_FILE = "last_global_adapter.safetensors"
BEST_FILE = "best_global_adapter.safetensors"
META_ROUND = "round"
_METADATA = "vltune"
_ROUND_FILE = re.compile(r"global_adapter_round(\d+)\.safetensors")


class AdapterFileError(ValueError):
    """An adapter file is missing or damaged; the message names it and the cure."""


def round_file(round_number: int) -> str:
    """File name of the global model after `round_number` rounds."""
    return f"global_adapter_round{round_number}.safetensors"


def latest_round_file(folder: Path) -> tuple[int, Path] | None:
    """The last completed round's number and file in `folder`, or None."""
    found = [
        (int(match.group(1)), path)
        for path in folder.glob("global_adapter_round*.safetensors")
        if (match := _ROUND_FILE.fullmatch(path.name))
    ]
    return max(found, default=None)


def write_adapter(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, object]) -> None:
    """Write shared tensors and what they belong to; the same content gives the same bytes."""
    # One metadata key only: safetensors writes several in no fixed order.
    metadata = {_METADATA: json.dumps(dict(facts), sort_keys=True)}
    contiguous = {name: tensors[name].contiguous() for name in sorted(tensors)}
    write_bytes_atomic(path, save(contiguous, metadata))


def read_adapter(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Read tensors and facts.

    Raises:
        AdapterFileError: No such file, or it is not one that `write_adapter` wrote.
    """
    try:
        content = path.read_bytes()
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        facts = json.loads(header["__metadata__"][_METADATA])
        if not isinstance(facts, dict):
            raise TypeError("facts are no object")
    except (OSError, SafetensorError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise AdapterFileError(
            f"{path}: cannot be read as a global adapter ({type(error).__name__}). Give a "
            "global_adapter file that a VLTune run wrote."
        ) from error
    return {name: tensors[name] for name in sorted(tensors)}, facts


class AdapterPersistor(ModelPersistor):
    """Keeps the global adapter of every round, the best and the last in the server's run folder.

    Args:
        resume_file: Adapter in the job's config folder that the run continues from; without one the
            sites' seeded initial tensors are the start.
        facts: Name and method of the job, written into each file.
    """

    def __init__(self, resume_file: str = "", facts: dict[str, str] | None = None) -> None:
        super().__init__()
        self.resume_file = resume_file
        self.facts = facts

    def load_model(self, fl_ctx: FLContext) -> ModelLearnable:
        """The adapter to continue from, or an empty model."""
        if not self.resume_file:
            return make_model_learnable({}, {})
        config = fl_ctx.get_engine().get_workspace().get_app_config_dir(fl_ctx.get_job_id())
        tensors, facts = read_adapter(Path(config) / self.resume_file)
        return make_model_learnable(to_arrays(tensors), {META_ROUND: facts.get(META_ROUND, 0)})

    def save_model(self, model: ModelLearnable, fl_ctx: FLContext) -> None:
        """Write the model of the round that its meta names, and the copy of the last."""
        tensors = to_tensors(model[ModelLearnableKey.WEIGHTS], "the global model")
        self.save_round(run_folder(fl_ctx), int(model[ModelLearnableKey.META][META_ROUND]), tensors)

    def save_round(self, folder: Path, round_number: int, tensors: Mapping[str, Tensor]) -> None:
        """Write the global model after `round_number` rounds."""
        facts = {**(self.facts or {}), META_ROUND: round_number}
        write_adapter(folder / round_file(round_number), tensors, facts)
        write_bytes_atomic(folder / LAST_FILE, (folder / round_file(round_number)).read_bytes())

    def mark_best(self, folder: Path, round_number: int) -> None:
        """Copy the model after `round_number` rounds to the best file."""
        write_bytes_atomic(folder / BEST_FILE, (folder / round_file(round_number)).read_bytes())


def run_folder(fl_ctx: FLContext) -> Path:
    """The server's app folder of this job: what lies there comes back with a download."""
    return Path(fl_ctx.get_engine().get_workspace().get_app_dir(fl_ctx.get_job_id()))
