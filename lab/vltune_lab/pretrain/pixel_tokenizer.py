"""Train the pixel tokenizer of janus-compact: image -> 8 x 8 codes -> image.

transformers' own forward looks its codes up again and so gives the encoder no gradient from the
reconstruction; here the pieces of the class are trained in a loop of their own:

* latents and codebook have unit norm, so that the class's nearest neighbour (encode) and its
  normalised look-up (decode) mean the same entries;
* the straight-through estimator carries the gradient past the look-up;
* the first steps pass latents through unquantised, and the codebook then begins at latents of a
  batch: begun together, encoder and a random codebook met in 27 of 1,024 entries and stayed there;
* the codebook is a moving average of the latents that chose each entry; an entry that nobody
  chooses any more starts anew at a latent of the batch.
"""

import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.models.janus.modeling_janus import JanusVQVAE

from vltune.backbones.janus_pixels import set_norm_groups
from vltune.config import to_mapping
from vltune.geneval_prompts import TAGS
from vltune_lab.pretrain.janus_recipe import TokenizerRecipe
from vltune_lab.pretrain.loop import follow_schedule, run_to_end
from vltune_lab.pretrain.prompt_stream import drawable_prompt
from vltune_lab.pretrain.run_state import RunState
from vltune_lab.pretrain.stream import StepStream, make_loader, pretraining_split
from vltune_lab.scenes.geneval_scenes import PromptPainter
from vltune_lab.scenes.library import PRETRAINING_STYLES, load_library
from vltune_lab.scenes.plan import plan_scene, scene_rng
from vltune_lab.scenes.render import render_scene

IMAGE_SIZE = 64
DEAD = 0.1
"""An entry chosen less often than this by the moving average of a batch starts anew."""
ASKED = 0.5
"""Share of images that are true pictures of prompts; the others are scenes of pre-training."""


