"""Benchmark `probes`: what a curious server can tell from one FedMPT update.

*Membership*: the update of a site's round is x. Each image's score is how far its loss fell from
x_0 to x; AUC of the site's training images against as many others of the same world's mix, which
the site never saw. 0.5 is guessing.

*Inversion* (as Geiping et al. 2020, arXiv 2003.14053, on frozen features): the worst case of one
image, one gradient, at x_0, labels known. Features are sought whose gradient points the same way;
similarity is the mean over its patches of the best cosine to a found patch. Baselines: where
the search started, and another image of the site.
"""

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from vltune.algorithms.encoded_split import EncodedSplit, FeatureBatch
from vltune.algorithms.multilabel_site import MultiLabelParticipant
from vltune.parameters import apply_shared
from vltune.seed import derive_seed, torch_generator
from vltune.site_config import read_site_config
from vltune_lab.bench.attackers import build_attacked
from vltune_lab.bench.attacks import job_of, make_attacked_world
from vltune_lab.bench.journal import Journal
from vltune_lab.jobs.resolve import Job

MEMBERS, OTHERS = "site-1", "site-5"
"""Two sites of one mix of scenes and styles, with different images."""
RECORD = {"level": "record", "noise_multiplier": 1.0, "clip_norm": 1.0, "delta": 1e-3}
SETTINGS: dict[str, dict[str, Any]] = {
    "2 epochs": {"epochs": 2},
    "20 epochs": {"epochs": 20},
    "2 epochs, record level z 1": {"epochs": 2, "privacy": RECORD},
}
INVERSION_STEPS, INVERSION_RATE = 150, 0.05
JOURNAL = "probes.jsonl"


def run_probes(
    seeds: Sequence[int], folder: Path, progress: Progress, *, quick: bool = False
) -> list[dict[str, Any]]:
    """Run both probes with every seed.

    Args:
        seeds: Run seeds; of the model's start, the order of images and the image that is sought.
        folder: Of the world of benchmark `attacks`, and of the rows as they come.
        progress: Shows a bar.
        quick: Few images, few steps, to see that it runs.

    Returns:
        Rows of a protocol file.
    """
    folder = folder.absolute()
    world = make_attacked_world(folder, quick=quick)
    journal = Journal(folder / JOURNAL)
    bar = progress.add_task("probes", total=len(seeds) * (len(SETTINGS) + 1))
    rows = []
    for seed in seeds:
        job = job_of(seed, "none", quick=quick)
        runs = {
            ("membership", name): partial(membership, job, world, **keys)
            for name, keys in SETTINGS.items()
        }
        steps = 3 if quick else INVERSION_STEPS
        runs["inversion", "one image, one gradient"] = partial(inversion, job, world, steps)
        for (method, setting), measure in runs.items():
            common = {"method": method, "setting": setting, "seed": seed}
            rows.append(common | journal.row(common | {"job": job, "quick": quick}, measure))
            progress.advance(bar)
    return rows


def membership(
    job: Job, world: Path, epochs: int, privacy: dict[str, Any] | None = None
) -> dict[str, Any]:
    """AUC of the fall of each image's loss, after one round's training from the start."""
    changed = job | {"training": job["training"] | {"local_epochs": epochs, "schedule": "constant"}}
    if privacy is not None:
        changed |= {"privacy": privacy}
    with tempfile.TemporaryDirectory(prefix="vltune-bench-") as state:
        site, others = (_site(changed, world, name, Path(state)) for name in (MEMBERS, OTHERS))
        start = site.prepare(lambda: False).initial
        others.prepare(lambda: False)
        update = site.train(start, 0, lambda: False)
    splits = (_split(site), _split(others))
    before = [_losses(site, start, split) for split in splits]
    after = [_losses(site, update.tensors, split) for split in splits]
    falls = [(first - last).tolist() for first, last in zip(before, after, strict=True)]
    is_member = [1] * len(falls[0]) + [0] * len(falls[1])
    return {
        "auc": float(roc_auc_score(is_member, falls[0] + falls[1])),
        "loss_fall_members": sum(falls[0]) / len(falls[0]),
        "loss_fall_others": sum(falls[1]) / len(falls[1]),
        "images": len(is_member),
        **{k: v for k, v in update.metrics.items() if k.startswith("record_")},
    }


