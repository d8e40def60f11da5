"""UTD-MHAD on the real recordings: published split, both sensors of one sequence in one row, broken files."""

import io
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from scipy.io import loadmat, savemat

from balancebench_udi.data.base import stratified_holdout
from balancebench_udi.data.mat import read_mat
from balancebench_udi.data.utd_mhad import SEQUENCES, TEST_SUBJECTS, UTDMHAD, UTDMHADOptions, resample
from balancebench_udi.errors import UserError
from tests.helpers import train

FOLDER = "utd_mhad"
VARIABLE = {"inertial": "d_iner", "skeleton": "d_skel"}


@pytest.fixture(scope="module")
def root(data_root, tmp_path_factory):
    """The recordings as archives, made from the folders where only those are there."""
    source = data_root / FOLDER
    if all((source / f"{m}.tar").is_file() for m in ("Inertial", "Skeleton")):
        return data_root
    if not all((source / m).is_dir() for m in ("Inertial", "Skeleton")):
        pytest.skip(f"{source} is absent or holds neither archives nor folders")
    target = tmp_path_factory.mktemp("archives")
    (target / FOLDER).mkdir()
    for m in ("Inertial", "Skeleton"):
        with tarfile.open(target / FOLDER / f"{m}.tar", "w") as tar:
            tar.add(source / m, arcname=m)
    return target


@pytest.fixture(scope="module")
def unpacked(root, tmp_path_factory):
    target = tmp_path_factory.mktemp("folders")
    for m in ("Inertial", "Skeleton"):
        with tarfile.open(root / FOLDER / f"{m}.tar") as tar:
            tar.extractall(target / FOLDER, filter="data")
    return target


@pytest.fixture
def copy(unpacked, tmp_path):
    shutil.copytree(unpacked / FOLDER, tmp_path / FOLDER)
    return tmp_path


@pytest.fixture(scope="module")
def bundle(root):
    return UTDMHAD().load(root)


@pytest.fixture(scope="module")
def raw(unpacked):
    """(action, subject, trial) -> {modality: [T, D]}, in order of action, subject, trial."""
    found = {}
    for m, variable in VARIABLE.items():
        for path in (unpacked / FOLDER / m.capitalize()).glob("*.mat"):
            key = tuple(int(part[1:]) for part in path.stem.split("_")[:3])
            values = loadmat(path)[variable]
            found.setdefault(key, {})[m] = values if m == "inertial" else values.transpose(2, 0, 1)
    return dict(sorted(found.items()))


def test_shapes_and_published_counts(bundle):
    shapes = {m: (modality.kind, modality.shape, modality.encoder) for m, modality in bundle.modalities.items()}
    assert shapes == {"inertial": ("sequence", (64, 6), "temporal"), "skeleton": ("sequence", (64, 60), "temporal")}
    assert list(bundle.modalities) == ["inertial", "skeleton"]
    assert (len(bundle.train) + len(bundle.val), len(bundle.test)) == (431, 430)
    assert len(bundle.classes) == len(set(bundle.classes)) == 27
    assert [bundle.classes[i - 1] for i in (1, 8, 15, 22, 27)] == [
        "swipe left",
        "draw x",
        "tennis swing",
        "jog",
        "squat",
    ]
    # a8_s1_t4, a23_s6_t4 and a27_s8_t4 were removed
    assert (bundle.train.target.bincount() + bundle.val.target.bincount()).tolist() == [16] * 7 + [15] + [16] * 19
    assert bundle.test.target.bincount().tolist() == [16] * 22 + [15] + [16] * 3 + [15]
    assert bundle.val.target.bincount().tolist() == [4] * 27
    assert bundle.facts["counts"] == {"train": 323, "val": 108, "test": 430}
    assert bundle.facts["subjects"] == {"train": [1, 3, 5], "val": [7], "test": [2, 4, 6, 8]}


