"""Kinetics-Sounds: the published lists at their full size, clips under every usual name, and what goes wrong."""

import json
import shutil

import av
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from balancebench_udi.data.kinetics_sounds import CLASSES, KineticsSounds, read_json, read_list
from balancebench_udi.data.loader import Loader
from balancebench_udi.data.pack import prepare
from balancebench_udi.data.youtube import LONGEST, clip_name
from balancebench_udi.errors import UserError
from tests.helpers import train
from tests.media import cut, tone, write_video, write_wav

PUBLISHED = {
    "--4-0ihtnBU_000058_000068": (4, "dribbling_basketball"),
    "--6q_33gNew_000132_000142": (27, "tap_dancing"),
    "-00nar1nEPc_000033_000043": (13, "playing_harmonica"),
    "-24HxQDHOAM_000001_000011": (6, "mowing_lawn"),
    "-A3CcrEtLpM_000000_000010": (2, "bowling"),
    "-JmAezdkneo_000200_000210": (3, "chopping_wood"),
    "jPRhkui8ylU_4008": (30, "tickling"),
    "-9nQwLUdlJo_0": (5, "laughing"),
}
"""Rows that OGM-GE's and BML's lists share, with the class of the one and of the other."""
TRAIN, VAL, TEST = 14799, 1320, 2597


def name(number, start=None):
    """The clip ``number``: train clips come first, then test, then validation."""
    start = number % 700 if start is None else start
    return f"_{number:010d}_{start:06d}_{start + 10:06d}" if number < TRAIN else f"_{number:010d}_{start}"


def rows(first, count, as_name=False):
    numbers = range(first, first + count)
    return "".join(f"{name(i)},10,{CLASSES[i % 31] if as_name else i % 31}\n" for i in numbers)


def entries(first, count, subset):
    return {name(i): {"subset": subset, "label": CLASSES[i % 31]} for i in range(first, first + count)}


def write_json(path, **subsets):
    database = {k: v for subset, (first, count) in subsets.items() for k, v in entries(first, count, subset).items()}
    path.write_text(json.dumps({"labels": CLASSES, "database": database}))


def ogm(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "my_train.txt").write_text(rows(0, TRAIN))
    (folder / "my_test.txt").write_text(rows(TRAIN, TEST))
    return folder


def bml(folder):
    write_json(folder / "KS.json", training=(0, TRAIN + TEST), validation=(TRAIN + TEST, VAL))
    write_json(
        folder / "KS_train_val.json",
        training=(0, TRAIN),
        testing=(TRAIN, TEST),
        validation=(TRAIN + TEST, VAL),
    )
    return folder


def own(folder, **parts):
    """Lists of single numbers."""
    (folder / "lists").mkdir(parents=True, exist_ok=True)
    for part, numbers in parts.items():
        (folder / "lists" / f"{part}.txt").write_text("".join(rows(i, 1) for i in numbers))
    return folder


def clips(folder, numbers, suffix=".mp4"):
    """Clip ``number`` is a plain grey of 50 and 20 more each, in the order given."""
    for i, number in enumerate(numbers):
        write_video(folder / f"{name(number)}{suffix}", seconds=1, fps=6, colour=(50 + 20 * i,) * 3)
    return folder


def dataset(**options):
    return KineticsSounds(KineticsSounds.Options(**{"stored_size": 224, "candidates": 4} | options))


def packed(source, root, **options):
    return prepare(dataset(**options), source, root, 1, quiet=True)


def grey(bundle, split):
    """Mean level of the first stored frame of each sample."""
    part = bundle.split(split)
    return part.stored("video", torch.arange(len(part)))[:, 0].float().mean((1, 2, 3))


PRESENT = [0, 31, 1, 32, TRAIN, TRAIN + 1, TRAIN + TEST, TRAIN + TEST + 1]
"""Two clips of classes 0 and 1 to train on, and two each to test and to validate on."""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Both protocols' lists, and few of their clips at some depth."""
    folder = tmp_path_factory.mktemp("ks")
    bml(ogm(folder))
    clips(folder / "train" / "some class", PRESENT[:4])
    clips(folder / "val", PRESENT[4:])
    clips(folder / "val", [99999])
    return folder


