"""VGGSound: the list as published (commas in labels, 309 classes), clips under their usual names, the 5 s of sound."""

import csv
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from balancebench_udi.data.loader import Loader
from balancebench_udi.data.pack import prepare
from balancebench_udi.data.sound import SPECTROGRAMS
from balancebench_udi.data.vggsound import CLASSES, SIZES, VGGSound, read_list
from balancebench_udi.errors import UserError
from tests.media import cut, tone, write_video, write_wav

LABELS = ["waterfall burbling", "female speech, woman speaking", "bee, wasp, etc. buzzing", "people marching"]
LABELS += [f"class {i}" for i in range(len(LABELS), CLASSES)]
TRAIN = SIZES["train"]


def title(number):
    return f"-{number:010d}"


def official(path, *drop):
    """As many train lines, then test lines as published; clip i has class i % 309 and starts at second i.

    Lines of a (class, part) to drop are left out.
    """
    with path.open("w", newline="") as handle:
        rows = csv.writer(handle)
        for number in range(TRAIN + SIZES["test"]):
            part = "test" if number >= TRAIN else "train"
            if (number % CLASSES, part) not in drop:
                rows.writerow([title(number), number, LABELS[number % CLASSES], part])
    return path.parent


def own(folder, *rows):
    """``own.csv`` of (number, class, part)."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "own.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([title(n), n, LABELS[c], part] for n, c, part in rows)
    return folder


THREE = ((7, 1, "train"), (8, 1, "train"), (9, 1, "test"))


def video(path, level=100, seconds=1):
    return write_video(path, seconds=seconds, fps=6, colour=(level,) * 3)


def dataset(**options):
    return VGGSound(VGGSound.Options(**{"stored_size": 224, "candidates": 3} | options))


def packed(source, root, **options):
    return prepare(dataset(**options), source, root, 1, quiet=True)


PRESENT = [0, 1, CLASSES, CLASSES + 1, 600 * CLASSES, 600 * CLASSES + 1]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The official list, and six clips of two classes: 50, 70, ... grey in the order of PRESENT."""
    source = official(tmp_path_factory.mktemp("vggsound") / "vggsound.csv")
    for i, number in enumerate(PRESENT):
        video(source / "video" / f"{title(number)}_{number:06d}.mp4", 50 + 20 * i)
    return source


# the list


def test_lines_as_published(tmp_path):
    (tmp_path / "x.csv").write_bytes(
        b"\xef\xbb\xbf---g-f_I2yQ,1,people marching,test\r\n"
        b'--0PQM4-hqg,30,"bee, wasp, etc. buzzing",train\r\n\r\n'
        b"--0PQM4-hqg,31,waterfall burbling,train\r\n"
    )
    assert list(read_list(tmp_path / "x.csv").items()) == [
        (("---g-f_I2yQ", 1), ("people marching", "test")),
        (("--0PQM4-hqg", 30), ("bee, wasp, etc. buzzing", "train")),
        (("--0PQM4-hqg", 31), ("waterfall burbling", "train")),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "--0PQM4-hqg,30,bee, wasp, etc. buzzing,train",
            "commas of a label in quotes, found '--0PQM4-hqg,30,bee, wasp",
        ),
        ("--0PQM4-hqg,30,train", "in line 2"),
        ("--0PQM4-hqg,x,dog barking,train", "found '--0PQM4-hqg,x,dog barking,train' in line 2"),
        ("--0PQM4-hqg,,dog barking,train", "in line 2"),
        ("0PQM4-hqg,30,dog barking,train", "in line 2"),
        ("--0PQM4-hqg,30, ,train", "in line 2"),
        ("--0PQM4-hqg,30,dog barking,dev", "must be train, val, test, found 'dev' in line 2"),
        ("---g-f_I2yQ,01,dog barking,train", "found ---g-f_I2yQ from 01 s again in line 2"),
    ],
)
def test_malformed_lines(tmp_path, line, message):
    (tmp_path / "x.csv").write_text(f"---g-f_I2yQ,1,people marching,test\n{line}\n")
    with pytest.raises(UserError, match=message):
        read_list(tmp_path / "x.csv")


