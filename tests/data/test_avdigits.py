"""AVDigits on the real recordings and images: the split, the pairing, the spectrogram, and broken files."""

import io
import itertools
import re
import tarfile
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from balancebench_udi.data.avdigits import AVDigits, AVDigitsOptions, log_mel
from balancebench_udi.data.mnist import read_mnist
from balancebench_udi.errors import UserError

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def root(data_root):
    for part in ("mnist", "fsdd/recordings.tar.gz"):
        if not (data_root / part).exists():
            pytest.skip(f"{data_root / part} is absent")
    return data_root


@pytest.fixture(scope="module")
def bundle(root):
    return AVDigits().load(root)


@pytest.fixture(scope="module")
def tripled(root):
    return AVDigits(AVDigitsOptions(pairs_per_recording=3, eval_pairs_per_recording=2)).load(root)


@pytest.fixture(scope="module")
def images(root):
    """Pixels -> (split, label) of every MNIST image."""
    return {
        image.tobytes(): (split, int(label))
        for split, (pixels, labels) in read_mnist(root).items()
        for image, label in zip(pixels.numpy(), labels, strict=True)
    }


@pytest.fixture(scope="module")
def waves(root):
    """(digit, index) and samples of every recording, read by scipy."""
    found = {}
    with tarfile.open(root / "fsdd" / "recordings.tar.gz") as tar:
        for member in tar.getmembers():
            if match := re.fullmatch(r"recordings/(\d)_(\w+)_(\d+)\.wav", member.name):
                rate, samples = wavfile.read(io.BytesIO(tar.extractfile(member).read()))
                assert rate == 8000
                found[(int(match[1]), match[2], int(match[3]))] = samples
    return found


def keys(split, modality):
    return [row.numpy().tobytes() for row in split.inputs[modality]]