@pytest.fixture(scope="module")
def root(source, tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    packed(source, root)
    return root


# lists


def test_classes_are_in_alphabetical_order():
    assert len(set(CLASSES)) == 31
    assert list(CLASSES) == sorted(CLASSES)


def test_index_and_name_of_a_class_agree_with_the_published_rows(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"{k},10,{index}\n" for k, (index, _) in PUBLISHED.items()))
    (tmp_path / "b.txt").write_text("".join(f"{k},10,{label}\n" for k, (_, label) in PUBLISHED.items()))
    spaced = "".join(f"{k},10,{label.replace('_', ' ')}\r\n" for k, (_, label) in PUBLISHED.items())
    (tmp_path / "c.txt").write_bytes(b"\xef\xbb\xbf" + spaced.encode())
    database = {k: {"subset": "training", "label": label} for k, (_, label) in PUBLISHED.items()}
    (tmp_path / "d.json").write_text(json.dumps({"labels": CLASSES, "database": database}))
    expected = {
        ("--4-0ihtnBU", 58): "dribbling_basketball",
        ("--6q_33gNew", 132): "tap_dancing",
        ("-00nar1nEPc", 33): "playing_harmonica",
        ("-24HxQDHOAM", 1): "mowing_lawn",
        ("-A3CcrEtLpM", 0): "bowling",
        ("-JmAezdkneo", 200): "chopping_wood",
        ("jPRhkui8ylU", 4008): "tickling",
        ("-9nQwLUdlJo", 0): "laughing",
    }
    assert read_list(tmp_path / "a.txt") == read_list(tmp_path / "b.txt") == expected
    assert read_list(tmp_path / "c.txt") == expected
    assert read_json(tmp_path / "d.json", {"training": "train"}) == {"train": expected}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-00nar1nEPc_000033_000043", ("-00nar1nEPc", 33)),
        ("-00nar1nEPc_33_43", ("-00nar1nEPc", 33)),
        ("-00nar1nEPc_000033", ("-00nar1nEPc", 33)),
        ("-00nar1nEPc", ("-00nar1nEPc", None)),
        ("-00nar1nEPc_33000_43000", ("-00nar1nEPc", 33)),
        ("-00nar1nEPc_0_10000", ("-00nar1nEPc", 0)),
        ("-00nar1nEPc_3600000_3610000", ("-00nar1nEPc", 3600)),
        ("-00nar1nEPc_4008_4018", ("-00nar1nEPc", 4008)),
        ("abc_000_111", ("abc_000_111", None)),
        ("abc_000_111_7", ("abc_000_111", 7)),
        ("-00nar1nEP", None),
        ("-00nar1nEPc_33s", None),
        ("frame_00001.5", None),
    ],
)
def test_names_of_clips(text, expected):
    assert clip_name(text) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-00nar1nEPc_000033_000043,10", "found '-00nar1nEPc_000033_000043,10' in line 2"),
        ("-00nar1nEPc_000033_000043,10,31", "must be 0 to 30 or names such as bowling, found '31' in line 2"),
        ("-00nar1nEPc_000033_000043,10,-1", "found '-1' in line 2"),
        ("-00nar1nEPc_000033_000043,10,juggling", "found 'juggling' in line 2"),
        ("-00nar1nEPc,10,3", "must name clips like .* found '-00nar1nEPc' in line 2"),
        ("__________a_5,10,3", "must list a clip once, found __________a_5 again in line 2"),
    ],
)
def test_malformed_lists(tmp_path, line, message):
    (tmp_path / "x.txt").write_text(f"__________a_000005_000015,10,3\n{line}\n")
    with pytest.raises(UserError, match=message):
        read_list(tmp_path / "x.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"database": {"a', "must be JSON such as"),
        ("[]", "must be JSON such as"),
        ('{"labels": []}', "must be JSON such as"),
        ('{"database": {"__________a_5": {"subset": "training"}}}', "must be JSON such as"),
        ('{"database": {"__________a_5": "training"}}', "must be JSON such as"),
        ('{"database": {"__________a_5": {"subset": "train", "label": "bowling"}}}', "must be training, found 'train'"),
        ('{"database": {"__________a_5": {"subset": "training", "label": "juggling"}}}', "found 'juggling' in '_"),
        ('{"database": {"clip": {"subset": "training", "label": "bowling"}}}', "found 'clip'"),
    ],
)
def test_malformed_json(tmp_path, content, message):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_json(tmp_path / "x.json", {"training": "train"})


