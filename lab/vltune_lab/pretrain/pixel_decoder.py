"""Train the pixel tokenizer's decoder on, with encoder and codes as they are.

Squared error alone, which is what PSNR counts: the tokenizer's own loss also has the absolute one,
whose best guess is a median. Codes do not change, so a language model that has learnt to write them
needs no new training, and the stage may run before, beside or after the last one.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.janus.modeling_janus import JanusVQVAE

from vltune.config import ConfigError, to_mapping
from vltune_lab.pretrain.janus_recipe import DecoderRecipe
from vltune_lab.pretrain.loop import follow_schedule, run_to_end, step_line, take_step
from vltune_lab.pretrain.pixel_tokenizer import IMAGE_SIZE, PixelStream, as_blocks, latents_of, psnr
from vltune_lab.pretrain.run_state import RunState
from vltune_lab.pretrain.stream import make_loader
from vltune_lab.scenes.library import PRETRAINING_STYLES, load_library

DECODER = ("decoder.", "post_quant_conv.")


def start_decoder(recipe: DecoderRecipe, vq: JanusVQVAE, checkpoint: Path) -> RunState:
    """Build the state (`vq`), continuing from the checkpoint where there is one.

    Args:
        recipe: The recipe.
        vq: As the tokenizer's stage left it; all but the decoder is frozen, in place.
        checkpoint: May be absent.

    Raises:
        ConfigError: The checkpoint is of another tokenizer.
    """
    for name, parameter in vq.named_parameters():
        parameter.requires_grad_(name.startswith(DECODER))
    trained = [p for p in vq.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe.learning_rate, betas=(0.9, 0.95),
                                  weight_decay=0.0, fused=True)  # fmt: skip
    state = RunState({"vq": vq}, optimizer, to_mapping(recipe))
    if checkpoint.is_file():
        check_codes(vq, checkpoint)
        state.load(checkpoint)
    return state


def check_codes(vq: JanusVQVAE, checkpoint: Path) -> None:
    """Ask whether a decoder's checkpoint was trained for this encoder and these codes.

    Raises:
        ConfigError: It was not.
    """
    other = torch.load(checkpoint, map_location="cpu", weights_only=True)["vq"]
    for name, tensor in vq.state_dict().items():
        if not name.startswith(DECODER) and not torch.equal(tensor.cpu(), other[name]):
            raise ConfigError(
                f"{checkpoint}: decodes the codes of another tokenizer ({name} differs). "
                f"Remove {checkpoint.parent} and run the stage 'decoder' again."
            )


def train_decoder(
    recipe: DecoderRecipe, vq: JanusVQVAE, work: Path, *, device: str = "cpu", workers: int = 1
) -> RunState:
    """Train to `recipe.steps`, checkpointing in `work`; called again, it continues."""
    work.mkdir(parents=True, exist_ok=True)
    state = start_decoder(recipe, vq.to(device), work / "checkpoint.pt")
    stream = PixelStream(
        load_library(styles=PRETRAINING_STYLES),
        seed=recipe.seed, batch_size=recipe.batch_size, image_size=IMAGE_SIZE,
    )  # fmt: skip
    stream.first_step = state.step
    lines = _steps(state, make_loader(stream, workers), recipe, device)
    run_to_end("pretrain janus decoder", state, lines, work, recipe.checkpoint_every)
    return state


def decode_latents(vq: JanusVQVAE, pixels: Tensor) -> Tensor:
    """Images as the decoder shows their codes, with gradients into the decoder alone.

    Args:
        vq: Its codebook has unit norm.
        pixels: In [-1, 1], as the class sees them, (B, C, H, W).
    """
    table = vq.quantize.embedding.weight
    with torch.no_grad():
        chosen = table[(latents_of(vq, pixels) @ table.T).argmax(dim=-1)]
    shown: Tensor = vq.decoder(vq.post_quant_conv(chosen.permute(0, 3, 1, 2)))
    return shown


def _steps(
    state: RunState, batches: Iterator[Tensor], recipe: DecoderRecipe, device: str
) -> Iterator[dict[str, float]]:
    vq: Any = state.modules["vq"]
    trained: list[nn.Parameter] = [p for p in vq.parameters() if p.requires_grad]
    while state.step < recipe.steps:
        began = time.perf_counter()
        follow_schedule(state, recipe)
        pixels = as_blocks(next(batches).to(device), recipe.pixel_shuffle)
        images = decode_latents(vq, pixels)
        loss = (images - pixels).square().mean()
        take_step(state, loss, trained)
        figures = {"loss": loss.item(), "psnr": psnr(images.detach(), pixels)}
        yield step_line(state, began, recipe.batch_size, figures)
