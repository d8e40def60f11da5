"""CGMNIST from the real MNIST files, and what happens when they are not as they should be."""

import gzip
import struct
from urllib.error import URLError

import pytest
import torch
from torchvision.datasets import MNIST as TorchvisionMNIST
from torchvision.datasets import mnist as torchvision_mnist

from balancebench_udi.data.cgmnist import CGMNIST, CGMNISTOptions, stratified_subset
from balancebench_udi.data.colour import MEAN_COLOURS
from balancebench_udi.data.mnist import FILES
from balancebench_udi.errors import UserError

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="session")
def mnist_root(data_root):
    if not (data_root / "mnist").is_dir():
        pytest.skip(f"MNIST must lie in {data_root / 'mnist'}; it does not")
    return data_root


@pytest.fixture(scope="module")
def bundle(mnist_root):
    return CGMNIST().load(mnist_root)


def mean_colour(split):
    """The colour of each image ``[N, 3]`` in [0, 1], by least squares."""
    gray, colour = (split.inputs[m].flatten(2).float() for m in ("gray", "colour"))
    return (gray * colour).sum(2) / (gray**2).sum(2)


def test_all_of_it(bundle):
    assert list(bundle.modalities) == ["gray", "colour"]
    assert len(bundle.train) + len(bundle.val) == 60000
    assert len(bundle.test) == 10000
    whole = torch.bincount(bundle.train.target) + torch.bincount(bundle.val.target)
    assert (torch.bincount(bundle.val.target) - 0.1 * whole).abs().max() <= 0.5
    assert torch.bincount(bundle.test.target).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    for s in SPLITS:
        for name, modality in bundle.modalities.items():
            values = bundle.split(s).inputs[name]
            assert values.dtype == torch.uint8
            assert values.shape[1:] == modality.shape
    shown = bundle.modalities["gray"].transform(bundle.train.inputs["gray"][:10000], None)
    assert shown.mean().item() == pytest.approx(0, abs=0.02)
    assert shown.std().item() == pytest.approx(1, abs=0.02)
    assert bundle.facts["generated"] is True
    assert bundle.facts["counts"] == {s: len(bundle.split(s)) for s in SPLITS}


def test_splits_are_disjoint_and_hold_every_training_image(bundle, mnist_root):
    raw = gzip.decompress((mnist_root / "mnist" / f"{FILES[0]}.gz").read_bytes())[16:]
    expected = sorted(raw[i : i + 784] for i in range(0, len(raw), 784))
    held = torch.cat([bundle.train.inputs["gray"], bundle.val.inputs["gray"]]).numpy()
    assert sorted(map(bytes, held)) == expected


def test_colours(bundle):
    means = torch.tensor(MEAN_COLOURS["published"]) / 255
    some = bundle.train.take(torch.arange(20000))
    train, target = mean_colour(some), some.target
    for c in range(10):
        colours = train[target == c]
        # truncation moves the mean inwards, of a mean at the edge by 0.8 standard deviations
        assert (colours.mean(0) - means[c]).abs().max() < 0.8 * 0.03**0.5 + 0.01
    inside = train[target == 1, 1]  # green of the second colour is far from 0 and 1
    assert inside.var().item() == pytest.approx(0.03, rel=0.1)
    assert (torch.cdist(train, means).argmin(1) == target).float().mean() > 0.65
    for split in (bundle.val, bundle.test):
        nearest = torch.cdist(mean_colour(split), means).argmin(1)
        table = torch.zeros(10, 10).index_put_((split.target, nearest), torch.ones(len(split)), accumulate=True)
        expected = table.sum(1, keepdim=True) * table.sum(0, keepdim=True) / table.sum()
        assert ((table - expected) ** 2 / expected).sum() < 137.2  # 99.99 % point with 81 degrees of freedom


def test_validation_with_the_training_colours(bundle, mnist_root):
    options = {"train_size": 3000, "test_size": 500}
    honest = CGMNIST(CGMNISTOptions(**options)).load(mnist_root)
    labelled = CGMNIST(CGMNISTOptions(val_colour="label", **options)).load(mnist_root)
    means = torch.tensor(MEAN_COLOURS["published"]) / 255
    told = {
        name: (torch.cdist(mean_colour(b.val), means).argmin(1) == b.val.target).float().mean().item()
        for name, b in (("random", honest), ("label", labelled))
    }
    assert told["label"] > 0.6
    assert told["random"] < 0.2
    assert labelled.fingerprint != honest.fingerprint != bundle.fingerprint
    assert labelled.facts["colour_rule"]["val"] == "label"
    used = torch.bincount(torch.cat([honest.train.target, honest.val.target]))
    whole = torch.bincount(torch.cat([bundle.train.target, bundle.val.target]))
    assert used.sum() == 3000
    assert (used - whole / 20).abs().max() <= 1
    assert len(honest.val) == pytest.approx(300, abs=5)
    assert len(honest.test) == 500
    again = CGMNIST(CGMNISTOptions(**options)).load(mnist_root)
    assert again.fingerprint == honest.fingerprint
    for s in SPLITS:
        for m in ("gray", "colour"):
            assert torch.equal(again.split(s).inputs[m], honest.split(s).inputs[m])