def test_published_lists_must_be_whole(tmp_path):
    """Also below the folders they come in."""
    with pytest.raises(UserError, match="found no list"):
        packed(tmp_path, tmp_path)
    folder = ogm(tmp_path / "data" / "KineticSound")
    (folder / "my_test.txt").write_text(rows(TRAIN, TEST - 1))
    with pytest.raises(UserError, match=r"must have train 14799, test 2597 clips, found train 14799, test 2596; fetch"):
        packed(tmp_path, tmp_path)
    (folder / "my_test.txt").unlink()
    with pytest.raises(UserError, match=r"my_test.txt must be a list of clips, it is absent"):
        packed(tmp_path, tmp_path)
    shutil.rmtree(tmp_path / "data")
    write_json(tmp_path / "KS.json", training=(0, TRAIN), validation=(TRAIN, VAL))
    with pytest.raises(UserError, match=r"BML must have train 17396, test 1320 clips, found train 14799, test 1320"):
        packed(tmp_path, tmp_path, split="BML")


def test_lists_that_contradict_each_other(tmp_path):
    own(tmp_path, train=[0, 1], test=[1])
    with pytest.raises(UserError, match=r"in one part of a split only, found .* in train and test of own"):
        packed(tmp_path, tmp_path)
    (tmp_path / "lists" / "test.txt").write_text(f"{name(1)},10,5\n")
    with pytest.raises(UserError, match=r"one class in all lists, found .* as blowing_out_candles and laughing"):
        packed(tmp_path, tmp_path)


# what is packed and loaded


def test_a_pack_of_a_partial_download(source, root):
    """Every list is whole, 8 clips are there, the others are problems; a clip of no list is not looked at."""
    done = packed(source, root)
    assert done.manifest["samples"] == 8
    assert done.manifest["left_out"] == TRAIN + TEST + VAL - 8 == len(done.problems)
    assert done.manifest["splits"] == {
        "OGM-GE": {"train": 4, "test": 2, "": 2},
        "BML": {"train": 6, "test": 2},
        "BML-val": {"train": 4, "test": 2, "val": 2},
    }
    assert not done.problems["kept"].any()
    assert set(done.problems["problem"]) == {"its sound or video file must be below the source, it is missing"}
    index = pd.read_csv(done.folder / "index.csv")
    assert index["id"].tolist() == [f"_{i:010d}_{i % 700:06d}" for i in sorted(PRESENT)]


@pytest.mark.parametrize(
    ("split", "train", "val", "test"),
    [
        ("OGM-GE", 4, None, PRESENT[4:6]),
        ("BML-val", 4, PRESENT[6:], PRESENT[4:6]),
    ],
)
def test_the_protocols(root, split, train, val, test):
    bundle = dataset(split=split, val_share=0.4).load(root)
    assert bundle.classes == CLASSES
    assert len(bundle.train) + (len(bundle.val) if val is None else 0) == train
    for part, numbers in (("val", val), ("test", test)):
        if numbers is not None:
            assert bundle.split(part).target.tolist() == [i % 31 for i in numbers]
            levels = [50 + 20 * (PRESENT.index(i) % 4) for i in numbers]
            assert grey(bundle, part).tolist() == pytest.approx(levels, abs=6)


def test_bml_trains_on_what_ogm_tests_on(root):
    """6 clips of which those of classes 12 and 13 are OGM-GE's test clips; too few of a class to hold any out."""
    assert (TRAIN % 31, (TRAIN + 1) % 31) == (12, 13)
    with pytest.raises(UserError, match="at least 2 training samples to hold some out, found 1 of class 12"):
        dataset(split="BML").load(root)


