"""After a run: what the global model draws, round by round, for the report.

Drawn where the job was started, from the adapters that came home; needs the backbone's weights
there. Modes whose sites keep factors of their own have no global model that could draw.
"""

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from vltune.algorithms.fedumm import read_job
from vltune.algorithms.site_lora import SiteLora
from vltune.algorithms.unified_task import GENERATION
from vltune.backbones.checkpoint import BackboneError
from vltune.backbones.registry import load_backbone
from vltune.backbones.unified import UnifiedBackbone
from vltune.files import write_bytes_atomic, write_json_atomic
from vltune.flare.persistor import read_adapter, round_file
from vltune.seed import derive_seed, torch_generator
from vltune.task_routing import TaskRouting
from vltune_lab.jobs.collect import ADAPTERS
from vltune_lab.report.drawings import FOLDER, INDEX
from vltune_lab.report.maps import png_of

log = logging.getLogger(__name__)


def draw_samples(run_folder: Path, job: Mapping[str, Any]) -> bool:
    """Draw the job's `samples.prompts` with the adapters of up to `samples.rounds` rounds.

    Returns:
        Whether there are pictures; the log says why not.
    """
    config, parsed, choice = read_job(job)
    prompts = list(config.samples.prompts)
    if not prompts or config.samples.rounds < 1:
        return False
    if parsed.aggregation.description.personal:
        log.warning("no pictures in the report: each site has factors of its own")
        return False
    try:
        backbone = load_backbone(config.backbone)
    except BackboneError as error:
        log.warning("no pictures in the report: %s", error)
        return False
    if not isinstance(backbone, UnifiedBackbone):
        log.warning("no pictures in the report: %s cannot draw", backbone.name)
        return False
    lora = SiteLora(parsed, backbone.model, backbone.lora_scope)
    routing = choice.directions and TaskRouting(lora.model, choice.directions)
    rounds = chosen_rounds(run_folder / ADAPTERS, config.samples.rounds)
    seed = derive_seed(parsed.seed, "", 0, "samples")
    lora.model.eval()
    files = []
    for number in rounds:
        if number:
            lora.receive(read_adapter(run_folder / ADAPTERS / round_file(number))[0])
        with routing.only(GENERATION) if routing else nullcontext():
            images = backbone.generate_images(
                prompts, generator=torch_generator(seed), guidance=config.guidance
            )
        names = [f"round{number:04d}_{place:02d}.png" for place in range(len(prompts))]
        for name, image in zip(names, images, strict=True):
            write_bytes_atomic(run_folder / FOLDER / name, png_of(picture_of(image)))
        files.append(names)
    index = {"prompts": prompts, "rounds": rounds, "files": files}
    write_json_atomic(run_folder / FOLDER / INDEX, index)
    return True


def chosen_rounds(adapters: Path, most: int) -> list[int]:
    """0 and up to `most` of the rounds that have a file, evenly apart, with the last."""
    prefix, suffix = round_file(0).split("0")
    found = sorted(
        int(path.name.removeprefix(prefix).removesuffix(suffix))
        for path in adapters.glob(f"{prefix}*{suffix}")
    )
    found = [number for number in found if number > 0]
    places = np.linspace(len(found) - 1, 0, min(most, len(found))).round().astype(int)
    return [0, *sorted(found[place] for place in places)]


def picture_of(image: Tensor) -> Image.Image:
    """(3, H, W) in [0, 1]."""
    values = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(values)
