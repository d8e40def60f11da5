"""UCF101 in the layouts it is distributed in: official lists at full size, pictures, video and flow of a few clips."""

import re
import shutil
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image

from balancebench_udi.data.frames import BOX_DRAWS, segment_centres
from balancebench_udi.data.loader import Loader
from balancebench_udi.data.pack import Pack, prepare
from balancebench_udi.data.ucf101 import CLASSES, SIZES, UCF101, UCF101Options, hold_out_groups, moments, read_lists
from balancebench_udi.errors import UserError
from tests.helpers import train
from tests.media import cut, write_video

NAMES = ("ApplyEyeMakeup", "Archery", "HandstandPushups", *(f"Action{i:03d}" for i in range(3, CLASSES)))
TESTED = {"1": range(1, 8), "2": range(8, 15), "3": range(15, 22)}
"""Groups that each official split tests on."""
GROUPS = ((1, 1), (2, 1), (8, 1), (8, 2), (9, 1), (15, 1), (15, 2), (22, 1))
"""Group and clip of what is on disk."""
PRESENT = [f"v_{name}_g{g:02d}_c{c:02d}" for name in ("Archery", "HandStandPushups") for g, c in GROUPS]
FLOWS = 12
SMALL = {"candidates": 4, "stored_size": 224}
WHOLE = 0.999999
"""A draw that makes the random crop the whole picture."""