def test_subsets_are_stratified_nested_and_exact():
    target = torch.cat([torch.full((n,), c) for c, n in enumerate((500, 300, 200))])
    small, large = stratified_subset("n", target, 100), stratified_subset("n", target, 400)
    assert torch.bincount(target[small]).tolist() == [50, 30, 20]
    assert torch.bincount(target[large]).tolist() == [200, 120, 80]
    assert set(small.tolist()) < set(large.tolist())
    assert torch.equal(stratified_subset("n", target, 0), torch.arange(1000))
    assert len(stratified_subset("n", target, 7)) == 7


def idx(values):
    values = torch.as_tensor(values, dtype=torch.uint8)
    return struct.pack(f">{1 + values.dim()}I", 0x800 + values.dim(), *values.shape) + values.numpy().tobytes()


@pytest.fixture
def made(tmp_path):
    """A complete, tiny set of uncompressed files in torchvision's layout."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    stream = torch.Generator().manual_seed(0)
    for name, n in (("train", 40), ("t10k", 20)):
        images = torch.randint(256, (n, 28, 28), generator=stream)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx(torch.arange(n) % 10))
    return tmp_path


def test_torchvisions_layout_and_compression_make_no_difference(made):
    plain = CGMNIST().load(made)
    theirs = TorchvisionMNIST(str(made), train=False)
    assert torch.equal(plain.test.inputs["gray"][:, 0], theirs.data)
    assert torch.equal(plain.test.target, theirs.targets)
    (made / "mnist").mkdir()
    for name in FILES:
        file = made / "MNIST" / "raw" / name
        (made / "mnist" / f"{name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    packed = CGMNIST().load(made)
    assert packed.fingerprint == plain.fingerprint
    assert torch.equal(packed.train.inputs["colour"], plain.train.inputs["colour"])


def test_the_fingerprint_follows_the_bytes_and_not_the_way_they_came(made):
    before = CGMNIST().load(made).fingerprint
    assert CGMNIST(CGMNISTOptions(download=True)).load(made).fingerprint == before
    file = made / "MNIST" / "raw" / FILES[2]
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    assert CGMNIST().load(made).fingerprint != before


def refused(root, **options):
    with pytest.raises(UserError) as caught:
        CGMNIST(CGMNISTOptions(**options)).load(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_absent_files(made, tmp_path):
    assert refused(None).startswith("dataset cgmnist needs --data-root DIR with MNIST's four IDX files")
    assert "is not a folder" in refused(tmp_path / "nowhere")
    (made / "MNIST" / "raw" / FILES[1]).unlink()
    message = refused(made)
    assert f"found no {FILES[1]} under {made}" in message
    assert "download=true" in message


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (0, lambda raw: raw[:-1], "must hold [40, 28, 28] bytes after its header, found 31359"),
        (0, lambda raw: raw[:10], "must hold [40, 0, 0] bytes after its header, found 0"),
        (0, lambda raw: b"<html>" + raw, "must begin with the IDX magic number 2051, found "),
        (1, lambda raw: idx(torch.zeros(39)), "must hold one label an image (40), found 39"),
        (1, lambda raw: idx(torch.full((40,), 10)), "must hold labels 0..9, found 10"),
        (0, lambda raw: idx(torch.zeros(40, 27, 28)), "must hold images of 28 x 28, found 27 x 28"),
        (3, lambda raw: b"", "must begin with the IDX magic number 2049, found 0"),
    ],
)
def test_damaged_files(made, file, change, message):
    path = made / "MNIST" / "raw" / FILES[file]
    path.write_bytes(change(path.read_bytes()))
    assert f"{path} {message}" in refused(made)


@pytest.mark.parametrize(
    "change", [lambda raw: raw[:-20], lambda raw: raw[:40] + b"\0" * 40 + raw[80:], lambda _: b"x"]
)
def test_damaged_archive(made, change):
    path = made / "MNIST" / "raw" / FILES[0]
    packed = path.with_name(f"{path.name}.gz")
    packed.write_bytes(change(gzip.compress(path.read_bytes())))
    path.unlink()
    assert f"{packed} must be a readable file, found: " in refused(made)


def test_wrong_options(made):
    assert refused(made, train_size=41) == "train_size must be <= 40, the number of images, found 41"
    assert refused(made, test_size=21) == "test_size must be <= 20, the number of images, found 21"
    with pytest.raises(UserError, match=r"cgmnist\.val_share must be <= 0.5, found 0.6"):
        CGMNISTOptions.build("cgmnist", {"val_share": 0.6})
    with pytest.raises(UserError, match=r"cgmnist\.val_colour must be one of random, label, found train"):
        CGMNISTOptions.build("cgmnist", {"val_colour": "train"})


def test_download(made, tmp_path, monkeypatch):
    """Through torchvision, with its fetching function replaced by one that copies or fails."""
    raw = {name: (made / "MNIST" / "raw" / name).read_bytes() for name in FILES}

    def copy(url, download_root, filename, md5):
        name = filename.removesuffix(".gz")
        (tmp_path / "new" / "MNIST" / "raw" / name).write_bytes(raw[name])

    def fail(url, download_root, filename, md5):
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision_mnist, "download_and_extract_archive", fail)
    message = refused(tmp_path / "new", download=True)
    assert message.startswith("download=true must reach MNIST's mirrors, found: Error downloading train-images")
    assert "no route to host" in message
    monkeypatch.setattr(torchvision_mnist, "download_and_extract_archive", copy)
    assert len(CGMNIST(CGMNISTOptions(download=True)).load(tmp_path / "new").test) == 20