def test_the_published_list_must_be_whole(tmp_path):
    with pytest.raises(UserError, match=r"must hold clips of VGGSound .*; found no vggsound\.csv"):
        packed(tmp_path, tmp_path)
    official(tmp_path / "vggsound.csv", (2, "test"))
    with pytest.raises(
        UserError, match="the same 309 classes in train and in test, and no val, found 309 in train, 0 in"
    ):
        packed(tmp_path, tmp_path)
    official(tmp_path / "vggsound.csv", (2, "test"), (2, "train"))
    with pytest.raises(UserError, match="found 308 in train, 0 in val, 308 in test"):
        packed(tmp_path, tmp_path)
    official(tmp_path / "vggsound.csv")
    with (tmp_path / "vggsound.csv").open("a") as handle:
        handle.write("--0PQM4-hqg,30,dog barking,train\n")
    with pytest.raises(UserError, match="found 310 in train, 0 in val, 309 in test"):
        packed(tmp_path, tmp_path)


@pytest.mark.parametrize(("line", "found"), [(0, "183970 and 15496"), (-1, "183971 and 15495")])
def test_a_published_list_that_was_cut(tmp_path, line, found):
    path = official(tmp_path / "vggsound.csv") / "vggsound.csv"
    lines = path.read_text().splitlines(keepends=True)
    lines.pop(line)
    path.write_text("".join(lines))
    with pytest.raises(
        UserError, match=rf"must list 183971 clips in train and 15496 in test, found {found}; .* set split=own$"
    ):
        packed(tmp_path, tmp_path)


def test_a_class_that_is_not_trained_on(tmp_path):
    own(tmp_path, *THREE, (10, 2, "val"))
    with pytest.raises(UserError, match=r"must be in train, found 'bee, wasp, etc\. buzzing' in val only"):
        packed(tmp_path, tmp_path, split="own")


# what is packed and loaded


def test_a_pack_of_a_partial_download(source, tmp_path):
    done = packed(source, tmp_path)
    assert done.manifest["classes"] == LABELS
    assert done.manifest["splits"] == {"official": {"train": 4, "test": 2}}
    assert done.manifest["left_out"] == len(done.problems) == sum(SIZES.values()) - 6
    bundle = dataset(val_share=0.5).load(tmp_path)
    assert bundle.classes == tuple(LABELS)
    assert [len(bundle.split(part)) for part in ("train", "val", "test")] == [2, 2, 2]
    assert bundle.test.target.tolist() == [0, 1]
    frames = bundle.test.stored("video", torch.arange(2))[:, 0].float().mean((1, 2, 3))
    assert frames.tolist() == pytest.approx([130, 150], abs=6)
    assert bundle.modalities["video"].transform.aspect == pytest.approx(16 / 9)


def test_five_seconds_at_random_in_training_and_the_middle_in_test(tmp_path):
    """The tone rises in the middle of each clip, so that where the 5 s were taken can be seen."""
    own(tmp_path, *THREE)
    for number, _, _ in THREE:
        video(tmp_path / f"{title(number)}_{number}.mp4", seconds=2)
        wave = np.concatenate([tone(5, 16000, 500.0), tone(5, 16000, 4000.0)])
        write_wav(tmp_path / f"{title(number)}_{number}.wav", wave)
    packed(tmp_path, tmp_path, split="own")
    bundle = dataset(split="own", val_share=0.5).load(tmp_path)
    assert bundle.modalities["audio"].shape == (1, 129, 626)
    loader = Loader(bundle, torch.device("cpu"), 4, 0)

    def change(batch):
        """Frame from which the higher tone is louder: bins of 62.5 Hz."""
        return (batch.inputs["audio"][:, 0, 64] > batch.inputs["audio"][:, 0, 8]).int().argmax(1).tolist()

    assert change(next(iter(loader.ordered("test", ("audio",))))) == pytest.approx([313], abs=2)
    trained = [change(next(iter(loader.train(epoch, ("audio",)))))[0] for epoch in range(6)]
    assert len(set(trained)) > 3


def test_own_list_is_a_pack_of_its_own(tmp_path):
    own(tmp_path, (9, 1, "test"), (7, 3, "train"), (8, 1, "train"), (10, 3, "val"))
    for number in (7, 8, 9, 10):
        video(tmp_path / f"{title(number)}.mp4")
    packed(tmp_path, tmp_path, split="own")
    bundle = dataset(split="own").load(tmp_path)
    assert bundle.classes == (LABELS[3], LABELS[1])
    assert (bundle.train.target.tolist(), bundle.val.target.tolist(), bundle.test.target.tolist()) == ([0, 1], [0], [1])
    with pytest.raises(UserError, match="must be prepared with these options"):
        dataset().load(tmp_path)