@pytest.mark.parametrize(
    "options",
    [{}, {"val_subject": 1, "length": 20}, {"val": "stratified", "val_share": 0.25, "val_seed": 3}, {"centre": False}],
)
def test_every_row_holds_both_sensors_of_its_sequence(root, raw, options):
    """Names, subjects, resampling, centring and standardisation, computed again from the files in another way."""
    bundle = UTDMHAD(UTDMHADOptions(**options)).load(root)
    length = options.get("length", 64)
    rest = [key for key in raw if key[1] in (1, 3, 5, 7)]
    if options.get("val") == "stratified":
        kept, held = stratified_holdout(torch.tensor([key[0] for key in rest]), 0.25, 3)
        rows = {"train": [rest[i] for i in kept], "val": [rest[i] for i in held]}
    else:
        subject = options.get("val_subject", 7)
        rows = {
            "train": [key for key in rest if key[1] != subject],
            "val": [key for key in rest if key[1] == subject],
        }
    rows["test"] = [key for key in raw if key[1] in (2, 4, 6, 8)]
    for m in bundle.modalities:

        def sequence(key, m=m):
            values = raw[key][m]
            if m == "skeleton":
                hip = values[:, 3:4] if options.get("centre", True) else 0
                values = (values - hip).reshape(len(values), 60)
            at = np.linspace(0, len(values) - 1, length)
            return np.stack([np.interp(at, np.arange(len(values)), channel) for channel in values.T], 1)

        expected = {part: np.stack([sequence(key) for key in keys]) for part, keys in rows.items()}
        steps = expected["train"].reshape(-1, expected["train"].shape[2])
        moving = steps.max(0) > steps.min(0)
        assert (~moving).sum() == (3 if m == "skeleton" and options.get("centre", True) else 0)
        for part, keys in rows.items():
            split = bundle.split(part)
            assert split.target.tolist() == [key[0] - 1 for key in keys]
            values = split.inputs[m].numpy()
            assert values.dtype == np.float32
            assert (values[..., ~moving] == 0).all()
            back = values[..., moving] * steps.std(0)[moving] + steps.mean(0)[moving]
            assert np.allclose(back, expected[part][..., moving], rtol=1e-4, atol=1e-5 * np.abs(steps).max())
        standard = bundle.train.inputs[m].double().flatten(0, 1)[:, torch.from_numpy(moving)]
        assert standard.mean(0).abs().max() < 1e-5
        assert (standard.std(0, correction=0) - 1).abs().max() < 1e-5


def test_resample():
    ramp = np.stack([np.arange(5.0), 10 - 2 * np.arange(5.0)], 1)
    assert np.allclose(resample(ramp, 9), np.stack([np.arange(9) / 2, 10 - np.arange(9.0)], 1))
    assert np.array_equal(resample(ramp, 5), ramp)
    assert np.array_equal(resample(ramp, 2), ramp[[0, -1]])
    assert np.array_equal(resample(ramp[:1], 3), ramp[[0, 0, 0]])


def test_archives_and_folders_are_the_same(root, unpacked, bundle, tmp_path):
    shuffled = tmp_path / FOLDER
    shuffled.mkdir()
    for m in ("Inertial", "Skeleton"):
        paths = sorted((unpacked / FOLDER / m).glob("*.mat"), reverse=True)
        with tarfile.open(shuffled / f"{m}.tar", "w") as tar:
            for path in paths:
                tar.add(path, arcname=path.name)
    zipped = tmp_path / "UTD-MHAD"
    zipped.mkdir()
    for m in ("Inertial", "Skeleton"):
        with zipfile.ZipFile(zipped / f"{m}.zip", "w") as archive:
            for path in (unpacked / FOLDER / m).glob("*.mat"):
                archive.writestr(f"{m}/{path.name}", path.read_bytes())
    for other in (unpacked, unpacked / FOLDER, tmp_path, shuffled, zipped):
        again = UTDMHAD().load(other)
        assert again.fingerprint == bundle.fingerprint
        for s in ("train", "val", "test"):
            for m in bundle.modalities:
                assert torch.equal(again.split(s).inputs[m], bundle.split(s).inputs[m])


def test_fingerprint(root, bundle, copy):
    options = (
        {"val": "stratified"},
        {"val_subject": 3},
        {"val_share": 0.2},
        {"val_seed": 1},
        {"length": 32},
        {"centre": False},
    )
    prints = [bundle.fingerprint, *(UTDMHAD(UTDMHADOptions(**o)).load(root).fingerprint for o in options)]
    first, second = (copy / FOLDER / "Inertial" / f"a1_s1_t{t}_inertial.mat" for t in (1, 2))
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    prints.append(UTDMHAD().load(copy).fingerprint)
    assert len(set(prints)) == len(prints)


def accuracies(bundle, *splits):
    """Accuracy on each split of linear probes of inertial, skeleton and both."""
    from sklearn.linear_model import LogisticRegression

    found = [[] for _ in splits]
    for names in (["inertial"], ["skeleton"], ["inertial", "skeleton"]):

        def features(split, names=names):
            return torch.cat([split.inputs[m].flatten(1) for m in names], 1).numpy()

        probe = LogisticRegression(C=0.01, max_iter=1000).fit(features(bundle.train), bundle.train.target.numpy())
        for scores, split in zip(found, splits, strict=True):
            scores.append(probe.score(features(split), split.target.numpy()))
    return found


def test_strangers_are_harder_than_acquaintances(root, bundle):
    """The docstring's figures: validation on the people trained on flatters, on a stranger it resembles test."""
    stratified = UTDMHAD(UTDMHADOptions(val="stratified")).load(root)
    stranger, test = accuracies(bundle, bundle.val, bundle.test)
    acquaintances, test_of_four = accuracies(stratified, stratified.val, stratified.test)
    assert stranger == pytest.approx([0.648, 0.824, 0.898], abs=0.03)
    assert test == pytest.approx([0.733, 0.793, 0.840], abs=0.02)
    assert acquaintances == pytest.approx([0.870, 0.926, 0.981], abs=0.04)
    assert test_of_four == pytest.approx([0.735, 0.786, 0.849], abs=0.02)


