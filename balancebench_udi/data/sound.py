"""What sound becomes, and which part of a recording: nothing here opens a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

SILENCE = 1e-4
"""Sound whose largest magnitude stays below this is silent (full scale is 1)."""


@dataclass(frozen=True)
class Span:
    """A part of a recording, in seconds; None is the beginning or the end."""

    start: float | None = None
    end: float | None = None

    def cut(self, samples: Tensor, rate: int) -> Tensor:
        """The samples ``[n]`` inside it."""
        first = round((self.start or 0.0) * rate)
        return samples[first : None if self.end is None else round(self.end * rate)]


WHOLE = Span()


@dataclass(frozen=True)
class Spectrogram:
    """How sound becomes a picture ``[1, F, T]``.

    Attributes:
        shape: ``(1, F, T)``.
        about: what is done, and by whom.
        make: from mono samples ``[n]`` at ``rate`` Hz to ``[F, T]`` float32.
        rate: Hz.
        crop: length in T of the part that the encoder sees, where it is not all.
    """

    shape: tuple[int, int, int]
    about: str
    rate: int
    make: Callable[[Tensor], Tensor] = field(repr=False)
    crop: int | None = None

    def __call__(self, samples: Tensor, rate: int) -> Tensor:
        """``[1, F, T]`` float32 of mono ``samples [n]`` at ``rate`` Hz."""
        import torchaudio  # here: prepared data do without

        return self.make(torchaudio.functional.resample(samples, rate, self.rate)).unsqueeze(0)


def _tile(wave: Tensor, length: int) -> Tensor:
    """Repeated to at least ``length`` samples, cut there, and clipped to +-1."""
    return wave.repeat(-(-length // len(wave)))[:length].clamp(-1.0, 1.0)


def _log_stft(length: int, n_fft: int, hop: int) -> Callable[[Tensor], Tensor]:
    def make(wave: Tensor) -> Tensor:
        bins = torch.stft(
            _tile(wave, length),
            n_fft,
            hop,
            window=torch.hann_window(n_fft),
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        return torch.log(bins.abs() + 1e-7)

    return make


def _log_power(length: int) -> Callable[[Tensor], Tensor]:
    """The logarithm of scipy's spectrogram (512 long, 353 overlapping), standardised for each clip."""

    def make(wave: Tensor) -> Tensor:
        from scipy.signal import spectrogram  # here: its import takes a second, and prepared data do without

        _, _, power = spectrogram(_tile(wave, length).numpy(), nperseg=512, noverlap=353)
        bins = torch.log(torch.from_numpy(power).to(torch.float32) + 1e-7)
        return (bins - bins.mean()) / (bins.std(correction=0) + 1e-9)

    return make


def _fbank(normalise: bool) -> Callable[[Tensor], Tensor]:
    def make(wave: Tensor) -> Tensor:
        import torchaudio  # here: prepared data do without

        if len(wave) < 400:
            wave = functional.pad(wave, (0, 400 - len(wave)))  # one window of 25 ms
        bands = torchaudio.compliance.kaldi.fbank(
            (wave - wave.mean()).unsqueeze(0),
            htk_compat=True,
            sample_frequency=16000,
            use_energy=False,
            window_type="hanning",
            num_mel_bins=128,
            dither=0.0,
            frame_shift=10,
        )
        bands = functional.pad(bands[:1024], (0, 0, 0, max(0, 1024 - len(bands))))
        return ((bands + 4.503877) / (2 * 5.141276) if normalise else bands).T

    return make


SPECTROGRAMS = {
    "ogm_stft": Spectrogram(
        (1, 257, 188), "log magnitude, 3 s at 22.05 kHz, n_fft 512, hop 353 (OGM-GE)", 22050, _log_stft(66150, 512, 353)
    ),
    "fbank": Spectrogram(
        (1, 128, 1024),
        "128 log mel bands, 10 s at 16 kHz, normalised as AudioSet (MMPareto)",
        16000,
        _fbank(True),
    ),
    "fbank_raw": Spectrogram((1, 128, 1024), "as fbank, not normalised (MLA)", 16000, _fbank(False)),
    "pmr_1004": Spectrogram(
        (1, 257, 1004),
        "log power, 160000 samples at 22.05 kHz, each standardised (PMR)",
        22050,
        _log_power(160000),
    ),
    "pmr_16k": Spectrogram(
        (1, 257, 1004), "log power, 10 s at 16 kHz, each standardised (PMR on AVE)", 16000, _log_power(160000)
    ),
    "pmr_299": Spectrogram(
        (1, 257, 299), "log power, 48000 samples at 22.05 kHz, each standardised (PMR)", 22050, _log_power(48000)
    ),
    "igm_stft": Spectrogram(
        (1, 257, 1003), "log magnitude, 10 s at 35.4 kHz, n_fft 512, hop 353 (IGM)", 35400, _log_stft(354000, 512, 353)
    ),
    "vgg_stft": Spectrogram(
        (1, 129, 1251),
        "log magnitude, 10 s at 16 kHz, n_fft 256, hop 128, of which 5 s are seen (OGM-GE on VGGSound)",
        16000,
        _log_stft(160000, 256, 128),
        crop=626,
    ),
}