def inversion(job: Job, world: Path, steps: int) -> dict[str, Any]:
    """Seek the features of one image by its gradient; see the module."""
    with tempfile.TemporaryDirectory(prefix="vltune-bench-") as state:
        site = _site(job, world, MEMBERS, Path(state))
        site.prepare(lambda: False)
    split = _split(site)
    generator = torch_generator(derive_seed(job["seed"], MEMBERS, 0, "inversion"))
    chosen, another = torch.randperm(len(split.labels), generator=generator)[:2]
    target, other = split.batch_at(chosen[None]), split.batch_at(another[None])
    guess = torch.randn(target.patch_features.shape, generator=generator)
    begun = best_cosines(target.patch_features[0], F.normalize(guess[0], dim=-1))
    found, match = seek(site.model, target, guess, steps)
    return {
        "similarity": best_cosines(target.patch_features[0], found),
        "similarity_start": begun,
        "similarity_another_image": best_cosines(target.patch_features[0], other.patch_features[0]),
        "gradient_cosine": match,
    }


def seek(model: Any, target: FeatureBatch, guess: Tensor, steps: int) -> tuple[Tensor, float]:
    """Patch features (M, D) whose gradient points as the target's, and the cosine of both."""
    parameters = model.trainable_parameters()
    guess = guess.clone().requires_grad_()
    optimizer = torch.optim.Adam([guess], INVERSION_RATE)
    cosine = torch.zeros(())
    # The fast attention has no second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        wanted = _gradient(model, target, parameters, create_graph=False)
        for _ in range(steps):
            patches = F.normalize(guess, dim=-1)
            pooled = F.normalize(patches.mean(dim=1), dim=-1)
            batch = FeatureBatch(patches, pooled, target.labels)
            cosine = F.cosine_similarity(
                _gradient(model, batch, parameters, create_graph=True), wanted, dim=0
            )
            optimizer.zero_grad()
            (1 - cosine).backward(inputs=[guess])
            optimizer.step()
    return F.normalize(guess.detach()[0], dim=-1), float(cosine.detach())


def best_cosines(patches: Tensor, found: Tensor) -> float:
    """Mean over the true patches (M, D) of the best cosine to any found patch (M', D)."""
    return float((patches @ found.T).amax(dim=1).mean())


def _gradient(model: Any, batch: FeatureBatch, parameters: Any, *, create_graph: bool) -> Tensor:
    """Gradient of the batch's loss as one vector."""
    parts = torch.autograd.grad(
        model.loss(batch), parameters, create_graph=create_graph, allow_unused=True
    )
    return torch.cat(
        [
            torch.zeros(parameter.numel()) if part is None else part.flatten()
            for part, parameter in zip(parts, parameters, strict=True)
        ]
    )


def _losses(site: MultiLabelParticipant, shared: dict[str, Tensor], split: EncodedSplit) -> Tensor:
    apply_shared(site.model, shared, site.model.shared_keys())
    with torch.no_grad():
        batch = split.batch_at(torch.arange(len(split.labels)))
        return torch.stack(site.model.example_losses(batch))


def _site(job: Job, world: Path, name: str, state: Path) -> MultiLabelParticipant:
    config = read_site_config(world / name / "vltune_site.yaml")
    folder = state / name
    folder.mkdir(parents=True, exist_ok=True)
    site = build_attacked(job, config, name, folder, torch.get_num_threads())
    assert isinstance(site, MultiLabelParticipant)  # nobody is malicious here
    return site


def _split(site: MultiLabelParticipant) -> EncodedSplit:
    assert site.train_split is not None  # prepare() made it
    return site.train_split
