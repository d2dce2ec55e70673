"""One seed per (run, site, round): the same run twice gives the same numbers on CPU."""

import hashlib

import torch


def derive_seed(run_seed: int, site: str, round_number: int, purpose: str = "train") -> int:
    """Return a seed in [0, 2^63) that depends on all four values and on nothing else.

    Hashing keeps streams of different sites, rounds and purposes independent, where `seed + round`
    would make site a's round 2 the twin of site b's round 1.
    """
    text = f"{run_seed}\x1f{site}\x1f{round_number}\x1f{purpose}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_generator(seed: int) -> torch.Generator:
    """Return a CPU generator at `seed`."""
    return torch.Generator().manual_seed(seed)
