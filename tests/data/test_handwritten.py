"""UCI Multiple Features on the real file: the published split, six aligned views, train statistics, broken files."""

import numpy as np
import pytest
import torch
from scipy.io import loadmat, savemat

from balancebench_udi.data.base import stratified_holdout
from balancebench_udi.data.handwritten import Handwritten, HandwrittenOptions
from balancebench_udi.errors import UserError
from tests.helpers import train

FILE = "handwritten_6views/handwritten_6views.mat"
VIEWS = {"pix": 240, "fou": 76, "fac": 216, "zer": 47, "kar": 64, "mor": 6}


@pytest.fixture(scope="module")
def root(data_root):
    if not (data_root / FILE).is_file():
        pytest.skip(f"{data_root / FILE} is absent")
    return data_root


@pytest.fixture(scope="module")
def raw(root):
    return {name: values for name, values in loadmat(root / FILE).items() if not name.startswith("__")}


@pytest.fixture(scope="module")
def bundle(root):
    return Handwritten().load(root)


@pytest.fixture
def saved(raw, tmp_path):
    """A function that writes the file with some variables replaced and returns its data root."""

    def save(**changes):
        (tmp_path / FILE).parent.mkdir(exist_ok=True)
        savemat(tmp_path / FILE, {name: v for name, v in {**raw, **changes}.items() if v is not None})
        return tmp_path

    return save


def test_shapes_and_published_counts(bundle):
    shapes = {m: (modality.kind, modality.shape, modality.encoder) for m, modality in bundle.modalities.items()}
    assert shapes == {m: ("vector", (width,), "mlp") for m, width in VIEWS.items()}
    assert list(bundle.modalities) == list(VIEWS)
    assert bundle.classes == tuple("0123456789")
    assert bundle.facts["counts"] == {"train": 1440, "val": 160, "test": 400}
    counts = {s: bundle.split(s).target.bincount().tolist() for s in ("train", "val", "test")}
    assert counts == {"train": [144] * 10, "val": [16] * 10, "test": [40] * 10}


@pytest.mark.parametrize("options", [{}, {"val_share": 0.25, "val_seed": 2}])
def test_rows_and_train_statistics(root, raw, options):
    bundle = Handwritten(HandwrittenOptions(**options)).load(root)
    labels = raw["gt_train"].ravel().astype(int) - 1
    share, seed = options.get("val_share", 0.1), options.get("val_seed", 0)
    kept, held = (rows.numpy() for rows in stratified_holdout(torch.from_numpy(labels), share, seed))
    rows = {"train": ("train", kept), "val": ("train", held), "test": ("test", np.arange(400))}
    for i, m in enumerate(VIEWS, start=1):
        fit = raw[f"x{i}_train"][kept].astype(np.float64)
        for part, (s, chosen) in rows.items():
            split = bundle.split(part)
            assert split.target.tolist() == (raw[f"gt_{s}"].ravel()[chosen].astype(int) - 1).tolist()
            expected = (raw[f"x{i}_{s}"][chosen] - fit.mean(0)) / fit.std(0)
            assert split.inputs[m].dtype == torch.float32
            assert np.allclose(split.inputs[m], expected, rtol=1e-5, atol=1e-5)
        standard = bundle.train.inputs[m].double()
        assert standard.mean(0).abs().max() < 1e-5
        assert (standard.std(0, correction=0) - 1).abs().max() < 1e-5


def test_labels_are_the_digits_drawn(bundle):
    """A 0 is hollow and a 1 is not: pix at the middle of its 16 x 15 window averages."""
    middle = bundle.train.inputs["pix"].view(-1, 16, 15)[:, 8, 7]
    assert middle[bundle.train.target == 0].mean() < -1
    assert middle[bundle.train.target == 1].mean() > 0.5


def test_constant_feature_becomes_zero(saved, raw):
    changed = raw["x2_train"].copy()
    changed[:, 5] = 0.1
    bundle = Handwritten().load(saved(x2_train=changed))
    for s in ("train", "val", "test"):
        assert (bundle.split(s).inputs["fou"][:, 5] == 0).all()
        assert bundle.split(s).inputs["fou"].isfinite().all()