def write_lists(folder, edit=None):
    """All 13320 clips; groups are as long as makes the official sizes."""
    folder.mkdir(parents=True)
    clips = {}
    for split in (*SIZES, "none"):
        groups = TESTED.get(split, range(22, 26))
        total = SIZES[split][1] if split in SIZES else 13320 - sum(test for _, test in SIZES.values())
        cells = list(product(NAMES, groups))
        for i, (name, group) in enumerate(cells):
            spelled = name.replace("Handstand", "HandStand")
            for c in range(total // len(cells) + (i < total % len(cells))):
                clips[f"{name}/v_{spelled}_g{group:02d}_c{c + 1:02d}.avi"] = group
    texts = {"classInd.txt": "".join(f"{i + 1} {name}\r\n" for i, name in enumerate(NAMES))}
    for split, groups in TESTED.items():
        texts[f"testlist0{split}.txt"] = "".join(f"{clip}\n" for clip, g in clips.items() if g in groups)
        texts[f"trainlist0{split}.txt"] = "".join(
            f"{clip} {NAMES.index(clip.split('/')[0]) + 1}\n" for clip, g in clips.items() if g not in groups
        )
    for name, text in texts.items():
        (folder / name).write_bytes(b"\xef\xbb\xbf" + text.encode())


@pytest.fixture(scope="session")
def lists(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ucf") / "ucfTrainTestlist"
    write_lists(folder)
    return folder


def grey(path, level, right=None):
    """A picture of one level, or two halves."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.full((48, 64), level, dtype=np.uint8)
    if right is not None:
        picture[:, 32:] = right
    Image.fromarray(picture).save(path, quality=95)


def write_flow(folder, u="u/{clip}/frame{i:06d}.jpg", v="v/{clip}/frame{i:06d}.jpg", clips=PRESENT, count=FLOWS):
    """Frame i of u is 100 + 5 i on the left and 30 on the right, of v 200 - 5 i."""
    for clip, i in product(clips, range(1, count + 1)):
        grey(folder / u.format(clip=clip, i=i), 100 + 5 * i, 30)
        grey(folder / v.format(clip=clip, i=i), 200 - 5 * i)


def write_frames(folder, pattern="{clip}/frame{i:06d}.jpg", clips=PRESENT, count=FLOWS + 1):
    """Frame i is grey 10 + 15 i."""
    for clip, i in product(clips, range(1, count + 1)):
        path = folder / pattern.format(clip=clip, i=i)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48), (10 + 15 * i,) * 3).save(path, quality=95)


def build(source, root, **options):
    dataset = UCF101(UCF101Options(**(SMALL | options)))
    return dataset, prepare(dataset, source, root, workers=1, quiet=True)


def opened(source, root, **options):
    dataset, made = build(source, root, **options)
    return Pack.open(made.folder, dataset)


def reasons(made):
    """Problems other than of the clips that these sources never hold."""
    rows = made.problems[made.problems["id"].isin(PRESENT)]
    return dict(zip(rows["id"], rows["problem"], strict=True))


@pytest.fixture(scope="session")
def source(lists, tmp_path_factory):
    root = tmp_path_factory.mktemp("source")
    shutil.copytree(lists, root / "ucfTrainTestlist")
    write_frames(root / "jpegs_256")
    write_flow(root / "tvl1_flow")
    return root


@pytest.fixture(scope="session")
def made(source, tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    return root, build(source, root)[1]


@pytest.fixture
def copy(source, tmp_path):
    return shutil.copytree(source, tmp_path / "source")


def load(made, **options):
    return UCF101(UCF101Options(**(SMALL | {"val_share": 0.3} | options))).load(made[0])


def clip_folder(source, part, clip):
    return source / {"rgb": "jpegs_256", "u": "tvl1_flow/u", "v": "tvl1_flow/v"}[part] / clip


# lists


def test_official_sizes_and_groups(lists):
    classes, clips = read_lists(lists)
    assert classes == NAMES
    assert len(clips) == 13320
    for split, sizes in SIZES.items():
        groups = {part: {c["group"] for c in clips.values() if c[split] == part} for part in ("train", "test")}
        assert groups["test"] == {f"g{g:02d}" for g in TESTED[split]}
        assert not groups["train"] & groups["test"]
        assert tuple(sum(c[split] == part for c in clips.values()) for part in ("train", "test")) == sizes
    assert clips["v_HandStandPushups_g08_c01"] == {
        "class": "HandstandPushups",
        "group": "g08",
        "1": "train",
        "2": "test",
        "3": "train",
    }


def test_a_split_without_lists_is_not_offered(lists, copy, tmp_path):
    for part in ("train", "test"):
        (copy / "ucfTrainTestlist" / f"{part}list02.txt").unlink()
    assert set(next(iter(read_lists(copy / "ucfTrainTestlist")[1].values()))) == {"class", "group", "1", "3"}
    with pytest.raises(
        UserError,
        match=r"split=2 needs .*; add trainlist02\.txt and testlist02\.txt in ucfTrainTestlist/, or choose --set "
        r"ucf101\.split=1 or 3$",
    ):
        build(copy, tmp_path / "root", split="2")
    _, made = build(copy, tmp_path / "root")
    with pytest.raises(UserError, match="split=2 needs its lists beside the source"):
        load((tmp_path / "root", made), split="2")


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        ("classInd.txt", lambda t: t.replace("5 Action004", "6 Action004"), "must name 101 classes"),
        ("classInd.txt", lambda t: t[: t.index("100 ")], "must name 101 classes"),
        ("trainlist01.txt", lambda t: t[: t.rindex("\n", 0, -1) + 1], "must list the 9537 official clips, found 9536"),
        ("testlist03.txt", lambda t: t + "Archery/v_Archery_g01_c01.avi\n", "the 3696 official clips, found 3697"),
        ("testlist01.txt", lambda t: t.replace(".avi", "", 1), "lines such as .* found '.*' in line 1$"),
        ("testlist01.txt", lambda t: t.replace("v_Apply", "v_Archery", 1), "lines such as .* in line 1$"),
        ("trainlist02.txt", lambda t: t.replace(".avi 1\n", ".avi 2\n", 1), "must be those of classInd.txt.* line 1$"),
        ("testlist02.txt", lambda t: t.replace("ApplyEyeMakeup", "Juggling", 2), "must be those of classInd.txt"),
        ("testlist01.txt", lambda t: t.replace("_g01_c02", "_g01_c01", 1), "found v_ApplyEyeMakeup_g01_c01 again"),
        ("testlist01.txt", lambda t: t.replace("_g01_", "_g08_", 1), "found v_ApplyEyeMakeup_g08_c01 in both"),
        ("testlist01.txt", None, "testlist01.txt must be one of UCF101's lists, it is absent"),
        ("trainlist03.txt", None, "trainlist03.txt must be one of UCF101's lists, it is absent"),
    ],
)
def test_damaged_lists(lists, tmp_path, file, edit, message):
    folder = shutil.copytree(lists, tmp_path / "lists")
    if edit is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(edit((folder / file).read_text(encoding="utf-8-sig")))
    with pytest.raises(UserError, match=message):
        read_lists(folder)


def test_absent(lists, tmp_path):
    with pytest.raises(UserError, match=r"must hold UCF101 .* found no classInd\.txt in ucfTrainTestlist"):
        UCF101().listing(tmp_path)
    (tmp_path / "x").mkdir()
    shutil.copy(lists / "classInd.txt", tmp_path / "x")
    with pytest.raises(UserError, match="found no such pair"):
        read_lists(tmp_path / "x")
    with pytest.raises(UserError, match=r"needs --data-root DIR with what prepare\.py made of UCF101"):
        UCF101().load(None)
    with pytest.raises(UserError, match=r"prepare\.py ucf101 --source DIR"):
        UCF101().load(tmp_path)


# what is stored


@pytest.mark.parametrize(
    ("frames", "flows", "most", "expected"),
    [
        (13, 12, 4, ([1, 4, 7, 10], [1, 4, 7, 10])),
        (12, 12, 4, ([1, 4, 7, 10], [1, 4, 7, 10])),
        (100, 99, 3, ([16, 49, 82], [16, 49, 82])),
        (6, 150, 6, ([0, 1, 2, 3, 4, 5], [0, 25, 50, 75, 100, 125])),
        (6, 150, 3, ([1, 3, 5], [25, 75, 125])),
        (30, 10, 2, ([6, 21], [2, 7])),
        (2, 9, 6, ([0, 1], [0, 4])),
        (1, 1, 6, ([0], [0])),
    ],
)
def test_moments(frames, flows, most, expected):
    assert moments(frames, flows, most) == expected


def test_both_modalities_hold_the_same_moments(source, made):
    """One more picture than flow: candidates are the pictures and flows 1, 4, 7 and 10 of 12."""
    pack = Pack.open(made[1].folder, UCF101(UCF101Options(**SMALL)))
    at = torch.tensor([1, 4, 7, 10]) + 1
    rgb, flow = (pack.inputs[m].to(torch.float32) for m in ("rgb", "flow"))
    assert rgb.shape == (len(PRESENT), 4, 224, 224, 3)
    assert flow.shape == (len(PRESENT), 4, 224, 224, 2)
    for row in range(len(PRESENT)):
        assert torch.allclose(rgb[row].mean((1, 2, 3)), (10.0 + 15 * at), atol=1.5)
        left, right, v = flow[row, :, :, :100, 0], flow[row, :, :, 124:, 0], flow[row, :, :, :, 1]
        assert torch.allclose(left.mean((1, 2)), 100.0 + 5 * at, atol=1.5)
        assert torch.allclose(right.mean((1, 2)), torch.tensor(30.0), atol=1.5)
        assert torch.allclose(v.mean((1, 2)), 200.0 - 5 * at, atol=1.5)


def test_index_and_problems(made):
    _, prepared = made
    pack = Pack.open(prepared.folder, UCF101(UCF101Options(**SMALL)))
    assert pack.index["id"].tolist() == sorted(PRESENT)
    assert [NAMES[y] for y in pack.target] == ["Archery"] * 8 + ["HandstandPushups"] * 8
    assert pack.index["group"].tolist() == [f"g{g:02d}" for g, _ in GROUPS] * 2
    assert len(prepared.problems) == prepared.manifest["left_out"] == 13320 - len(PRESENT)
    assert prepared.problems["problem"].str.contains("its frames must be in jpegs_256").all()
    assert set(prepared.manifest["splits"]) == {"1", "2", "3"}


def test_short_clips_leave_slots_empty(copy, tmp_path):
    short = PRESENT[0]
    for part, limit in (("rgb", 3), ("u", 2), ("v", 2)):
        for path in clip_folder(copy, part, short).iterdir():
            if int(path.stem[5:]) > limit:
                path.unlink()
    pack = opened(copy, tmp_path)
    for m in ("rgb", "flow"):
        assert (pack.inputs[m][0, :, 0, 0, 0] > 0).tolist() == [True, True, False, False]
        assert (pack.inputs[m][1, :, 0, 0, 0] > 0).all()


JOINT = {"u": "{clip}/flow_x_{i:05d}.jpg", "v": "{clip}/flow_y_{i:05d}.jpg"}


@pytest.mark.parametrize("layout", ["rawframes", "classes", "flow", "unpadded", "below"])
def test_layouts_hold_the_same(lists, made, tmp_path, layout):
    """Wherever a distribution puts pictures and flow, the pack is the same, fingerprint included."""
    source = tmp_path / "ucf101" if layout == "below" else tmp_path
    shutil.copytree(lists, source / ("annotations" if layout == "rawframes" else "ucfTrainTestlist"))
    if layout == "rawframes":
        write_frames(source / "rawframes" / "Any", "{clip}/img_{i:05d}.jpg")
        write_flow(source / "rawframes" / "Any", **JOINT)
    elif layout == "classes":
        write_frames(source / "jpegs_256", "Some/{clip}/frame{i:06d}.jpg")
        write_flow(source / "tvl1_flow", "u/Some/{clip}/frame{i:06d}.jpg", "v/Some/{clip}/frame{i:06d}.jpg")
    elif layout == "unpadded":
        write_frames(source / "jpegs_256", "{clip}/image{i}.jpg")
        write_flow(source / "tvl1_flow", "u/{clip}/{i}.jpg", "v/{clip}/{i}.jpg")
    else:
        write_frames(source / "jpegs_256")
        write_flow(source / "flow", **JOINT)
    _, found = build(tmp_path, tmp_path / "root")
    assert found.manifest["samples"] == len(PRESENT)
    assert found.manifest["fingerprint"] == made[1].manifest["fingerprint"]
    for m in ("rgb", "flow"):
        assert (found.folder / f"{m}.npy").read_bytes() == (made[1].folder / f"{m}.npy").read_bytes()


@pytest.mark.parametrize(("flows", "joint"), [(24, False), (25, True), (8, False)])
def test_videos(lists, tmp_path, flows, joint):
    """Of 25 decoded frames the one at the moment of each flow; 8 flows are every third frame.

    ``rawframes`` may hold flow alone.
    """
    clips = PRESENT[:2]
    shutil.copytree(lists, tmp_path / "ucfTrainTestlist")
    for clip in clips:
        write_video(tmp_path / "UCF-101" / "Archery" / f"{clip}.avi", seconds=1, sound=False)
    write_flow(tmp_path / ("rawframes" if joint else "tvl1_flow"), clips=clips, count=flows, **(JOINT if joint else {}))
    pack = opened(tmp_path, tmp_path / "root")
    at = segment_centres(torch.tensor([flows]), 4)[0]
    right = pack.inputs["rgb"][:, :, 50:170, 140:200].to(torch.float32).mean((2, 3, 4))
    assert torch.allclose(right, (40.0 + 4 * (at * 25 // flows)).expand(2, 4), atol=2.0)
    u = pack.inputs["flow"][:, :, :, :100, 0].to(torch.float32).mean((2, 3))
    assert torch.allclose(u, (100.0 + 5 * (at + 1)).expand(2, 4), atol=1.5)


def test_pictures_before_videos(copy, made, tmp_path):
    for clip in PRESENT[:2]:
        write_video(copy / "UCF-101" / "Archery" / f"{clip}.avi", seconds=1, sound=False)
    shutil.rmtree(clip_folder(copy, "rgb", PRESENT[1]))
    pack = opened(copy, tmp_path)
    before = Pack.open(made[1].folder, UCF101(UCF101Options(**SMALL)))
    assert torch.equal(pack.inputs["rgb"][0], before.inputs["rgb"][0])
    assert not torch.equal(pack.inputs["rgb"][1], before.inputs["rgb"][1])


def test_the_spelling_of_handstand_pushups(copy, made, tmp_path):
    for part, clip in product(("rgb", "u", "v"), PRESENT[8:]):
        folder = clip_folder(copy, part, clip)
        folder.rename(folder.with_name(clip.replace("HandStand", "Handstand")))
    _, found = build(copy, tmp_path)
    assert found.manifest["fingerprint"] == made[1].manifest["fingerprint"]


# what is not as it should be


def test_missing_and_damaged_clips(copy, tmp_path):
    no_u, no_v, no_flow, no_frames, gap, bad_u, bad_frame, extra, empty = PRESENT[:9]
    shutil.rmtree(clip_folder(copy, "u", no_u))
    shutil.rmtree(clip_folder(copy, "v", no_v))
    for part in ("u", "v"):
        shutil.rmtree(clip_folder(copy, part, no_flow))
    shutil.rmtree(clip_folder(copy, "rgb", no_frames))
    (clip_folder(copy, "v", gap) / "frame000006.jpg").unlink()
    cut(clip_folder(copy, "u", bad_u) / "frame000005.jpg", 0.3)
    cut(clip_folder(copy, "rgb", bad_frame) / "frame000008.jpg", 0.3)
    (clip_folder(copy, "u", extra) / "flow.bin").write_bytes(b"0")
    for path in clip_folder(copy, "rgb", empty).iterdir():
        path.unlink()
    _, made = build(copy, tmp_path)
    found = reasons(made)
    assert made.manifest["samples"] == len(PRESENT) - len(found)
    expected = {
        no_u: "its optical flow must be in .*, u of it is missing",
        no_v: "its optical flow must be in .*, v of it is missing",
        no_flow: "its optical flow must be in .*, u and v of it is missing",
        no_frames: "its frames must be in jpegs_256",
        gap: "u and v of its flow must be of the same frames, found 12 and 11",
        bad_u: r"u/.*frame000005\.jpg must be a whole picture",
        bad_frame: r"frame000008\.jpg must be a whole picture",
        empty: "its frames must be in jpegs_256",
    }
    assert set(found) == set(expected)
    for clip, message in expected.items():
        assert re.search(message, found[clip]), found[clip]


def test_videos_cut_short(lists, tmp_path):
    clips = PRESENT[:3]
    shutil.copytree(lists, tmp_path / "ucfTrainTestlist")
    for clip in clips:
        write_video(tmp_path / "UCF-101" / "Archery" / f"{clip}.avi", seconds=3, sound=False)
    cut(tmp_path / "UCF-101" / "Archery" / f"{clips[0]}.avi", 0.5)
    (tmp_path / "UCF-101" / "Archery" / f"{clips[1]}.avi").write_bytes(b"")
    write_flow(tmp_path / "tvl1_flow", clips=clips)
    _, made = build(tmp_path, tmp_path / "root")
    assert made.manifest["samples"] == 1
    assert {clip: "must be a whole video" in text for clip, text in reasons(made).items() if clip in clips} == {
        clips[0]: True,
        clips[1]: True,
    }


def test_fingerprint_follows_the_bytes(copy, made, tmp_path):
    assert build(copy, tmp_path / "a")[1].manifest["fingerprint"] == made[1].manifest["fingerprint"]
    grey(clip_folder(copy, "v", PRESENT[3]) / "frame000005.jpg", 7)
    assert build(copy, tmp_path / "b")[1].manifest["fingerprint"] != made[1].manifest["fingerprint"]


# splits


@pytest.mark.parametrize("split", tuple(SIZES))
def test_splits_are_official_and_validation_is_whole_groups(made, split):
    bundle = load(made, split=split)
    index = Pack.open(made[1].folder, UCF101(UCF101Options(**SMALL))).index
    ids = {part: index["id"].to_numpy()[bundle.split(part).rows.numpy()] for part in ("train", "val", "test")}
    assert {int(i[-6:-4]) for i in ids["test"]} == {g for g, _ in GROUPS if g in TESTED[split]}
    of = {part: {(i[:5], i[-7:-4]) for i in ids[part]} for part in ids}
    assert not of["train"] & of["val"]
    assert not (of["train"] | of["val"]) & of["test"]
    assert sorted(np.concatenate(list(ids.values()))) == sorted(PRESENT)
    for part, names in ids.items():
        assert bundle.split(part).target.tolist() == [1 if "Archery" in i else 2 for i in names]
        assert len(bundle.split(part).target.unique()) == 2
    assert len(bundle.classes) == CLASSES


def test_hold_out_groups():
    """The official shape: 18 groups of 4 to 7 clips in every class."""
    sizes = np.random.default_rng(0).integers(4, 8, size=(5, 18))
    target = np.repeat(np.arange(5), sizes.sum(1))
    groups = np.concatenate([np.repeat([f"g{g + 8:02d}" for g in range(18)], row) for row in sizes])
    seen = set()
    for seed in range(20):
        held = hold_out_groups(target, groups, 0.1, seed)
        seen.add(held.tobytes())
        assert np.array_equal(held, hold_out_groups(target, groups, 0.1, seed))
        for c in range(5):
            inside = target == c
            assert not set(groups[inside & held]) & set(groups[inside & ~held])
            assert 0.1 * inside.sum() <= (inside & held).sum() < 0.1 * inside.sum() + 7
        assert len({tuple(np.unique(groups[held & (target == c)])) for c in range(5)}) > 1
    assert len(seen) == 20
    few = hold_out_groups(np.zeros(9, int), np.array(list("aaaaaaaab")), 0.5, 0)
    assert 0 < few.sum() < 9
    with pytest.raises(UserError, match="at least 2 groups to hold one out, found 1 of class 3"):
        hold_out_groups(np.full(4, 3), np.array(list("aaaa")), 0.1, 0)


def test_seed_share_and_split_change_the_fingerprint(made):
    options = ({}, {"val_seed": 1}, {"val_share": 0.5}, {"split": "2"}, {"pick": "random"}, {"n_frames": 1})
    assert len({load(made, **o).fingerprint for o in options}) == len(options)
    assert load(made).fingerprint == load(made).fingerprint


def test_what_needs_another_pack():
    def key(**options):
        return UCF101(UCF101Options(**options)).key()

    assert len({key(), key(candidates=4), key(stored_size=224)}) == 3
    assert {key(split="2"), key(n_frames=1), key(pick="start"), key(same_crop=True), key(val_seed=3)} == {key()}


@pytest.mark.parametrize("options", [{"split": "4"}, {"val_share": 0.0}, {"val_share": 0.9}, {"stored_size": 100}])
def test_refused_options(options):
    with pytest.raises(UserError, match=f"{next(iter(options))} must be"):
        UCF101Options(**options)


# what the encoders see


def crop_draws(transform, flip):
    """Draws of one sample that leave the picture whole, mirrored or not."""
    draws = torch.full((1, transform.draws), WHOLE)
    draws[0, max(transform.candidates, transform.n_frames) :].view(-1, BOX_DRAWS)[:, -1] = 0.0 if flip else 0.9
    return draws


def test_mirrored_flow_turns_u(made):
    """u is 105 + 5 i on the left and 30 on the right: mirrored, the halves change places and u its sign, v stays."""
    bundle = load(made)
    transform = bundle.modalities["flow"].transform
    stored = bundle.train.stored("flow", torch.tensor([0]))
    plain = transform(stored, crop_draws(transform, flip=False))[0]
    turned = transform(stored, crop_draws(transform, flip=True))[0]
    assert plain.shape == (2, 3, 224, 224)
    assert torch.allclose(turned[0], -plain[0].flip(-1), atol=1e-3)
    assert torch.allclose(turned[1], plain[1].flip(-1), atol=1e-3)
    left, right = plain[0, 0, :, :100].mean(), plain[0, 0, :, 124:].mean()
    level = int(stored[0, 0, 100, 50, 0])  # the first third of 4
    assert left == pytest.approx(level / 127.5 - 1, abs=0.02)
    assert right == pytest.approx(30 / 127.5 - 1, abs=0.02)
    assert turned[0, 0, :, 124:].mean() == pytest.approx(-(level / 127.5 - 1), abs=0.02)
    assert plain[1].mean() > 0.1


def test_frames_are_mirrored_without_a_change_of_sign(lists, tmp_path):
    """The video is bright on its left; mirrored it is bright on its right."""
    clips = [c for c in PRESENT if "Archery" in c]
    shutil.copytree(lists, tmp_path / "ucfTrainTestlist")
    for clip in clips:
        write_video(tmp_path / "UCF-101" / "Archery" / f"{clip}.avi", seconds=1, sound=False)
    write_flow(tmp_path / "tvl1_flow", clips=clips, count=24)
    _, prepared = build(tmp_path, tmp_path / "root")
    bundle = load((tmp_path / "root", prepared))
    transform = bundle.modalities["rgb"].transform
    stored = bundle.train.stored("rgb", torch.tensor([0]))
    plain = transform(stored, crop_draws(transform, flip=False))[0]
    turned = transform(stored, crop_draws(transform, flip=True))[0]
    assert torch.allclose(turned, plain.flip(-1), atol=1e-3)
    bright = (240 / 255 - 0.485) / 0.229
    assert plain[0, :, :, 20:90].mean() == pytest.approx(bright, abs=0.05)
    assert turned[0, :, :, 134:204].mean() == pytest.approx(bright, abs=0.05)


def test_evaluation_sees_one_moment_in_both(made):
    """Of 4 candidates the first 3, thirds of one frame each, in both modalities."""
    bundle = load(made)
    stored = {m: bundle.test.stored(m, torch.tensor([0])) for m in ("rgb", "flow")}
    seen = {m: bundle.modalities[m].transform(x)[0] for m, x in stored.items()}
    at = torch.tensor([1, 4, 7]) + 1
    red = seen["rgb"][0].mean((1, 2)) * 0.229 + 0.485
    assert torch.allclose(red * 255, 10.0 + 15 * at, atol=1.5)
    v = seen["flow"][1].mean((1, 2)) * 127.5 + 127.5
    assert torch.allclose(v, 200.0 - 5 * at, atol=1.5)


@pytest.mark.parametrize("m", ["rgb", "flow"])
def test_of_six_candidates_evaluation_sees_the_first_of_each_third(m):
    """BalanceBenchmark's 1, 3 and 5 of the files 1 to 6."""
    transform = UCF101().modalities(None)[m].transform
    stored = torch.arange(10, 70, 10, dtype=torch.uint8).view(1, 6, 1, 1, 1).expand(1, 6, 224, 224, len(transform.mean))
    assert transform.choose(stored, torch.tensor([0]), None)[0, :, 0, 0, 0].tolist() == [10, 30, 50]


def test_a_batch_and_an_epoch(made):
    bundle = load(made, n_frames=2)
    assert {m: (x.kind, x.shape, x.encoder) for m, x in bundle.modalities.items()} == {
        "rgb": ("frames", (3, 2, 224, 224), "resnet18"),
        "flow": ("flow", (2, 2, 224, 224), "resnet18"),
    }
    batch = next(Loader(bundle, torch.device("cpu"), 4, seed=0).train(0, ("rgb", "flow")))
    assert {m: tuple(x.shape) for m, x in batch.inputs.items()} == {
        "rgb": (4, 3, 2, 224, 224),
        "flow": (4, 2, 2, 224, 224),
    }
    assert batch.inputs["flow"].abs().max() <= 1.0
    small = {"name": "mlp", "width": 4, "depth": 1}
    result, _ = train(bundle, "joint", epochs=1, batch_size=8, encoders=dict.fromkeys(bundle.modalities, small))
    scores = result["readings"]["last"]["test"]
    assert {"share/rgb", "share/flow"} <= set(scores)
    assert np.isfinite([*scores.values(), result["curves"][0]["train"]["loss"]]).all()
    assert all(count >= len(bundle.train) for count in result["passes"]["backward"].values())
