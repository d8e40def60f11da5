"""CMU-MOSI on the real features: published counts, whole videos held out, train statistics, broken files."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from balancebench_udi.data.mosi import MOSI, MOSIOptions, hold_out_videos
from balancebench_udi.errors import UserError

SPLITS = ("train", "val", "test")
FOLDER = "cmu_mosi_utterance"


@pytest.fixture(scope="module")
def root(data_root):
    if not (data_root / FOLDER).is_dir():
        pytest.skip(f"{data_root / FOLDER} is absent")
    return data_root


@pytest.fixture(scope="module")
def bundle(root):
    return MOSI().load(root)


@pytest.fixture
def copy(root, tmp_path):
    return shutil.copytree(root / FOLDER, tmp_path / FOLDER)


def videos(root, split):
    """The video of each utterance, from the row numbers and transcripts."""
    rows = pd.read_csv(root / FOLDER / f"text_{split}.csv", header=None)[0]
    names = pd.read_csv(root / FOLDER / "transcripts.csv", header=None)[0]
    return names[rows].str.replace(r"_\d+$", "", regex=True).to_numpy()


def test_shapes_and_published_counts(bundle):
    assert {m: modality.shape for m, modality in bundle.modalities.items()} == {
        "text": (100,),
        "audio": (73,),
        "video": (100,),
    }
    assert list(bundle.modalities) == ["text", "audio", "video"]
    assert {modality.kind for modality in bundle.modalities.values()} == {"vector"}
    assert bundle.classes == ("negative", "positive")
    assert (bundle.train.target.bincount() + bundle.val.target.bincount()).tolist() == [738, 709]
    assert bundle.test.target.bincount().tolist() == [285, 467]
    assert bundle.facts["videos"]["train"] + bundle.facts["videos"]["val"] == 62
    assert bundle.facts["videos"]["test"] == 31


@pytest.mark.parametrize(("val_from", "share"), [("train", 0.1), ("test", 0.3)])
def test_whole_videos_held_out_and_train_statistics(root, val_from, share):
    bundle = MOSI(MOSIOptions(val_from=val_from, val_share=share)).load(root)
    of = {s: videos(root, s) for s in ("train", "test")}
    assert not set(of["train"]) & set(of["test"])
    held = {s: np.isin(of[s], bundle.facts["val_videos"]) for s in of}
    assert not held["test" if val_from == "train" else "train"].any()
    assert share <= held[val_from].mean() < share + 0.1
    rows = {"train": ("train", ~held["train"]), "val": (val_from, held[val_from]), "test": ("test", ~held["test"])}
    for m in bundle.modalities:
        raw = {s: pd.read_csv(root / FOLDER / m / f"{m}_{s}0.csv", header=None).to_numpy() for s in of}
        fit = raw["train"][~held["train"], :-1]
        moving = fit.max(0) > fit.min(0)
        for part, (s, chosen) in rows.items():
            split = bundle.split(part)
            assert split.target.tolist() == raw[s][chosen, -1].tolist()
            values = split.inputs[m].numpy()
            assert np.isfinite(values).all()
            assert (values[:, ~moving] == 0).all()
            back = values[:, moving] * fit.std(0)[moving] + fit.mean(0)[moving]
            assert np.allclose(back, raw[s][chosen, :-1][:, moving], rtol=1e-4, atol=1e-4 * np.abs(fit).max())
        train = bundle.train.inputs[m][:, torch.from_numpy(moving)]
        assert torch.allclose(train.mean(0), torch.zeros(train.shape[1]), atol=1e-4)
        assert torch.allclose(train.std(0, correction=0), torch.ones(train.shape[1]), atol=1e-3)


def test_hold_out_takes_whole_videos():
    names = np.array(list("aaabbbbbccdddddddeffff"))
    for seed in range(20):
        held = hold_out_videos(names, 0.25, seed)
        assert not set(names[held]) & set(names[~held])
        assert 0.25 * len(names) <= held.sum() < len(names)
    assert len({hold_out_videos(names, 0.25, seed).tobytes() for seed in range(20)}) > 3


def test_deterministic_and_fingerprinted(root, bundle):
    again = MOSI().load(root)
    assert again.fingerprint == bundle.fingerprint
    for s in SPLITS:
        for m in bundle.modalities:
            assert torch.equal(again.split(s).inputs[m], bundle.split(s).inputs[m])
    others = [MOSI(MOSIOptions(**o)).load(root) for o in ({"val_seed": 1}, {"val_share": 0.2}, {"val_from": "test"})]
    assert len({b.fingerprint for b in (bundle, *others)}) == 4


def test_training_videos_flatter_text_and_video(root, bundle):
    """The warning in the docstring holds: features know the training labels, held-out test videos do not."""
    from sklearn.linear_model import LogisticRegression

    honest = MOSI(MOSIOptions(val_from="test", val_share=0.3)).load(root)

    def accuracy(data, m, split):
        fit = LogisticRegression(C=0.01, max_iter=500).fit(data.train.inputs[m].numpy(), data.train.target.numpy())
        return fit.score(data.split(split).inputs[m].numpy(), data.split(split).target.numpy())

    assert accuracy(bundle, "video", "val") > 0.8
    assert accuracy(honest, "video", "val") < 0.6
    assert accuracy(bundle, "text", "val") > 0.9
    assert 0.7 < accuracy(honest, "text", "val") < 0.82
    assert 0.7 < accuracy(bundle, "text", "test") < 0.8


def test_the_folder_itself(root, bundle):
    assert MOSI().load(root / FOLDER).fingerprint == bundle.fingerprint


def test_absent(tmp_path):
    with pytest.raises(UserError, match=f"needs --data-root DIR with {FOLDER}/"):
        MOSI().load(None)
    with pytest.raises(UserError, match=r"text_train0\.csv, which is absent"):
        MOSI().load(tmp_path)


def edit(path, change):
    lines = path.read_text().splitlines()
    path.write_text("\n".join(change(lines)) + "\n")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("audio/audio_test0.csv", lambda lines: lines[:-1], "must be 752 x 74"),
        ("video/video_train0.csv", lambda lines: [*lines[:-1], lines[-1][:-20]], "finite numbers|comma-separated"),
        (
            "audio/audio_train0.csv",
            lambda lines: ['"x"' + lines[0][lines[0].index(",") :], *lines[1:]],
            "finite numbers",
        ),
        ("audio/audio_train0.csv", lambda lines: [lines[1], lines[0], *lines[2:]], None),
        (
            "text/text_test0.csv",
            lambda lines: [lines[0][:-2] + ("0" if "1" in lines[0][-3:] else "1") + '"', *lines[1:]],
            "labels in",
        ),
        ("text_test.csv", lambda lines: ['"99999"' + lines[0][lines[0].index(",") :], *lines[1:]], "row numbers"),
        ("text_test.csv", lambda lines: ['"39"' + lines[0][lines[0].index(",") :], *lines[1:]], "share no video"),
        ("transcripts.csv", lambda lines: [], "comma-separated"),
    ],
)
def test_damaged(copy, file, change, message):
    before = MOSI().load(copy.parent).fingerprint
    edit(copy / file, change)
    if message is None:  # two rows of one modality exchanged: nothing can tell, but the fingerprint does
        assert MOSI().load(copy.parent).fingerprint != before
        return
    with pytest.raises(UserError, match=message):
        MOSI().load(copy.parent)


def test_test_samples_are_grouped_by_video(root):
    bundle = MOSI(MOSIOptions(val_from="test", val_share=0.3)).load(root)
    names = videos(root, "test")
    kept = names[~np.isin(names, bundle.facts["val_videos"])]
    assert bundle.groups.unit == "video"
    found = bundle.groups.array()
    assert len(found) == len(bundle.test) == len(kept)
    assert all(((found == g) == (kept == kept[found == g][0])).all() for g in range(len(bundle.groups)))