def test_shapes_and_counts(bundle):
    assert list(bundle.modalities) == ["audio", "image"]
    assert [len(bundle.split(s)) for s in SPLITS] == [2430, 270, 300]
    assert bundle.classes == tuple("0123456789")
    for s in SPLITS:
        split = bundle.split(s)
        assert split.target.bincount().tolist() == [len(split) // 10] * 10
        assert split.inputs["image"].dtype == torch.uint8
        for m, modality in bundle.modalities.items():
            assert modality.transform(split.inputs[m][:4], None).shape == (4, *modality.shape)


def test_normalised_by_train(bundle):
    audio = bundle.modalities["audio"].transform(bundle.train.inputs["audio"], None)
    assert audio.dtype == torch.float32
    assert abs(float(audio.mean())) < 1e-3
    assert abs(float(audio.std()) - 1) < 1e-3


def test_official_split_of_the_recordings(bundle, waves):
    expected = [(digit, samples) for (digit, _, index), samples in sorted(waves.items()) if index < 5]
    assert len(expected) == 300
    padded = [np.pad(samples[:8000], (0, max(0, 8000 - len(samples)))) / 32768 for _, samples in expected]
    spectrograms = log_mel(torch.from_numpy(np.stack(padded)).float())
    assert bundle.test.target.tolist() == [digit for digit, _ in expected]
    assert torch.allclose(bundle.test.inputs["audio"].float(), spectrograms, atol=0.01)


@pytest.mark.parametrize("which", ["bundle", "tripled"])
def test_no_recording_and_no_image_in_two_splits(which, request):
    bundle = request.getfixturevalue(which)
    for m in bundle.modalities:
        train, val, test = (set(keys(bundle.split(s), m)) for s in SPLITS)
        assert not (train & val)
        assert not (train & test)
        assert not (val & test)
    assert [len(set(keys(bundle.split(s), "audio"))) for s in SPLITS] == [2430, 270, 300]


@pytest.mark.parametrize("which", ["bundle", "tripled"])
def test_pairs_agree_and_use_an_image_once(which, request, images):
    bundle = request.getfixturevalue(which)
    for s in SPLITS:
        split = bundle.split(s)
        pixels = keys(split, "image")
        assert len(set(pixels)) == len(pixels)
        source = "test" if s == "test" else "train"
        assert [images[p] for p in pixels] == [(source, int(y)) for y in split.target]


def test_pairs_per_recording(bundle, tripled):
    assert [len(tripled.split(s)) for s in SPLITS] == [7290, 540, 600]
    for s, pairs in zip(SPLITS, (3, 2, 2), strict=True):
        assert set(Counter(keys(tripled.split(s), "audio")).values()) == {pairs}
        assert set(keys(tripled.split(s), "audio")) == set(keys(bundle.split(s), "audio"))


def test_same_options_same_data_other_options_other_data(root, bundle, tripled):
    again = AVDigits().load(root)
    assert again.fingerprint == bundle.fingerprint
    for s in SPLITS:
        assert torch.equal(again.split(s).target, bundle.split(s).target)
        for m in bundle.modalities:
            assert torch.equal(again.split(s).inputs[m], bundle.split(s).inputs[m])
    paired = AVDigits(AVDigitsOptions(pair_seed=1)).load(root)
    held = AVDigits(AVDigitsOptions(val_seed=1)).load(root)
    assert len({b.fingerprint for b in (bundle, tripled, paired, held)}) == 4
    assert torch.equal(paired.train.inputs["audio"], bundle.train.inputs["audio"])
    assert not torch.equal(paired.train.inputs["image"], bundle.train.inputs["image"])
    assert set(keys(held.val, "audio")) != set(keys(bundle.val, "audio"))


def test_folder_equals_archive(root, bundle, tmp_path):
    (tmp_path / "mnist").symlink_to(root / "mnist")
    with tarfile.open(root / "fsdd" / "recordings.tar.gz") as tar:
        tar.extractall(tmp_path / "free-spoken-digit-dataset", filter="data")
    assert AVDigits().load(tmp_path).fingerprint == bundle.fingerprint  # a clone under its own name
    (tmp_path / "free-spoken-digit-dataset").rename(tmp_path / "fsdd")
    assert AVDigits().load(tmp_path).fingerprint == bundle.fingerprint
    (tmp_path / "fsdd" / "recordings" / "3_theo_7.wav").unlink()
    with pytest.raises(UserError, match="3000 recordings, found 2999"):
        AVDigits().load(tmp_path)
    (tmp_path / "fsdd" / "recordings" / "three.wav").write_bytes(b"")
    with pytest.raises(UserError, match=r"digit_speaker_index\.wav, found 'three\.wav'"):
        AVDigits().load(tmp_path)


def test_more_pairs_than_images(root):
    with pytest.raises(UserError, match="every pair needs an image of its own"):
        AVDigits(AVDigitsOptions(pairs_per_recording=23)).load(root)


def test_absent_and_broken_files(root, tmp_path):
    with pytest.raises(UserError, match="needs --data-root"):
        AVDigits().load(None)
    with pytest.raises(UserError, match=r"fsdd holds neither recordings/ nor recordings\.tar\.gz"):
        AVDigits().load(tmp_path)
    (tmp_path / "fsdd").mkdir()
    archive = (root / "fsdd" / "recordings.tar.gz").read_bytes()
    for length in (5, 100_000):
        (tmp_path / "fsdd" / "recordings.tar.gz").write_bytes(archive[:length])
        with pytest.raises(UserError, match=r"whole tar\.gz"):
            AVDigits().load(tmp_path)
    with pytest.raises(UserError, match=r"pairs_per_recording must be >= 1"):
        AVDigitsOptions(pairs_per_recording=0)


def test_log_mel_against_a_plain_loop():
    samples = np.random.default_rng(0).normal(0, 0.1, 8000)
    padded = np.pad(samples, 256, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512)
    power = [np.abs(np.fft.rfft(padded[256 * t : 256 * t + 512] * window)) ** 2 for t in range(32)]
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 4000 / 700), 34) / 2595) - 1)
    hertz = np.linspace(0, 4000, 257)
    rise = [(hertz - low) / (mid - low) for low, mid in itertools.pairwise(edges[:-1])]
    fall = [(high - hertz) / (high - mid) for mid, high in itertools.pairwise(edges[1:])]
    bands = np.clip(np.minimum(rise, fall), 0, None)
    expected = np.log(bands @ np.stack(power).T + 1e-5)
    found = log_mel(torch.from_numpy(samples).float().unsqueeze(0))
    assert found.shape == (1, 1, 32, 32)
    assert np.allclose(found[0, 0].numpy(), expected, atol=1e-3)


def test_test_pairs_are_grouped_by_speaker(root):
    made = AVDigits(AVDigitsOptions(eval_pairs_per_recording=3)).load(root)
    found = made.groups.array()
    assert (made.groups.unit, len(made.groups), len(found)) == ("speaker", 6, 900)
    assert (np.bincount(found) == 150).all()
    audio = made.test.inputs["audio"]
    for first in range(0, 900, 3):  # the pairs of one recording have one speaker
        assert torch.equal(audio[first], audio[first + 2])
        assert len(set(found[first : first + 3])) == 1
