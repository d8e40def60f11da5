"""Wav files, whole and broken."""

import io
import wave

import numpy as np
import pytest
import torch

from balancebench_udi.data.audio import read_wav
from balancebench_udi.errors import UserError


def wav(samples, channels=1, width=2, rate=8000):
    file = io.BytesIO()
    with wave.open(file, "wb") as w:
        w.setnchannels(channels)
        w.setsampwidth(width)
        w.setframerate(rate)
        w.writeframes(samples.tobytes())
    return file.getvalue()


def test_mono_is_scaled_to_one():
    samples, rate = read_wav(wav(np.array([0, 16384, -32768], dtype="<i2"), rate=11025), "x.wav")
    assert rate == 11025
    assert torch.equal(samples, torch.tensor([0.0, 0.5, -1.0]))


def test_channels_are_averaged():
    samples, _ = read_wav(wav(np.array([[0, 16384], [8192, 8192]], dtype="<i2"), channels=2), "x.wav")
    assert torch.equal(samples, torch.tensor([0.25, 0.25]))


WHOLE = wav(np.arange(100, dtype="<i2"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must be a wav file"),
        (b"ID3" + WHOLE[3:], "must be a wav file"),
        (WHOLE[:20], "must be a wav file"),
        (WHOLE[:-50], "must hold the 100 samples of its header, found 75"),
        (wav(np.zeros(0, dtype="<i2")), "found 0"),
        (wav(np.zeros(10, dtype=np.uint8), width=1), "16-bit samples, found 8 bits"),
    ],
)
def test_broken_files(content, message):
    with pytest.raises(UserError, match=message) as error:
        read_wav(content, "5_theo_3.wav")
    assert "5_theo_3.wav" in str(error.value)
