"""Reading 16-bit PCM wav files with Python's own ``wave`` module."""

from __future__ import annotations

import io
import wave

import numpy as np
import torch
from torch import Tensor

from balancebench_udi.errors import UserError


def read_wav(content: bytes, name: str) -> tuple[Tensor, int]:
    """The samples of a wav file, channels averaged.

    Args:
        content: the file's bytes.
        name: what to call it in an error.

    Returns:
        float32 samples ``[n]`` in [-1, 1) and the sampling rate in Hz.

    Raises:
        UserError: not a wav file, not 16-bit PCM, cut short, or empty.
    """
    try:
        with wave.open(io.BytesIO(content)) as file:
            channels, width, rate, frames = file.getparams()[:4]
            data = file.readframes(frames)
    except (wave.Error, EOFError, RuntimeError):
        raise UserError(f"{name} must be a wav file, it is not or it is cut short; fetch it again") from None
    if width != 2:
        raise UserError(f"{name} must hold 16-bit samples, found {8 * width} bits; convert it")
    if frames == 0 or len(data) != frames * channels * width:
        found = len(data) // (channels * width)
        raise UserError(f"{name} must hold the {frames} samples of its header, found {found}; fetch it again")
    samples = np.frombuffer(data, dtype="<i2").reshape(-1, channels).astype(np.float32).mean(axis=1) / 32768.0
    return torch.from_numpy(samples), rate
