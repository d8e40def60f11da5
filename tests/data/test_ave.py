"""AVE: lists of the published size, samples that are events, videos with several of them, and what goes wrong."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from balancebench_udi.data.ave import AVE, CLASSES, SIZES, Event, read_list
from balancebench_udi.data.loader import Loader
from balancebench_udi.data.pack import prepare
from balancebench_udi.errors import UserError
from tests.media import brightness, cut, tone, write_video, write_wav

LABELS = ["Church bell", "Male speech, man speaking", "Bark"] + [f"class {i}" for i in range(3, CLASSES)]
ORDER = LABELS[5:] + LABELS[:5]
"""Classes as they first stand in testSet.txt."""
FIRST = {"train": 0, "val": 4000, "test": 5000}


def video_id(number):
    return f"_{number:010d}"


def line(number, label, start=0, end=10):
    return f"{label}&{video_id(number)}&good&{start}&{end}"


def lists(folder, **changed):
    """Lists of the published size; ``changed`` are the first lines of a list."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, size in SIZES.items():
        lines = [line(FIRST[part] + i, ORDER[i % CLASSES]) for i in range(size)]
        head = changed.get(part, [])
        (folder / f"{part}Set.txt").write_text("\n".join([*head, *lines[len(head) :]]) + "\n")
    return folder


def video(folder, number, level=100, seconds=2, **options):
    """A plain grey."""
    path = folder / "AVE" / f"{video_id(number)}.mp4"
    return write_video(path, seconds=seconds, fps=6, colour=(level,) * 3, **options)


def dataset(**options):
    return AVE(AVE.Options(**{"stored_size": 224} | options))


def packed(source, root, **options):
    return prepare(dataset(**options), source, root, 1, quiet=True)


def problems(done):
    return {row.id: (row.problem, row.kept) for row in done.problems.itertuples() if "missing" not in row.problem}


# lists


def test_lines_as_published(tmp_path):
    (tmp_path / "x.txt").write_bytes(
        b"Category&VideoID&Quality&StartTime&EndTime\r\nChurch bell&MH3m4AwEcRY&good&6&8\r\n"
        b"Male speech, man speaking&0giAfYq9oVM&good&3&9\r\n\r\nChurch bell&VWi2ENBuTbw&good&0&0\r\n"
    )
    assert read_list(tmp_path / "x.txt") == [
        Event("Church bell", "MH3m4AwEcRY", 6, 8),
        Event("Male speech, man speaking", "0giAfYq9oVM", 3, 9),
        Event("Church bell", "VWi2ENBuTbw", 0, 0),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "Church bell&MH3m4AwEcRY&good&6",
        "Church bell,MH3m4AwEcRY,good,6,8",
        "&MH3m4AwEcRY&good&6&8",
        "Church bell&MH3m4AwEc&good&6&8",
        "Church bell&MH3m4AwEcRY&good&8&6",
        "Church bell&MH3m4AwEcRY&good&6&11",
        "Church bell&MH3m4AwEcRY&good&-1&8",
        "Church bell&MH3m4AwEcRY&good&a&8",
        "Category&VideoID&Quality&StartTime&EndTime",
    ],
)
def test_malformed_lines(tmp_path, text):
    (tmp_path / "x.txt").write_text(f"Bark&0giAfYq9oVM&good&3&9\n{text}\n")
    with pytest.raises(UserError, match=r"must hold lines such as Church bell&.* in line 2$"):
        read_list(tmp_path / "x.txt")


def test_published_lists_must_be_whole(tmp_path):
    with pytest.raises(UserError, match=r"must hold AVE .*; found no testSet\.txt"):
        packed(tmp_path, tmp_path)
    lists(tmp_path / "AVE_Dataset")
    path = tmp_path / "AVE_Dataset" / "valSet.txt"
    whole = path.read_text()
    path.write_text(whole + line(9999, "Bark") + "\n")
    with pytest.raises(UserError, match=r"valSet\.txt must have the 402 lines of AVE, found 403"):
        packed(tmp_path, tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"valSet\.txt must be a list of events, it is absent"):
        packed(tmp_path, tmp_path)
    path.write_text(whole.replace("Bark", "Meow", 1))
    with pytest.raises(
        UserError, match=r"must have 28 classes, all of them in testSet\.txt, found 28 there and 29 in all"
    ):
        packed(tmp_path, tmp_path)