@pytest.mark.parametrize("file", ["{0}_{1:06d}.mp4", "a/{0}_{1}.mkv", "{0}_{1:06d}_{2:06d}.mp4", "b/c/{0}.mp4"])
def test_usual_names(tmp_path, file):
    own(tmp_path, *THREE)
    for number, _, _ in THREE:
        video(tmp_path / file.format(title(number), number, number + 10))
    done = packed(tmp_path, tmp_path, split="own")
    assert (done.manifest["samples"], len(done.problems)) == (3, 0)


def test_other_names_are_not_guessed(tmp_path):
    own(tmp_path, *THREE)
    for number, _, _ in THREE:
        video(tmp_path / f"{title(number)}_{number + 1}.mp4")
        video(tmp_path / f"Y{title(number)}_{number}.mp4")
    with pytest.raises(
        UserError, match=rf"such as {title(THREE[0][0])}_000\d+, found 3 others, such as .*\.mp4; rename"
    ):
        packed(tmp_path, tmp_path, split="own")


def test_extracted_frames_in_folders_named_like_videos(tmp_path):
    """OGM-GE's tree of images and sound."""
    own(tmp_path, *THREE)
    for number, _, _ in THREE:
        folder = tmp_path / "train-set-img" / "Image-03-FPS" / f"{title(number)}_{number}.mp4"
        folder.mkdir(parents=True)
        Image.new("RGB", (32, 24), (90,) * 3).save(folder / "00000.jpg")
        write_wav(tmp_path / "train-set" / f"{title(number)}_{number}.wav", tone(1, 16000))
    done = packed(tmp_path, tmp_path, split="own")
    assert (done.manifest["samples"], len(done.problems)) == (3, 0)
    with pytest.raises(UserError, match=r"found none of 3 samples, the first: .* it is missing"):
        packed(tmp_path, tmp_path / "r", split="own", fps=1)


def test_damaged_clips_are_problems(tmp_path):
    own(tmp_path, *THREE, *((n, 1, "test") for n in range(10, 15)))
    for number, _, _ in THREE:
        video(tmp_path / f"{title(number)}_{number}.mp4")
    cut(write_video(tmp_path / f"{title(10)}_10.mp4", seconds=2))
    write_video(tmp_path / f"{title(11)}_11.mp4", seconds=1, sound=False)
    write_video(tmp_path / f"{title(12)}_12.mp4", seconds=1, silent=True)
    video(tmp_path / f"{title(13)}.mp4", seconds=30)
    done = packed(tmp_path, tmp_path, split="own")
    found = {row.id: (row.problem, row.kept) for row in done.problems.itertuples()}
    assert list(found) == [f"{title(n)}_{n:06d}" for n in range(10, 15)]
    assert [kept for _, kept in found.values()] == [False, False, True, False, False]
    for text, (problem, _) in zip(("damaged", "sound", "silent", "lasts 30 s", "missing"), found.values(), strict=True):
        assert text in problem
    assert done.manifest["samples"] == 4


def test_fingerprint(tmp_path):
    source = own(tmp_path / "a", *THREE)
    for number, _, _ in THREE:
        video(source / f"{title(number)}_{number}.mp4", 10 * number)
    shutil.copytree(source, tmp_path / "elsewhere")
    prints = [packed(source, tmp_path / "r0", split="own").manifest["fingerprint"]]
    prints.append(packed(tmp_path / "elsewhere", tmp_path / "r1", split="own").manifest["fingerprint"])
    assert prints[0] == prints[1]
    own(source, *THREE[:2], (9, 2, "test"), (10, 2, "train"))
    prints.append(packed(source, tmp_path / "r2", split="own").manifest["fingerprint"])
    own(source, *THREE)
    video(source / f"{title(9)}_9.mp4", 200)
    prints.append(packed(source, tmp_path / "r3", split="own").manifest["fingerprint"])
    prints.append(packed(source, tmp_path / "r4", split="own", audio="fbank").manifest["fingerprint"])
    assert len(set(prints)) == 4
    assert SPECTROGRAMS[VGGSound.Options().audio].crop == 626