class Codebook(nn.Module):
    """Moving averages behind the codebook of `vq.quantize.embedding`.

    Args:
        entries: Codes K.
        width: Their width D.
        decay: Of the moving averages.
    """

    def __init__(self, entries: int, width: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("counts", torch.ones(entries))
        self.register_buffer("sums", F.normalize(torch.randn(entries, width), dim=1))

    @torch.no_grad()
    def update(self, latents: Tensor, codes: Tensor) -> None:
        """Take in one batch.

        Args:
            latents: Unit-norm, (N, D).
            codes: Chosen entries, (N,), int64.
        """
        chosen = torch.bincount(codes, minlength=len(self.counts)).to(self.counts)
        total = torch.zeros_like(self.sums).index_add_(0, codes, latents)
        self.counts.lerp_(chosen, 1 - self.decay)
        self.sums.lerp_(total, 1 - self.decay)

    @torch.no_grad()
    def begin(self, latents: Tensor) -> None:
        """Start every entry at a latent of this batch."""
        picked = torch.randint(len(latents), (len(self.counts),), device=latents.device)
        if len(latents) >= len(self.counts):
            picked = torch.randperm(len(latents), device=latents.device)[: len(self.counts)]
        self.counts.fill_(1.0)
        self.sums.copy_(latents[picked])

    @torch.no_grad()
    def restart(self, latents: Tensor) -> int:
        """Give dead entries a latent each of this batch; return how many were dead."""
        dead = (self.counts < DEAD).nonzero().flatten()[: len(latents)]
        picked = latents[torch.randperm(len(latents), device=latents.device)[: len(dead)]]
        self.counts[dead] = 1.0
        self.sums[dead] = picked
        return len(dead)

    @property
    def entries(self) -> Tensor:
        """The codebook, (K, D), unit norm."""
        return F.normalize(self.sums, dim=1)


class PixelStream(StepStream):
    """Batches of images, uint8, (B, 3, H, W): scenes of pre-training and pictures of prompts."""

    def batch(self, step: int) -> Tensor:
        """Render batch number `step`."""
        return torch.from_numpy(
            np.stack([self._picture(step, index) for index in range(self.batch_size)])
        ).permute(0, 3, 1, 2)

    def _picture(self, step: int, index: int) -> NDArray[np.uint8]:
        rng = scene_rng(self.seed, "pixels", step * self.batch_size + index)
        if rng.random() < ASKED:
            prompt = drawable_prompt(self._painter, dict.fromkeys(TAGS, 1.0), rng)
            return self._painter.draw(prompt, rng, styles=PRETRAINING_STYLES).image
        plan = plan_scene(self.library, pretraining_split(), rng, 0.0, mix_styles=True)
        return render_scene(self.library, plan, self.image_size, rng, is_held_out=False).image

    @cached_property
    def _painter(self) -> PromptPainter:
        return PromptPainter(self.library, size=self.image_size)


def as_blocks(images: Tensor, shuffle: int) -> Tensor:
    """Images uint8 (B, 3, H, W) in [-1, 1] as the class sees them: (B, 3 s s, H/s, W/s)."""
    return F.pixel_unshuffle(images.float().div_(127.5).sub_(1.0), shuffle)


def latents_of(vq: JanusVQVAE, pixels: Tensor) -> Tensor:
    """Unit-norm latents (B, H/8, W/8, D) of images in [-1, 1], with gradients."""
    return F.normalize(vq.quant_conv(vq.encoder(pixels)), dim=1).permute(0, 2, 3, 1)


def reconstruct(
    vq: JanusVQVAE, latents: Tensor, *, is_plain: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Look latents up and decode them.

    Args:
        vq: Its codebook has unit norm.
        latents: (B, h, w, D), unit norm.
        is_plain: Decode the latents themselves.

    Returns:
        Images (B, 3, H, W) with gradients into the latents, codes (B, h, w), the chosen entries.
    """
    table = vq.quantize.embedding.weight
    codes = (latents @ table.T).argmax(dim=-1)
    chosen = latents.detach() if is_plain else table[codes]
    passed = latents + (chosen - latents).detach()
    return vq.decoder(vq.post_quant_conv(passed.permute(0, 3, 1, 2))), codes, chosen


def psnr(images: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [-1, 1], over all of them together."""
    error = ((images.clamp(-1, 1) - truth) / 2).square().mean()
    return float(-10 * torch.log10(error))


def begin_as_identity(vq: JanusVQVAE) -> None:
    """Start convolutions at torch's scale and every residual branch at zero, in place.

    transformers draws convolutions with deviation 0.02, at which little but the mean colour was
    learnt in 80 steps.
    """
    for name, module in vq.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        module.reset_parameters()
        if name.endswith(("conv2", "proj_out")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


def start_tokenizer(recipe: TokenizerRecipe, config: Any, checkpoint: Path) -> RunState:
    """Build the state (`vq` and `codebook`), continuing from the checkpoint where there is one.

    Args:
        recipe: The recipe.
        config: JanusVQVAEConfig.
        checkpoint: May be absent.
    """
    torch.manual_seed(recipe.seed)
    vq = JanusVQVAE(config)
    begin_as_identity(vq)
    set_norm_groups(vq, recipe.norm_groups)
    vq.quantize.requires_grad_(False)
    codebook = Codebook(config.num_embeddings, config.embed_dim, recipe.codebook_decay)
    vq.quantize.embedding.weight.data.copy_(codebook.entries)
    parameters = [p for p in vq.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, betas=(0.9, 0.95),
                                  weight_decay=0.0, fused=True)  # fmt: skip
    state = RunState({"vq": vq, "codebook": codebook}, optimizer, to_mapping(recipe))
    if checkpoint.exists():
        state.load(checkpoint)
    return state


def train_tokenizer(
    recipe: TokenizerRecipe, config: Any, work: Path, *, device: str = "cpu", workers: int = 1
) -> RunState:
    """Train to `recipe.steps`, checkpointing in `work`; called again, it continues."""
    work.mkdir(parents=True, exist_ok=True)
    state = start_tokenizer(recipe, config, work / "checkpoint.pt")
    for module in state.modules.values():
        module.to(device)
    library = load_library(styles=PRETRAINING_STYLES)
    stream = PixelStream(
        library, seed=recipe.seed, batch_size=recipe.batch_size, image_size=IMAGE_SIZE
    )
    stream.first_step = state.step
    lines = _steps(state, make_loader(stream, workers), recipe, device)
    run_to_end("pretrain janus tokenizer", state, lines, work, recipe.checkpoint_every)
    return state


def _steps(
    state: RunState, batches: Iterator[Tensor], recipe: TokenizerRecipe, device: str
) -> Iterator[dict[str, float]]:
    vq: Any = state.modules["vq"]
    codebook: Any = state.modules["codebook"]
    table = vq.quantize.embedding.weight
    while state.step < recipe.steps:
        began = time.perf_counter()
        follow_schedule(state, recipe)
        pixels = as_blocks(next(batches).to(device), recipe.pixel_shuffle)
        latents = latents_of(vq, pixels)
        if state.step == recipe.plain_steps:
            codebook.begin(latents.detach().flatten(0, 2))
            table.data.copy_(codebook.entries)
        is_plain = state.step < recipe.plain_steps
        images, codes, chosen = reconstruct(vq, latents, is_plain=is_plain)
        difference = images - pixels
        commitment = (latents - chosen).square().sum(dim=-1).mean()
        loss = difference.abs().mean() + difference.square().mean() + recipe.commitment * commitment
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vq.parameters(), 1.0)
        state.optimizer.step()
        flat = latents.detach().flatten(0, 2)
        restarted = 0
        if not is_plain:
            codebook.update(flat, codes.flatten())
        if (
            not is_plain
            and state.step % recipe.restart_every == 0
            and state.step < recipe.restarts_until
        ):
            restarted = codebook.restart(flat)
        table.data.copy_(codebook.entries)
        state.step += 1
        seconds = time.perf_counter() - began
        state.seconds += seconds
        yield {
            "step": state.step,
            "loss": loss.item(),
            "psnr": psnr(images.detach(), pixels),
            "commitment": commitment.item(),
            "live": int((codebook.counts >= DEAD).sum()),
            "in_batch": len(codes.unique()),
            "restarted": restarted,
            "images_per_second": recipe.batch_size / seconds,
        }
