"""Every random number comes from a named stream, so that no consumer can shift another one's numbers."""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, *labels: object) -> int:
    """A 63-bit seed for the stream ``labels`` of run seed ``seed``: ``derive(0, "order", 3)``."""
    text = "/".join([str(seed), *map(str, labels)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *labels: object, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator on ``device`` at the start of the stream ``labels``."""
    return torch.Generator(device=device).manual_seed(derive(seed, *labels))
