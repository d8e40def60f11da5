"""Reading 16-bit PCM wav files with Python's own ``wave`` module, and which sampling rates are read."""

from __future__ import annotations

import io
import struct
import wave
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from balancebench_udi.data.sound import LARGEST, SPECTROGRAMS, kernel_size
from balancebench_udi.errors import UserError

RATES = (1_000, 768_000)
"""Hz: the lowest and the highest sampling rate that is read."""
_TARGETS = tuple(sorted({spectrogram.rate for spectrogram in SPECTROGRAMS.values()}))


def check_rate(rate: int, path: Path | str) -> None:
    """Refuse a sampling rate that cannot be converted to those of all spectrograms in bounded memory.

    The kernel grows as ``rate * target / g^2``, where g is the greatest common divisor of both. All multiples of 150 Hz
    and all rates in use (8000, 11025, 22050, 37800, 44100, 48000 Hz and the like) are read, 44056 and 96001 Hz are not.
    It depends on the rate alone: what is kept of a source is the same on every machine.

    Args:
        rate: Hz.
        path: what an error calls the file.

    Raises:
        UserError: a rate outside :data:`RATES`, or one whose kernel has more than :data:`sound.LARGEST` values.
    """
    advice = "convert it with ffmpeg -ar 48000"
    if not RATES[0] <= rate <= RATES[1]:
        raise UserError(f"{path} must be sampled at {RATES[0]} to {RATES[1]} Hz, found {rate} Hz; {advice}")
    for target in _TARGETS:
        if (found := kernel_size(rate, target)) > LARGEST:
            raise UserError(
                f"{path} must be sampled at a rate whose resampling to {target} Hz takes a kernel of at most {LARGEST} "
                f"values, found {rate} Hz, which takes {found}; {advice}"
            )


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
    except (wave.Error, EOFError, RuntimeError, struct.error):
        raise UserError(f"{name} must be a wav file, it is not or it is cut short; fetch it again") from None
    if width != 2:
        raise UserError(f"{name} must hold 16-bit samples, found {8 * width} bits; convert it")
    if frames == 0 or len(data) != frames * channels * width:
        found = len(data) // (channels * width)
        raise UserError(f"{name} must hold the {frames} samples of its header, found {found}; fetch it again")
    samples = np.frombuffer(data, dtype="<i2").reshape(-1, channels).astype(np.float32).mean(axis=1) / 32768.0
    return torch.from_numpy(samples), rate