def test_a_batch(root):
    bundle = dataset(val_share=0.4).load(root)
    assert bundle.modalities["audio"].shape == (1, 128, 1024)
    assert bundle.modalities["video"].transform.aspect == pytest.approx(16 / 9)
    batch = next(iter(Loader(bundle, torch.device("cpu"), 4, 0).train(0, ("audio", "video"))))
    assert batch.inputs["audio"].shape == (2, 1, 128, 1024)
    assert batch.inputs["video"].shape == (2, 3, 3, 224, 224)
    assert sorted(batch.target.tolist()) == [0, 1]


def test_training(tmp_path):
    """Dark clips of class 0 and bright ones of class 1 are learned, so labels and pictures belong together."""
    for number in range(0, 310, 31):
        write_video(tmp_path / f"{name(number)}.mp4", seconds=1, fps=3, colour=(40,) * 3)
        write_video(tmp_path / f"{name(number + 1)}.mp4", seconds=1, fps=3, colour=(220,) * 3)
    numbers = [i + c for i in range(0, 310, 31) for c in (0, 1)]
    packed(own(tmp_path, train=numbers[:12], val=numbers[12:14], test=numbers[14:]), tmp_path, split="own")
    bundle = dataset(split="own").load(tmp_path)
    encoders = {m: {"name": "mlp", "width": 16, "depth": 1} for m in bundle.modalities}
    result, _ = train(bundle, "joint", encoders=encoders, epochs=6, batch_size=4, optimizer={"lr": 1e-3})
    assert result["readings"]["last"]["test"]["accuracy"] == 1.0


def test_an_absent_list_is_asked_for(tmp_path):
    """Before anything is decoded, and where a pack was made for another split."""
    own(clips(tmp_path, [0, 31, 62]), train=[0, 31], test=[62])
    with pytest.raises(
        UserError,
        match=r"split=OGM-GE needs samples that its lists name, found none in .*; add OGM-GE's my_train\.txt and "
        r"my_test\.txt \(.*\), or choose --set kinetics_sounds\.split=own$",
    ):
        packed(tmp_path, tmp_path)
    with pytest.raises(UserError, match=r"split=BML needs .*; add BML's KS\.json \("):
        packed(tmp_path, tmp_path, split="BML")
    assert not (tmp_path / "packed").exists()
    packed(tmp_path, tmp_path, split="own")
    with pytest.raises(UserError, match="split=OGM-GE needs its lists beside the source"):
        dataset().load(tmp_path)
    assert len(dataset(split="own").load(tmp_path).test) == 1


# names and layouts of clips


@pytest.mark.parametrize(
    "file",
    ["{0}_{1:06d}_{2:06d}.mp4", "{0}_{1}_{2}.mp4", "{0}_{1:06d}.avi", "a/b/{0}_{1}.mp4", "x/{0}.mp4", "{0}.mkv"],
)
def test_every_usual_name(tmp_path, file):
    own(tmp_path, train=[7, 38], test=[69])
    for number in (7, 38, 69):
        path = tmp_path / file.format(name(number)[:11], number, number + 10)
        write_video(path, seconds=1, fps=6, colour=(number + 30,) * 3)
    done = packed(tmp_path, tmp_path, split="own")
    assert (done.manifest["samples"], len(done.problems)) == (3, 0)
    assert grey(dataset(split="own", val_share=0.5).load(tmp_path), "test").tolist() == pytest.approx([99], abs=6)


def test_an_id_alone_does_not_name_one_of_two_clips(tmp_path):
    own(tmp_path, train=[7, 38], test=[69])
    (tmp_path / "lists" / "test.txt").write_text(f"{name(7, start=300)},10,7\n")
    for stem in (name(7)[:11], name(38)[:11]):
        write_video(tmp_path / f"{stem}.mp4", seconds=1, fps=6)
    done = packed(tmp_path, tmp_path, split="own")
    assert done.problems["id"].tolist() == ["_0000000007_000007", "_0000000007_000300"]
    assert done.manifest["samples"] == 1