# what is packed and loaded


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two videos to train on, one to validate and two to test on, 40, 60, ... grey."""
    source = lists(tmp_path_factory.mktemp("ave"))
    for i, number in enumerate((0, 1, 4002, 5003, 5000)):
        video(source, number, 40 + 20 * i, seconds=10)
    root = tmp_path_factory.mktemp("root")
    packed(source, root)
    return root


def test_splits_and_classes(root):
    bundle = dataset().load(root)
    assert bundle.classes == tuple(ORDER)
    assert {part: bundle.split(part).target.tolist() for part in SIZES} == {"train": [0, 1], "val": [2], "test": [0, 3]}
    frames = bundle.test.stored("video", torch.arange(2))[:, 0].float().mean((1, 2, 3))
    assert frames.tolist() == pytest.approx([120, 100], abs=6)
    assert bundle.facts["left_out"] == sum(SIZES.values()) - 5
    with pytest.raises(UserError, match="must be prepared with these options"):
        dataset(segment="clip").load(root)


def test_a_batch(root):
    bundle = dataset().load(root)
    batch = next(iter(Loader(bundle, torch.device("cpu"), 2, 0).train(0, ("audio", "video"))))
    assert batch.inputs["audio"].shape == (2, 1, 257, 1004)
    assert batch.inputs["video"].shape == (2, 3, 4, 224, 224)
    assert bundle.modalities["video"].transform.aspect == pytest.approx(16 / 9)


@pytest.mark.parametrize("segment", ["event", "clip"])
def test_an_event_is_cut_out_of_sound_and_pictures(tmp_path, segment):
    """Frames brighten, and the tone rises with the event, from second 3 to 5."""
    source = lists(tmp_path, train=[line(0, ORDER[0], 3, 5)])
    for number in (0, 4000, 5000):
        write_video(source / "AVE" / f"{video_id(number)}.mp4", seconds=10, fps=4)
        high, low = tone(2, 22050, 4000.0), tone(3, 22050, 500.0)
        write_wav(source / "Audios" / f"{video_id(number)}.wav", np.concatenate([low, high, low, low[:44100]]), 22050)
    done = packed(source, tmp_path, segment=segment, fps=2, candidates=20)
    video = np.load(done.folder / "video.npy")
    right = video[:, :, :, 112:].mean((2, 3, 4))
    count = (video[:, :, 0, 0, 0] > 0).sum(1).tolist()
    ids = (done.folder / "index.csv").read_text().splitlines()[1:]
    row = next(i for i, text in enumerate(ids) if text.startswith(video_id(0)))
    first = 12 if segment == "event" else 0
    expected = [brightness(first + 2 * i) for i in range(count[row])]
    assert right[row, : count[row]].tolist() == pytest.approx(expected, abs=8)
    assert sorted(count) == ([4, 20, 20] if segment == "event" else [20, 20, 20])
    audio = np.load(done.folder / "audio.npy")[row, 0].astype(np.float32)
    high = (audio[round(4000 / 16000 * 512)] > audio[round(500 / 16000 * 512)]).mean()
    assert high == pytest.approx(1.0 if segment == "event" else 0.2, abs=0.02)


def test_several_events_of_a_video(tmp_path):
    """The first line of a list counts; one video in two lists stays, as published; each is listed."""
    source = lists(
        tmp_path,
        train=[line(0, ORDER[0], 1, 4), line(0, ORDER[1], 5, 9), line(1, ORDER[1])],
        val=[line(0, ORDER[2], 2, 4)],
        test=[line(1, ORDER[0], 2, 4), line(5001, ORDER[1]), line(5002, ORDER[2])],
    )
    for number in (0, 1, 5002):
        video(source, number, seconds=10)
    done = packed(source, tmp_path)
    assert problems(done) == {
        f"{video_id(0)}_train": (f"the line as {ORDER[1]} is left out: the first of a video counts, {ORDER[0]}", True),
        f"{video_id(0)}_val": (f"its video is in train, too, as {ORDER[0]}", True),
        f"{video_id(1)}_test": (f"its video is in train, too, as {ORDER[1]}", True),
    }
    bundle = dataset().load(tmp_path)
    assert {part: bundle.split(part).target.tolist() for part in SIZES} == {"train": [0, 1], "val": [2], "test": [0, 2]}


@pytest.mark.parametrize("segment", ["event", "clip"])
def test_an_event_of_no_length_is_the_whole_video(tmp_path, segment):
    source = lists(tmp_path, train=[line(0, ORDER[0], 0, 0)])
    for number in (0, 4000, 5000):
        video(source, number, seconds=10)
    done = packed(source, tmp_path, segment=segment)
    reason = "its event has no length (0 to 0 s), the whole video is taken"
    assert problems(done) == ({f"{video_id(0)}_train": (reason, True)} if segment == "event" else {})
    assert done.manifest["samples"] == 3
    assert ((np.load(done.folder / "video.npy")[:, :, 0, 0, 0] > 0).sum(1) == 8).all()


@pytest.mark.parametrize(("segment", "level"), [("event", 80), ("clip", 160)])
def test_extracted_frames_of_the_event_or_of_all(tmp_path, segment, level):
    source = lists(tmp_path)
    for number in (0, 4000, 5000):
        for name, grey in (("Image-03-FPS-SE", 80), ("Image-03-FPS", 160), ("Image-01-FPS-SE", 20), ("other", 30)):
            folder = source / name / video_id(number)
            folder.mkdir(parents=True)
            Image.new("RGB", (32, 24), (grey,) * 3).save(folder / "00000.jpg")
        write_wav(source / "Audios" / f"{video_id(number)}.wav", tone(10, 16000))
    done = packed(source, tmp_path, segment=segment)
    assert np.load(done.folder / "video.npy")[:, 0].mean((1, 2, 3)).tolist() == pytest.approx([level] * 3, abs=4)


def test_damaged_videos_are_problems(tmp_path):
    source = lists(tmp_path, train=[line(i, ORDER[0], 6, 8) for i in range(7)])
    for number in (0, 4000, 5000):
        video(source, number, seconds=10)
    cut(video(source, 1, seconds=10))
    video(source, 2, seconds=10, sound=False)
    video(source, 3, seconds=10, silent=True)
    video(source, 4, seconds=3)
    (source / "AVE" / f"{video_id(5)}.mp4").write_bytes(b"no video")
    found = problems(done := packed(source, tmp_path))
    assert list(found) == [f"{video_id(i)}_train" for i in range(1, 6)]
    assert [kept for _, kept in found.values()] == [False, False, True, False, False]
    assert "must have sound from 6 to 8 s, it ends before" in found[f"{video_id(4)}_train"][0]
    assert done.manifest["splits"] == {"official": {"train": 2, "val": 1, "test": 1}}


def test_fingerprint(tmp_path):
    source = lists(tmp_path / "a")
    for number in (0, 4000, 5000):
        video(source, number)
    shutil.copytree(source, tmp_path / "elsewhere")
    prints = [packed(source, tmp_path / "r0").manifest["fingerprint"]]
    prints.append(packed(tmp_path / "elsewhere", tmp_path / "r1").manifest["fingerprint"])
    assert prints[0] == prints[1]
    prints.append(packed(source, tmp_path / "r2", segment="clip").manifest["fingerprint"])
    lists(source, train=[line(0, ORDER[0], 0, 1)])
    prints.append(packed(source, tmp_path / "r3").manifest["fingerprint"])
    video(source, 0, 200)
    prints.append(packed(source, tmp_path / "r4").manifest["fingerprint"])
    assert len(set(prints)) == 4


def test_options():
    options = AVE.Options()
    assert (options.audio, options.n_frames, options.segment) == ("pmr_1004", 4, "event")
    with pytest.raises(UserError, match="segment must be one of event, clip, found whole"):
        AVE.Options(segment="whole")