def test_views(root, bundle):
    two = Handwritten(HandwrittenOptions.build("handwritten", {"views": "mor,pix"})).load(root)
    assert list(two.modalities) == ["mor", "pix"]
    for s in ("train", "val", "test"):
        assert set(two.split(s).inputs) == {"mor", "pix"}
        assert torch.equal(two.split(s).inputs["mor"], bundle.split(s).inputs["mor"])


@pytest.mark.parametrize("views", [("pix",), ("pix", "pix"), ("pix", "px"), ()])
def test_bad_views(views):
    with pytest.raises(
        UserError, match="views must be two to six different ones of pix, fou, fac, zer, kar, mor, found"
    ):
        HandwrittenOptions(views=views)


def test_deterministic_and_fingerprinted(root, bundle, saved, raw):
    again = Handwritten().load(root)
    assert again.fingerprint == bundle.fingerprint
    for m in VIEWS:
        assert torch.equal(again.train.inputs[m], bundle.train.inputs[m])
    options = ({"val_seed": 1}, {"val_share": 0.2}, {"views": ("pix", "fou")}, {"views": ("fou", "pix")})
    prints = [bundle.fingerprint, *(Handwritten(HandwrittenOptions(**o)).load(root).fingerprint for o in options)]
    prints.append(Handwritten().load(saved(x6_test=raw["x6_test"] + 1)).fingerprint)
    assert len(set(prints)) == len(prints)


def test_strength_of_the_views(bundle):
    """The docstring's figures, from a linear probe of each view."""
    from sklearn.linear_model import LogisticRegression

    def accuracy(m):
        fit = LogisticRegression(C=0.01, max_iter=500)
        fit.fit(bundle.train.inputs[m].numpy(), bundle.train.target.numpy())
        return fit.score(bundle.test.inputs[m].numpy(), bundle.test.target.numpy())

    assert [accuracy(m) for m in VIEWS] == pytest.approx([0.985, 0.798, 0.983, 0.790, 0.975, 0.693], abs=0.03)


@pytest.mark.parametrize("views", [("zer", "mor"), tuple(VIEWS)])
def test_joint_training(root, views):
    bundle = Handwritten(HandwrittenOptions(views=views)).load(root)
    result, _ = train(bundle, "joint")
    assert result["readings"]["last"]["test"]["accuracy"] > (0.6 if len(views) == 2 else 0.9)


def test_absent(tmp_path):
    with pytest.raises(UserError, match=f"needs --data-root DIR with {FILE}"):
        Handwritten().load(None)
    with pytest.raises(
        UserError, match=r"handwritten_6views\.mat, which is absent; it needs .*github\.com/hanmenghan/TMC"
    ):
        Handwritten().load(tmp_path)


def test_the_folder_itself(root, bundle):
    assert Handwritten().load((root / FILE).parent).fingerprint == bundle.fingerprint


def test_cut_short(root, tmp_path):
    (tmp_path / FILE).parent.mkdir()
    (tmp_path / FILE).write_bytes((root / FILE).read_bytes()[:2_000_000])
    with pytest.raises(UserError, match="must be a whole MATLAB v5 file, it is damaged; fetch it again"):
        Handwritten().load(tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("x3_test", lambda v: None, r"must hold the variable x3_test"),
        ("x3_test", lambda v: v[:-1], r"x3_test in .* must be 400 x 216, found \(399, 216\); fetch it again"),
        ("x4_train", lambda v: v[:, 1:], r"x4_train in .* must be 1600 x 47, found \(1600, 46\)"),
        ("x5_train", lambda v: np.where(v == v[3, 4], np.nan, v), "x5_train in .* must hold finite numbers only"),
        ("gt_train", lambda v: v - 1, "gt_train in .* must be 1600 labels 1 to 10, found something else"),
        ("gt_test", lambda v: v[1:], "gt_test in .* must be 400 labels 1 to 10, found something else"),
    ],
)
def test_damaged(saved, raw, name, change, message):
    with pytest.raises(UserError, match=message):
        Handwritten().load(saved(**{name: change(raw[name])}))