def test_a_name_with_the_start_counts_before_one_without(tmp_path):
    own(tmp_path, train=[7, 38], test=[69])
    for number in (7, 38, 69):
        write_video(tmp_path / f"{name(number)}.mp4", seconds=1, fps=6, colour=(120,) * 3)
    write_video(tmp_path / f"{name(69)[:11]}.mp4", seconds=1, fps=6, colour=(40,) * 3)
    packed(tmp_path, tmp_path, split="own")
    assert grey(dataset(split="own", val_share=0.5).load(tmp_path), "test").tolist() == pytest.approx([120], abs=6)


def test_the_same_clip_twice(tmp_path):
    own(tmp_path, train=[7, 38], test=[69])
    write_video(tmp_path / f"{name(7)}.mp4", seconds=1, fps=6)
    write_video(tmp_path / "b" / f"{name(7)[:11]}_7.mp4", seconds=1, fps=6)
    with pytest.raises(UserError, match=r"must be there once, found .*_000007_000017\.mp4 and .*_7\.mp4; remove one"):
        packed(tmp_path, tmp_path, split="own")


def test_a_clip_of_no_list_may_be_there_twice(tmp_path):
    own(tmp_path, train=[7, 38], test=[69])
    for number in (7, 38, 69):
        write_video(tmp_path / f"{name(number)}.mp4", seconds=1, fps=6)
    for folder in "ab":
        write_video(tmp_path / folder / f"{name(99)}.mp4", seconds=1, fps=6)
    assert packed(tmp_path, tmp_path, split="own").manifest["samples"] == 3


@pytest.mark.parametrize("elsewhere", ["clips", "sub/train", "z"])
def test_what_replaces_damaged_clips_goes_before_them(tmp_path, elsewhere):
    """The folder of CVDF's copy of Kinetics."""
    own(tmp_path, train=[7, 38], test=[69])
    for number in (7, 38, 69):
        write_video(tmp_path / elsewhere / f"{name(number)}.mp4", seconds=1, fps=6, colour=(120,) * 3)
    folder = tmp_path / "replacement" / "replacement_for_corrupted_k400"
    write_video(folder / f"{name(69)}.mp4", seconds=1, fps=6, colour=(40,) * 3)
    packed(tmp_path, tmp_path, split="own")
    assert grey(dataset(split="own", val_share=0.5).load(tmp_path), "test").tolist() == pytest.approx([40], abs=6)


def test_titles_may_hold_any_bytes(tmp_path):
    own(tmp_path, train=[7, 38], test=[69])
    for number in (7, 38, 69):
        path = write_video(tmp_path / f"{name(number)}.mp4", seconds=1, fps=6)
        with av.open(str(path)) as given, av.open(str(path.with_suffix(".mkv")), "w") as taken:
            taken.metadata["title"] = "cafe"
            for stream in given.streams:
                taken.add_stream_from_template(stream)
            for packet in given.demux():
                if packet.dts is not None:
                    packet.stream = taken.streams[packet.stream_index]
                    taken.mux(packet)
        path.unlink()
        content = path.with_suffix(".mkv").read_bytes()
        assert content.count(b"cafe") == 1
        path.with_suffix(".mkv").write_bytes(content.replace(b"cafe", b"caf\xe9"))
    done = packed(tmp_path, tmp_path, split="own")
    assert (done.manifest["samples"], len(done.problems)) == (3, 0)


def pictures(folder, level, count=5):
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (32, 24), (level,) * 3).save(folder / f"{i:05d}.jpg")


