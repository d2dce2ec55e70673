"""VLTune: federated tuning of vision-language models on NVIDIA FLARE.

Axes, the one legend of the whole package: B batch, N samples, C classes, K conditions, M patches,
L context tokens, W token width, D joint embedding, r rank, S sites.

Ownership, the same three words everywhere: *shared* tensors leave a site, *personal* tensors stay,
*frozen* tensors are never trained. `parameters.py` is the room that decides.

Importing this package imports nothing heavy.
"""

__version__ = "0.1.0"
