"""What sound becomes, and which part of a recording: nothing here opens a file."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from balancebench_udi.errors import UserError

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
        """``[1, F, T]`` float32 of mono ``samples [n]`` at ``rate`` Hz.

        Raises:
            UserError: a rate from which :func:`resample` would need too large a kernel.
        """
        return self.make(resample(samples, rate, self.rate)).unsqueeze(0)


CROSSINGS = 64
"""Zero crossings of the resampling kernel's sinc on either side."""
ROLLOFF = 0.9475937167399596
"""Where it cuts off, as a share of the lower of the two Nyquist frequencies."""
BETA = 14.769656459379492
"""Shape of its Kaiser window. All three are those of ``kaiser_best``, librosa's resampler before 0.10."""
LARGEST = 2**24
"""Most values of a kernel; it takes 32 bytes of memory for each while it is made."""


def kernel_size(rate: int, target: int) -> int:
    """Values of the kernel that resamples from ``rate`` to ``target`` Hz: phases x taps."""
    common = math.gcd(rate, target)
    old, new = rate // common, target // common
    return new * (2 * math.ceil(CROSSINGS * old / (ROLLOFF * min(old, new))) + old)


def resample(samples: Tensor, rate: int, target: int) -> Tensor:
    """``samples [n]`` float32 at ``rate`` Hz as ``[ceil(n * target / rate)]`` at ``target`` Hz.

    The official codes use librosa: ``kaiser_best`` before 0.10, ``soxr_hq`` since. The kernel is made in float64:
    made in float32 it leaves images of -100 dB, which the logarithm of an otherwise empty band shows.

    Raises:
        UserError: the two rates have so small a common divisor that the kernel would have more than LARGEST values.
    """
    if rate == target:
        return samples
    if kernel_size(rate, target) > LARGEST:
        raise UserError(
            f"a sampling rate must have a common divisor with {target} Hz that leaves a resampling kernel of at most "
            f"{LARGEST} values, found {rate} Hz with {kernel_size(rate, target)}; convert the sound to 44100 Hz"
        )
    period = rate // math.gcd(rate, target)  # more zeros: torchaudio rounds lengths in float32
    return _kernel(rate, target)(functional.pad(samples, (0, period)))[: -(-len(samples) * target // rate)]


@functools.lru_cache(maxsize=2)
def _kernel(rate: int, target: int) -> Callable[[Tensor], Tensor]:
    """Convolution of float32 samples with a kernel made in float64."""
    import torchaudio  # here: prepared data do without

    return torchaudio.transforms.Resample(
        rate, target, "sinc_interp_kaiser", CROSSINGS, ROLLOFF, BETA, dtype=torch.float64
    ).float()


def _tile(wave: Tensor, length: int) -> Tensor:
    """Repeated to at least ``length`` samples, cut there, and clipped to +-1."""
    return wave.repeat(-(-length // len(wave)))[:length].clamp(-1.0, 1.0)


def _log_stft(length: int, n_fft: int, hop: int) -> Callable[[Tensor], Tensor]:
    """``log(|X| + 1e-7)`` of librosa.stft, padded with zeros (before 0.10 by reflection: first and last column)."""

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


def _log_power(length: int, rate: int) -> Callable[[Tensor], Tensor]:
    """``log(P + 1e-7)``, P power per hertz (scipy; 512 long, 353 overlapping), standardised for each clip."""

    def make(wave: Tensor) -> Tensor:
        from scipy.signal import spectrogram  # here: its import takes a second, and prepared data do without

        _, _, power = spectrogram(_tile(wave, length).numpy(), rate, nperseg=512, noverlap=353)
        bins = torch.log(torch.from_numpy(power) + 1e-7).double()  # in float32 silence is off its own mean
        return ((bins - bins.mean()) / (bins.std(correction=0) + 1e-9)).float()

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
        (1, 257, 1004), "log power, 10 s at 16 kHz, each standardised (PMR)", 16000, _log_power(160000, 16000)
    ),
    "pmr_299": Spectrogram(
        (1, 257, 299), "log power, 3 s at 16 kHz, each standardised (PMR on CREMA-D)", 16000, _log_power(48000, 16000)
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