def test_frames_and_sound_instead_of_videos(tmp_path):
    """OGM-GE's two trees; frames at another rate than the option's are not taken, nor where there is a video."""
    own(tmp_path, train=[7, 38, 100], test=[69])
    pictures(tmp_path / "train" / name(7), 100)
    write_wav(tmp_path / "train" / name(7) / f"{name(7)}.wav", tone(1, 16000))
    pictures(tmp_path / "img" / "Image-03-FPS" / f"{name(38)}.mp4", 120)
    pictures(tmp_path / "img" / "Image-01-FPS" / f"{name(38)}.mp4", 20)
    write_wav(tmp_path / "sound" / f"{name(38)}.wav", tone(1, 16000))
    pictures(tmp_path / "img" / "Image-01-FPS" / name(100), 20)
    write_wav(tmp_path / "sound" / f"{name(100)}.wav", tone(1, 16000))
    write_video(tmp_path / f"{name(69)}.mp4", seconds=1, fps=6, colour=(160,) * 3)
    pictures(tmp_path / "train" / name(69), 20)
    done = packed(tmp_path, tmp_path, split="own")
    assert done.problems.values.tolist() == [
        [f"_{100:010d}_000100", "its video or a folder of its frames must be below the source, it is missing", False]
    ]
    video = np.load(done.folder / "video.npy")
    assert video[:, 0].mean((1, 2, 3)).tolist() == pytest.approx([100, 120, 160], abs=6)
    assert (video[:, :, 0, 0, 0] > 0).sum(1).tolist() == [4, 4, 3]


def test_sound_of_a_file_before_that_of_the_video(tmp_path):
    own(clips(tmp_path, [7, 38, 69]), train=[7, 38], test=[69])
    write_wav(tmp_path / f"{name(38)}.wav", np.zeros(16000, np.float32))
    done = packed(tmp_path, tmp_path, split="own")
    assert done.problems.values.tolist() == [["_0000000038_000038", "silent", True]]


# damaged clips


def test_damaged_clips_are_problems(tmp_path):
    own(clips(tmp_path, [7, 38]), train=[7, 38, 100, 131, 162, 193], test=[69])
    cut(write_video(tmp_path / f"{name(100)}.mp4", seconds=2))
    write_video(tmp_path / f"{name(131)}.mp4", seconds=1, sound=False)
    write_video(tmp_path / f"{name(162)}.mp4", seconds=1, silent=True)
    write_video(tmp_path / f"{name(193)[:11]}.mp4", seconds=LONGEST + 5, fps=2)
    (tmp_path / f"{name(69)}.mp4").write_bytes(b"")
    done = packed(tmp_path, tmp_path, split="own")
    found = {row.id[:11]: (row.problem, row.kept) for row in done.problems.itertuples()}
    assert found.keys() == {f"_{i:010d}" for i in (69, 100, 131, 162, 193)}
    assert found["_0000000162"] == ("silent", True)
    assert "must be the clip of 10 s alone, it lasts 20 s" in found["_0000000193"][0]
    assert found["_0000000069"][0].endswith("must be a media file with sound, it is empty; fetch it again")
    assert "it is damaged or cut short" in found["_0000000100"][0]
    assert "must be a media file with sound, it has no audio track" in found["_0000000131"][0]
    assert done.manifest["samples"] == 3
    with pytest.raises(UserError, match="the test split must hold at least one sample"):
        dataset(split="own").load(tmp_path)


def test_fingerprint_of_bytes_and_lists_not_of_names(tmp_path):
    source = own(clips(tmp_path / "a", [7, 38, 69]), train=[7, 38], test=[69])
    prints = [packed(source, tmp_path / "r0", split="own").manifest["fingerprint"]]
    shutil.copytree(source, tmp_path / "b")
    (tmp_path / "b" / "deep").mkdir()
    shutil.move(tmp_path / "b" / f"{name(7)}.mp4", tmp_path / "b" / "deep" / f"{name(7)[:11]}_7.mp4")
    prints.append(packed(tmp_path / "b", tmp_path / "r1", split="own").manifest["fingerprint"])
    assert prints[0] == prints[1]
    write_video(source / f"{name(38)}.mp4", seconds=1, fps=6, colour=(200,) * 3)
    prints.append(packed(source, tmp_path / "r2", split="own").manifest["fingerprint"])
    own(source, train=[7, 69], test=[38])
    prints.append(packed(source, tmp_path / "r3", split="own").manifest["fingerprint"])
    assert len(set(prints)) == 3