def test_joint_training(root):
    """16 steps a sequence; chance is 1/27."""
    bundle = UTDMHAD(UTDMHADOptions(length=16)).load(root)
    encoders = {m: {"name": "temporal", "width": 32} for m in bundle.modalities}
    result, _ = train(bundle, "joint", encoders=encoders, epochs=6)
    assert result["readings"]["last"]["test"]["accuracy"] > 0.4


def test_options():
    with pytest.raises(UserError, match="val_subject must be one of 1, 3, 5, 7, found 2"):
        UTDMHADOptions(val_subject=2)
    with pytest.raises(UserError, match="val must be one of subject, stratified, found random"):
        UTDMHADOptions(val="random")
    with pytest.raises(UserError, match="length must be >= 2, found 1"):
        UTDMHADOptions(length=1)


def test_absent(root, tmp_path):
    with pytest.raises(UserError, match=f"needs --data-root DIR with {FOLDER}/"):
        UTDMHAD().load(None)
    with pytest.raises(UserError, match=r"holds no Inertial/$"):
        UTDMHAD().load(tmp_path)
    (tmp_path / FOLDER).mkdir()
    shutil.copy(root / FOLDER / "Inertial.tar", tmp_path / FOLDER)
    with pytest.raises(UserError, match=r"holds no Skeleton/$"):
        UTDMHAD().load(tmp_path)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (3_000_300, "must be a whole tar, it is cut short or damaged"),  # inside a file
        (0, "must be a whole tar, it is cut short or damaged"),
        (
            None,
            r"Inertial\.tar must hold all 861 inertial sequences of UTD-MHAD, found 1 and no a1_s1_t1_inertial\.mat",
        ),
    ],
)
def test_archive_cut_short(root, tmp_path, size, message):
    (tmp_path / FOLDER).mkdir()
    data = (root / FOLDER / "Inertial.tar").read_bytes()
    if size is None:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            size = next(member for member in tar.getmembers()[1:] if "a10_s1_t2" in member.name).offset
    (tmp_path / FOLDER / "Inertial.tar").write_bytes(data[:size])
    with pytest.raises(UserError, match=message):
        UTDMHAD().load(tmp_path)


def mat(**variables):
    file = io.BytesIO()
    savemat(file, variables)
    return file.getvalue()


@pytest.mark.parametrize(
    ("file", "data", "message"),
    [
        ("Skeleton/a27_s8_t1_skeleton.mat", None, r"found 860 and no a27_s8_t1_skeleton\.mat; fetch it again"),
        ("Inertial/a9_s2_t3_inertial.mat", b"", r"a9_s2_t3_inertial\.mat must be a whole MATLAB v5 file"),
        (
            "Inertial/a9_s2_t3_inertial.mat",
            mat(d_iner=np.zeros((99, 5))),
            r"d_iner in a9_s2_t3_inertial\.mat must be T x 6, found \(99, 5\); fetch it again",
        ),
        ("Inertial/a9_s2_t3_inertial.mat", mat(d_iner=np.zeros((0, 6))), r"must be T x 6, found \(0, 6\)"),
        ("Inertial/a9_s2_t3_inertial.mat", mat(d_iner=np.zeros((9, 6, 2))), r"must be T x 6, found \(9, 6, 2\)"),
        (
            "Skeleton/a1_s1_t1_skeleton.mat",
            mat(d_skel=np.zeros((40, 20, 3))),
            r"must be 20 x 3 x T, found \(40, 20, 3\)",
        ),
        ("Skeleton/a1_s1_t1_skeleton.mat", mat(d_iner=np.zeros((40, 6))), "must hold the variable d_skel"),
    ],
)
def test_damaged(copy, file, data, message):
    path = copy / FOLDER / file
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
    with pytest.raises(UserError, match=message):
        UTDMHAD().load(copy)


def test_cut_short_anywhere_is_one_sentence(unpacked):
    data = (unpacked / FOLDER / "Inertial" / "a1_s1_t1_inertial.mat").read_bytes()
    assert list(read_mat(data, "some.mat", ["d_iner"])) == ["d_iner"]
    for size in range(0, len(data), len(data) // 50):
        with pytest.raises(UserError, match=r"^some\.mat must "):
            read_mat(data[:size], "some.mat", ["d_iner"])


def test_test_sequences_are_grouped_by_subject(bundle):
    order = [subject for _, subject, _ in SEQUENCES if subject in TEST_SUBJECTS]
    assert bundle.groups.unit == "subject"
    assert [TEST_SUBJECTS[g] for g in bundle.groups.members] == order
