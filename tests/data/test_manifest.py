"""Anyone's own data: the guide as it stands, every kind of modality, splits, lists as people write them, damage."""

import csv
import io
import json
import re
import shlex
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import registry
from balancebench_udi.catalogue import Catalogue
from balancebench_udi.data import kinds as module
from balancebench_udi.data.kinds import KINDS, ManifestOptions
from balancebench_udi.data.loader import Loader
from balancebench_udi.data.manifest import Manifest, hold_out, read_source
from balancebench_udi.data.media import as_candidates, read_pictures, read_sound, read_video
from balancebench_udi.data.pack import prepare
from balancebench_udi.data.pack.format import VERIFIED, manifest_text
from balancebench_udi.data.sound import SPECTROGRAMS
from balancebench_udi.data.text import VOCABULARY, tokens
from balancebench_udi.errors import UserError
from benchmarks.prepare import main as prepare_main
from benchmarks.run import main as run_main
from tests.conftest import ROOT
from tests.helpers import train
from tests.media import cut, tone, write_video, write_wav

GUIDE = (ROOT / "docs" / "own-data.md").read_text()
SPLITS = ("train", "val", "test")


def write(folder, rows, modalities, **dialect):
    """A source: ``rows`` as dictionaries, and the YAML."""
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, list(rows[0]), **{"lineterminator": "\n", **dialect})
    table.writeheader()
    table.writerows(rows)
    (folder / "clips.csv").write_text(text.getvalue(), encoding="utf-8", newline="")
    (folder / "manifest.yaml").write_text(
        yaml.safe_dump({"csv": "clips.csv", "modalities": modalities}, sort_keys=False)
    )
    return folder


def features(count, width=3, seed=0):
    return np.random.default_rng(seed).normal(5, 2, (count, width)).astype(np.float32)


POSES = {"pose": {"kind": "npy"}, "caption": {"kind": "text", "length": 4}}


def poses(folder, count=12, classes=("cat", "dog"), **columns):
    """A source of vectors and captions, quick to prepare; ``columns`` map a row's number to a cell."""
    (folder / "npy").mkdir(parents=True, exist_ok=True)
    values = features(count)
    rows = []
    for i in range(count):
        np.save(folder / "npy" / f"{i}.npy", values[i])
        row = {
            "label": classes[i % len(classes)],
            "id": f"s{i:03d}",
            "pose": f"npy/{i}.npy",
            "caption": f"word{i} other",
        }
        rows.append({**row, **{name: cell(i) for name, cell in columns.items()}})
    return write(folder, rows, POSES)


def rewrite(folder, change):
    """Change the rows of a source."""
    with (folder / "clips.csv").open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    write(folder, change(rows), yaml.safe_load((folder / "manifest.yaml").read_text())["modalities"])


def prepared(source, root, **options):
    dataset = Manifest(ManifestOptions(**options)).for_source(source)
    return prepare(dataset, source, root, 1, quiet=True)


def loaded(source, root, **options):
    """Prepare and load with the default name."""
    prepared(source, root)
    return Manifest(ManifestOptions(name=source.name, **options)).load(root)


def refused(source, match):
    with pytest.raises(UserError, match=match) as caught:
        Manifest().for_source(source)
    assert "\n" not in str(caught.value)


# the guide


def fenced(language):
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.S)


@pytest.fixture
def catalogue(monkeypatch):
    """The dataset under its name, as a registry has it that lists it."""
    table = {**registry.DATASETS, "manifest": "balancebench_udi.data.manifest:Manifest"}
    monkeypatch.setattr(registry, "datasets", Catalogue("dataset", table, "balancebench_udi.datasets"))


def test_the_guide_works_as_it_stands(tmp_path, monkeypatch, capsys, catalogue):
    (table,), (declaration,), (commands,) = fenced("csv"), fenced("yaml"), fenced("bash")
    mine = tmp_path / "mydata"
    mine.mkdir()
    shown = list(csv.DictReader(io.StringIO(table)))
    more = [{**shown[i % 2], "id": f"b{i}", "clip": f"clips/b{i}.mp4"} for i in range(10)]
    written = io.StringIO()
    writer = csv.DictWriter(written, list(shown[0]))
    writer.writerows(more)
    (mine / "clips.csv").write_text(table + written.getvalue())
    (mine / "manifest.yaml").write_text(declaration)
    for i, row in enumerate(shown + more):
        write_video(mine / row["clip"], seconds=0.6, start=40 + 8 * i)
    monkeypatch.chdir(tmp_path)
    first, second = (shlex.split(line) for line in commands.strip().splitlines())
    assert first[:2] == ["python", "benchmarks/prepare.py"]
    assert prepare_main([*first[2:], "--workers", "1", "--strict"]) == 0
    assert "manifest: 12 samples of 2 classes" in capsys.readouterr().out
    assert (tmp_path / "data/packed/manifest/mydata/manifest.json").is_file()
    shutil.rmtree(mine)
    assert second[:2] == ["python", "benchmarks/run.py"]
    quick = "--methods joint --seeds 0 --epochs 1 --device cpu --out out --set manifest.n_frames=1"
    encoders = "--set encoder.audio.name=mlp --set encoder.video.name=mlp --set encoder.audio.width=4"
    assert run_main([*second[2:], *quick.split(), *encoders.split(), "--set", "encoder.video.width=4"]) == 0
    assert "manifest (train 9, val 2, test 2" not in (out := capsys.readouterr().out)
    assert "manifest (train 8, val 2, test 2; audio, video, text)" in out
    (record,) = (tmp_path / "out").glob("records/manifest/joint/*.json")
    assert json.loads(record.read_text())["spec"]["dataset_options"]["name"] == "mydata"


def test_the_guide_tells_kinds_keys_and_defaults():
    for name, kind in KINDS.items():
        (line,) = re.findall(rf"^\| `{name}` .*$", GUIDE, re.M)
        for key, default, _, _ in kind.describe():
            if key == "column":
                continue
            shown = default if not isinstance(default, float) else f"{default:.4g}"
            expected = f"`{key}`" if default is None else f"`{key}: {shown}`"
            assert expected in line
    (presets,) = re.findall(r"^Presets of sound: (.*?)\n\n", GUIDE, re.M | re.S)
    named = set(re.findall(r"`(\w+)`", presets)) - {"cremad"}
    assert {"ogm_stft"} < named <= set(SPECTROGRAMS)
    for option in re.findall(r"manifest\.(\w+)=?", GUIDE.replace("manifest.yaml", "")):
        assert option in ManifestOptions().as_dict()


# every kind


KINDS_YAML = {
    "photo": {"kind": "image"},
    "text": {"kind": "text", "column": "caption", "length": 5, "vocabulary": 99},
    "audio": {"kind": "audio", "column": "clip", "preset": "pmr_299"},
    "video": {"kind": "video", "column": "clip", "fps": 4, "candidates": 5, "n_frames": 2, "stored_size": 230},
    "frames": {"kind": "video", "candidates": 4, "n_frames": 3, "aspect": 1},
    "pose": {"kind": "npy"},
    "motion": {"kind": "npy", "length": 4},
}


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """Seven modalities of eight rows, in no order, under names with spaces and above the CSV."""
    top = tmp_path_factory.mktemp("everything")
    folder = top / "my data"
    rows = []
    for i in (5, 2, 7, 0, 3, 6, 1, 4):
        clip = write_video(folder / "clips" / f"clip {i}.mp4", seconds=1.2, start=40 + 10 * i)
        (folder / "npy").mkdir(exist_ok=True)
        np.save(folder / "npy" / f"pose{i}.npy", np.arange(3) * 10.0 + i)
        np.save(folder / "npy" / f"motion{i}.npy", np.arange(2.0 * (i + 1)).reshape(i + 1, 2) + 100 * i)
        Image.new("RGB", (40 + i, 30), (20 * i, 7, 200)).save(top / f"photo{i}.png")
        pictures = folder / "frames" / str(i)
        pictures.mkdir(parents=True)
        for k in (2, 0, 1):
            Image.new("RGB", (20, 20), (10 + 20 * k, 8 * i, 0)).save(pictures / f"{k}.png")
        rows.append(
            {
                "id": f"r{i}",
                "label": str(9 + i % 2),
                "photo": f"../photo{i}.png",
                "caption": f'He said "no, {i}", then\nleft',
                "clip": str(clip) if i % 2 else f"clips/clip {i}.mp4",
                "frames": f"frames/{i}",
                "pose": f"npy/pose{i}.npy",
                "motion": f"npy/motion{i}.npy",
                "split": "Train" if i < 4 else "val" if i < 6 else "test",
                "unused": "",
            }
        )
    return write(folder, rows, KINDS_YAML)


@pytest.fixture(scope="module")
def bundle(everything, tmp_path_factory):
    return loaded(everything, tmp_path_factory.mktemp("root"))


def test_kinds_shapes_and_order(bundle):
    assert {m: (x.kind, x.shape, x.encoder) for m, x in bundle.modalities.items()} == {
        "photo": ("frames", (3, 1, 224, 224), "resnet18"),
        "text": ("tokens", (5,), "tokens"),
        "audio": ("spectrogram", (1, 257, 299), "resnet18"),
        "video": ("frames", (3, 2, 224, 224), "resnet18"),
        "frames": ("frames", (3, 3, 224, 224), "resnet18"),
        "pose": ("vector", (3,), "mlp"),
        "motion": ("sequence", (4, 2), "temporal"),
    }
    assert list(bundle.modalities) == list(KINDS_YAML)
    assert bundle.classes == ("9", "10")
    assert {s: bundle.split(s).rows.tolist() for s in SPLITS} == {"train": [0, 1, 2, 3], "val": [4, 5], "test": [6, 7]}
    assert bundle.train.target.tolist() == [0, 1, 0, 1]


def test_every_row_is_what_its_files_hold(everything, bundle):
    for split in SPLITS:
        part = bundle.split(split)
        for k, i in enumerate(part.rows.tolist()):
            stored = {m: part.stored(m, torch.tensor([k]))[0].numpy() for m in bundle.modalities}
            clip = everything / "clips" / f"clip {i}.mp4"
            sound = SPECTROGRAMS["pmr_299"](*read_sound(clip)).numpy().astype(np.float16)
            assert np.array_equal(stored["audio"], sound)
            assert np.array_equal(stored["video"], as_candidates(read_video(clip, 4, 5), 5, 230))
            photo = as_candidates(read_pictures([everything.parent / f"photo{i}.png"]), 1, 256)
            assert np.array_equal(stored["photo"], photo)
            assert stored["frames"][:, 0, 0, 0].tolist() == [10, 30, 50, 0]
            assert (stored["frames"][:3, 0, 0, 1] == max(8 * i, 1)).all()
            assert stored["text"].tolist() == tokens(f"he said no {i} then left", 5, 99).tolist()
            assert stored["pose"].tolist() == [i, 10 + i, 20 + i]
            motion = np.load(everything / "npy" / f"motion{i}.npy")[:4]
            assert np.array_equal(stored["motion"][: len(motion), :2], motion)
            assert stored["motion"][:, 2].tolist() == [1.0] * len(motion) + [0.0] * (4 - len(motion))


def test_features_are_standardised_by_train(everything, bundle):
    fit = np.stack([np.load(everything / "npy" / f"pose{i}.npy") for i in range(4)])
    steps = np.concatenate([np.load(everything / "npy" / f"motion{i}.npy")[:4] for i in range(4)])
    for split in SPLITS:
        part = bundle.split(split)
        rows = torch.arange(len(part))
        pose = bundle.modalities["pose"].transform(part.stored("pose", rows))
        motion = bundle.modalities["motion"].transform(part.stored("motion", rows))
        assert pose.dtype == motion.dtype == torch.float32
        for k, i in enumerate(part.rows.tolist()):
            expected = (np.load(everything / "npy" / f"pose{i}.npy") - fit.mean(0)) / fit.std(0)
            assert np.allclose(pose[k], expected, atol=1e-5)
            real = np.load(everything / "npy" / f"motion{i}.npy")[:4]
            assert np.allclose(motion[k, : len(real)], (real - steps.mean(0)) / steps.std(0), atol=1e-4)
            assert (motion[k, len(real) :] == 0).all()


def test_standardisation_in_parts(monkeypatch):
    values = torch.from_numpy(features(50, 4) * np.array([1, 100, 0, 1e-3], dtype=np.float32))
    rows = torch.arange(0, 50, 2)
    whole = module._standardisation(values, rows, steps=False)
    monkeypatch.setattr(module, "_CHUNK", 40)
    assert np.allclose(module._standardisation(values, rows, steps=False), whole, rtol=1e-9)
    scaled = values[rows].double() * torch.tensor(whole[0]) + torch.tensor(whole[1])
    assert np.allclose(scaled.mean(0), 0, atol=1e-6)
    assert np.allclose(scaled.std(0, correction=0), [1, 1, 0, 1], atol=1e-6)


def test_options_after_preparation(everything, bundle, tmp_path):
    prepared(everything, tmp_path)

    def load(**options):
        return Manifest(ManifestOptions(name="my data", **options)).load(tmp_path)

    changed = load(n_frames=4, pick="start", same_crop=True)
    video = changed.modalities["video"]
    assert video.shape == (3, 4, 224, 224)
    assert (video.transform.pick, video.transform.same_crop, video.transform.aspect) == ("start", True, 4 / 3)
    assert changed.modalities["frames"].transform.aspect == 1
    assert changed.modalities["photo"].shape == (3, 1, 224, 224)
    assert len({bundle.fingerprint, changed.fingerprint, load(val_seed=1).fingerprint}) == 3
    assert load().fingerprint == bundle.fingerprint


def test_batches_of_every_kind(bundle):
    batches = list(Loader(bundle, torch.device("cpu"), 2, 0).train(0, list(bundle.modalities)))
    assert sorted(i for batch in batches for i in batch.index.tolist()) == [0, 1, 2, 3]
    for m, modality in bundle.modalities.items():
        for batch in batches:
            assert batch.inputs[m].shape == (2, *modality.shape)
            assert batch.inputs[m].dtype == torch.float32
            assert batch.inputs[m].isfinite().all()
    assert batches[0].inputs["text"].long().equal(bundle.train.stored("text", batches[0].index).long())


def test_training_learns_features_and_words(tmp_path):
    """One modality tells two of the classes apart, the other the rest: joint beats what either could alone."""
    source = tmp_path / "mine"
    (source / "npy").mkdir(parents=True)
    draw, rows = np.random.default_rng(0), []
    for i in range(160):
        c = i % 4
        np.save(source / "npy" / f"{i}.npy", draw.normal(3 * (c // 2), 1, (draw.integers(3, 9), 2)))
        words = draw.permutation(["red", "green"] if c % 2 else ["blue", "grey"])
        rows.append({"label": c, "pose": f"npy/{i}.npy", "caption": " ".join([*words, f"noise{i}"])})
    data = loaded(write(source, rows, POSES), tmp_path / "root")
    encoders = {"pose": {"name": "temporal", "width": 16}}
    encoders["caption"] = {"name": "tokens", "width": 16, "vocabulary": 16384, "depth": 1}
    result, _ = train(data, "joint", encoders=encoders, epochs=8, batch_size=16)
    assert result["readings"]["last"]["test"]["accuracy"] > 0.8


# splits


def test_drawn_splits_are_stratified(tmp_path):
    source = poses(tmp_path / "mine", 100, ("a", "a", "a", "b", "c"))
    data = loaded(source, tmp_path)
    rows = [set(data.split(s).rows.tolist()) for s in SPLITS]
    assert set.union(*rows) == set(range(100))
    assert sum(map(len, rows)) == 100
    counts = {s: np.bincount(data.split(s).target).tolist() for s in SPLITS}
    assert counts == {"train": [43, 14, 14], "val": [5, 2, 2], "test": [12, 4, 4]}
    other = Manifest(ManifestOptions(name="mine", test_seed=1)).load(tmp_path)
    again = Manifest(ManifestOptions(name="mine", val_seed=1, test_share=0.5, val_share=0.5)).load(tmp_path)
    assert set(other.test.rows.tolist()) != rows[2]
    assert {s: len(again.split(s)) for s in SPLITS} == {"train": 25, "val": 25, "test": 50}
    moved = Manifest(ManifestOptions(name="mine", val_seed=1)).load(tmp_path)
    assert set(moved.test.rows.tolist()) == rows[2]
    assert set(moved.val.rows.tolist()) != rows[1]


def test_validation_is_drawn_out_of_train_alone(tmp_path):
    source = poses(tmp_path / "mine", 40, split=lambda i: "test" if i >= 30 else "train")
    data = loaded(source, tmp_path, val_share=0.2)
    assert data.test.rows.tolist() == list(range(30, 40))
    assert sorted(data.train.rows.tolist() + data.val.rows.tolist()) == list(range(30))
    assert np.bincount(data.val.target).tolist() == [3, 3]


@pytest.mark.parametrize("given", [True, False])
def test_no_group_is_in_two_splits(tmp_path, given):
    group = [int(i**0.7) for i in range(180)]  # of all sizes from 1 to 8
    columns = {"group": lambda i: f"speaker {group[i]}"}
    if given:
        columns["split"] = lambda i: "test" if group[i] % 5 == 2 else "train"
    source = poses(tmp_path / "mine", 180, ("a", "b", "c"), **columns)
    prepared(source, tmp_path)
    seen = set()
    for seed in range(5):
        data = Manifest(ManifestOptions(name="mine", test_seed=seed, val_seed=seed)).load(tmp_path)
        rows = {s: data.split(s).rows.tolist() for s in SPLITS}
        groups = {s: {group[i] for i in rows[s]} for s in SPLITS}
        assert sum(map(len, groups.values())) == len(set.union(*groups.values())) == len(set(group))
        assert sorted(i for part in rows.values() for i in part) == list(range(180))
        assert len(rows["test"]) == (sum(g % 5 == 2 for g in group) if given else pytest.approx(36, abs=2))
        assert len(rows["val"]) == pytest.approx(0.1 * (180 - len(rows["test"])), abs=2)
        seen.add((frozenset(groups["val"]), frozenset(groups["test"])))
    assert len(seen) == 5
    assert not given or len({test for _, test in seen}) == 1


def test_groups_near_the_share_of_every_class():
    ours, blind = [], []
    for seed in range(30):
        draw = np.random.default_rng(seed)
        target, groups = torch.from_numpy(draw.integers(0, 3, 600)), draw.integers(0, 60, 600)
        kept, held = hold_out(target, groups, 0.25, seed)
        assert not set(groups[kept]) & set(groups[held])
        assert sorted(kept.tolist() + held.tolist()) == list(range(600))
        for found, rows in ((ours, held), (blind, np.isin(groups, draw.permutation(60)[:15]))):
            found.append(np.abs(np.bincount(target[rows], minlength=3) / np.bincount(target) - 0.25).max())
    assert max(ours) < 0.03
    assert np.mean(ours) < 0.4 * np.mean(blind)


def test_groups_of_one_class_and_of_few():
    target = torch.tensor([0] * 50 + [1] * 50)
    _, held = hold_out(target, np.arange(100) // 10, 0.2, 0)  # every group is of one class
    assert np.bincount(target[held]).tolist() == [10, 10]
    _, held = hold_out(torch.arange(50) % 2, np.arange(50) // 10, 0.05, 0)  # a tenth of which would be enough
    assert len(held) == 10
    target = torch.tensor([0, 0, 1, 1, 0, 1, 2, 2])  # class 2 is in one group, which must stay
    for seed in range(10):
        kept, _ = hold_out(target, np.array([0, 0, 0, 0, 1, 1, 2, 2]), 0.4, seed)
        assert set(target[kept].tolist()) == {0, 1, 2}
    with pytest.raises(UserError, match="found none of 2; use smaller groups"):
        hold_out(torch.tensor([0, 0, 1, 1]), np.array([0, 0, 1, 1]), 0.2, 0)


# what a pack is made of


def test_the_same_source_elsewhere_and_in_another_dialect(tmp_path):
    source = poses(tmp_path / "mine")
    first = prepared(source, tmp_path / "a").manifest
    elsewhere = shutil.copytree(source, tmp_path / "other" / "theirs")
    made = prepared(elsewhere, tmp_path / "b")
    assert made.folder == tmp_path / "b" / "packed" / "manifest" / "theirs"
    assert made.manifest["fingerprint"] == first["fingerprint"]
    text = (source / "clips.csv").read_text()
    dialects = {
        "bom": b"\xef\xbb\xbf" + text.encode(),
        "crlf": text.replace("\n", "\r\n").encode(),
        "semicolons": text.replace(",", ";").encode(),
        "excel": ("\ufeff" + text.replace(",", ";").replace("\n", ";;\r\n") + ";;;;;;\r\n").encode(),
        "tabs": text.replace(",", "\t").encode(),
        "spaces": ("\n" + text.replace(",", " , ").replace("\n", "\n\n")).encode(),
    }
    for name, content in dialects.items():
        (elsewhere / "clips.csv").write_bytes(content)
        assert prepared(elsewhere, tmp_path / name).manifest["fingerprint"] == first["fingerprint"], name


def edit_label(source):
    rewrite(source, lambda rows: [{**rows[0], "label": "dog"}, *rows[1:]])


def edit_caption(source):
    rewrite(source, lambda rows: [{**rows[0], "caption": "other words"}, *rows[1:]])


def edit_file(source):
    np.save(source / "npy" / "3.npy", features(1)[0])


def edit_size(source):
    np.save(source / "npy" / "3.npy", features(1)[0].astype(np.float64))


def edit_order(source):
    write_yaml(source, dict(reversed(list(POSES.items()))))


def edit_key(source):
    write_yaml(source, {**POSES, "caption": {"kind": "text", "length": 5}})


def edit_rows(source):
    rewrite(source, lambda rows: rows[1:])


def write_yaml(source, modalities):
    (source / "manifest.yaml").write_text(
        yaml.safe_dump({"csv": "clips.csv", "modalities": modalities}, sort_keys=False)
    )


@pytest.mark.parametrize("edit", [edit_label, edit_caption, edit_file, edit_size, edit_order, edit_key, edit_rows])
def test_any_change_is_another_fingerprint(tmp_path, edit):
    source = poses(tmp_path / "mine")
    first = prepared(source, tmp_path / "a")
    edit(source)
    assert prepared(source, tmp_path / "b").manifest["fingerprint"] != first.manifest["fingerprint"]
    if edit is not edit_file:  # of the same size: only reading it would tell
        why = (
            r"with other options \(modalities\)"
            if edit in (edit_order, edit_key)
            else "before samples, lists .* changed, .*"
        )
        with pytest.raises(UserError, match=rf"it was made {why}; remove that folder .*name=NAME"):
            prepared(source, tmp_path / "a")
    assert prepared(source, tmp_path / "a", name="second").decoded > 0


def test_a_file_that_was_supplied_later_is_noticed(tmp_path):
    source = poses(tmp_path / "mine")
    path = source / "npy" / "3.npy"
    content = path.read_bytes()
    path.unlink()
    assert prepared(source, tmp_path).manifest["left_out"] == 1
    assert prepared(source, tmp_path).decoded == 0
    path.write_bytes(content)
    with pytest.raises(UserError, match="it was made before samples, lists or the size of a file there changed"):
        prepared(source, tmp_path)


def test_the_yaml_file_itself_and_its_other_name(tmp_path):
    source = poses(tmp_path / "mine")
    (source / "manifest.yaml").rename(source / "manifest.yml")
    assert prepared(source, tmp_path / "a").folder.name == "mine"
    (source / "manifest.yml").rename(source / "second.yaml")
    assert prepared(source / "second.yaml", tmp_path / "a").decoded == 0
    refused(source, r"must hold manifest\.yaml, found none; docs/own-data\.md")


def test_ids_are_row_numbers_where_there_are_none(tmp_path):
    source = poses(tmp_path / "mine")
    rewrite(source, lambda rows: [{k: v for k, v in row.items() if k != "id"} for row in rows])
    made = prepared(source, tmp_path)
    assert (made.folder / "index.csv").read_text().splitlines()[:3] == ["id,class", "000001,cat", "000002,dog"]


def test_a_column_may_be_called_anything(tmp_path):
    source = poses(tmp_path / "mine", line=lambda i: f"word{i}", kind=lambda i: "x")
    write_yaml(source, {**POSES, "line": {"kind": "text"}})
    bundle = loaded(source, tmp_path)
    assert bundle.train.inputs["line"][0, 0] == tokens("word0")[0]
    rewrite(source, lambda rows: [*rows, {**rows[0], "id": "new", "label": ""}])
    refused(source, r"line 14 of .*clips\.csv must have a label")


# names of packs


def test_names(tmp_path):
    source = poses(tmp_path / "mine")
    with pytest.raises(UserError, match=r"manifest\.name must name prepared data, found none; add --set"):
        Manifest().load(tmp_path)
    with pytest.raises(UserError, match=r"call python benchmarks/prepare\.py manifest --source DIR --data-root"):
        Manifest(ManifestOptions(name="mine")).load(tmp_path)
    prepared(source, tmp_path)
    prepared(source, tmp_path, name="zebra")
    with pytest.raises(UserError, match=r"found none; known: mine, zebra; add --set manifest\.name=NAME"):
        Manifest().load(tmp_path)
    with pytest.raises(UserError, match=r"found none; did you mean 'mine'\?; call python"):
        Manifest(ManifestOptions(name="mind")).load(tmp_path)
    for name in ("a/b", "..", ".", "/etc", ".hidden", "a\0b", "a" * 300, "a" * 201, "\xe4" * 101):
        with pytest.raises(
            UserError, match=r"must be a plain folder name of at most 200 bytes, found '[^ ]{1,80}'; add"
        ):
            Manifest(ManifestOptions(name=name)).load(tmp_path)
        with pytest.raises(UserError, match="must be a plain folder name"):
            prepared(source, tmp_path, name=name)
    prepared(source, tmp_path, name="\xe4" * 100)
    assert len(Manifest(ManifestOptions(name="\xe4" * 100)).load(tmp_path).classes) == 2
    with pytest.raises(UserError, match="needs --data-root DIR"):
        Manifest(ManifestOptions(name="mine")).load(None)
    with pytest.raises(UserError, match="call for_source"):
        prepare(Manifest(ManifestOptions(name="new")), source, tmp_path, 1, quiet=True)


@pytest.mark.parametrize(
    ("columns", "remarked"),
    [
        ({}, ["s006"]),
        ({"group": lambda i: f"g{i % 6}"}, []),
        ({"group": lambda i: f"g{i}"}, ["s006"]),
        ({"split": lambda i: "train" if i != 5 else "test"}, []),
        ({"split": lambda i: "train" if i != 6 else "test"}, ["s006"]),
    ],
)
def test_rows_of_the_same_files_that_may_be_in_two_splits(tmp_path, columns, remarked):
    source = poses(tmp_path / "mine", **columns)
    rewrite(
        source,
        lambda rows: [{**r, "pose": "npy/0.npy", "caption": "a"} if i in (0, 6) else r for i, r in enumerate(rows)],
    )
    found = [(p.id, p.reason, p.kept) for p in read_source(source / "manifest.yaml").listing.problems]
    reason = "all of it is what s000 has, too, which may be in another split; give both one group"
    assert found == [(name, reason, True) for name in remarked]


def test_a_folder_that_cannot_be_read_is_not_missing(tmp_path, monkeypatch):
    source = poses(tmp_path / "mine")
    stat = Path.stat

    def refuse(path, **kw):
        if path.name == "3.npy":
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **kw)

    monkeypatch.setattr(Path, "stat", refuse)  # root may read everything
    with pytest.raises(PermissionError):
        read_source(source / "manifest.yaml")


def test_the_first_line_that_excel_wants(tmp_path):
    source = poses(tmp_path / "mine")
    told = "sep=;\r\n" + (source / "clips.csv").read_text().replace(",", ";")
    expected = read_source(source / "manifest.yaml").listing
    (source / "clips.csv").write_text(told, encoding="utf-8-sig", newline="")
    assert read_source(source / "manifest.yaml").listing == expected


def test_a_pack_of_another_version(tmp_path, monkeypatch):
    source = poses(tmp_path / "mine")
    prepared(source, tmp_path)
    now = Manifest.version
    monkeypatch.setattr(Manifest, "version", now + 1)
    with pytest.raises(UserError, match=f"must be of version {now + 1} of dataset manifest, found {now}; remove it"):
        Manifest(ManifestOptions(name="mine")).load(tmp_path)
    with pytest.raises(
        UserError, match=f"it was made by version {now} of dataset manifest, which is {now + 1} now; remove that folder"
    ):
        prepared(source, tmp_path)


def test_a_pack_of_a_preset_that_is_gone(everything, tmp_path):
    """What is wrong with it is its version, not its YAML."""
    folder = prepared(everything, tmp_path).folder
    written = (folder / "manifest.json").read_text()
    old = written.replace('"pmr_299"', '"pmr_16k"').replace(f'"version": {Manifest.version}', '"version": 2')
    (folder / "manifest.json").write_text(manifest_text(json.loads(old)))
    with pytest.raises(UserError, match="of version 3 of dataset manifest, found 2; remove it and prepare again"):
        Manifest(ManifestOptions(name=folder.name)).load(tmp_path)


def test_a_killed_preparation_goes_on(tmp_path, monkeypatch):
    source = poses(tmp_path / "mine")
    whole = prepared(source, tmp_path / "a")
    original, calls = Manifest.decode, []

    def decode(self, item):
        if len(calls) == 5:
            raise KeyboardInterrupt
        calls.append(item.id)
        return original(self, item)

    monkeypatch.setattr(Manifest, "decode", decode)
    with pytest.raises(KeyboardInterrupt):
        prepared(source, tmp_path / "b")
    monkeypatch.undo()
    made = prepared(source, tmp_path / "b")
    assert (made.resumed, made.decoded) == (5, 7)
    for path in whole.folder.iterdir():
        if path.name != VERIFIED:  # times and inodes of its arrays
            assert (made.folder / path.name).read_bytes() == path.read_bytes(), path.name


# damage


def reasons(made):
    return {row["id"]: (row["problem"], bool(row["kept"])) for _, row in made.problems.iterrows()}


def test_missing_and_damaged_media_are_left_out(tmp_path):
    source = tmp_path / "mine"
    rows, modalities = [], {"audio": {"kind": "audio", "column": "clip"}, "video": {"kind": "video", "column": "clip"}}
    modalities["photo"] = {"kind": "image"}
    for i in range(12):
        write_video(source / f"{i}.mp4", seconds=1.5, silent=i == 2)
        Image.new("RGB", (30, 30), (i, 0, 0)).save(source / f"{i}.png")
        rows.append({"id": f"r{i:02d}", "label": "ab"[i % 2], "clip": f"{i}.mp4", "photo": f"{i}.png"})
    (source / "3.mp4").unlink()
    (source / "4.png").unlink()
    cut(source / "5.mp4")
    cut(source / "6.png")
    rows[7]["photo"] = ""
    write_video(source / "8.mp4", sound=False)
    (source / "9.mp4").unlink()
    (source / "9.png").unlink()
    write_wav(source / "10.mp4", tone(1, 16000))
    (source / "11").mkdir()
    rows[11]["clip"] = "11"
    made = prepared(write(source, rows, modalities), tmp_path)
    found = reasons(made)
    assert found["r02"] == ("silent", True)
    expected = {
        "r03": r"3\.mp4 must be a file, it is missing$",
        "r04": r"4\.png must be a file, it is missing$",
        "r05": r"5\.mp4 must be a .*damaged or cut short",
        "r06": r"6\.png must be a whole picture",
        "r07": "column photo must not be empty, it is",
        "r08": r"8\.mp4 must be a media file with sound, it has no audio track",
        "r09": r"9\.mp4 must be a file, it is missing; .*9\.png must be a file, it is missing$",
        "r10": r"10\.mp4 must be a whole video, it has no video track",
        "r11": r"11 must hold frames \(\.jpg, \.jpeg or \.png\), it holds none$",
    }
    assert set(found) == {"r02", *expected}
    for name, pattern in expected.items():
        assert re.search(pattern, found[name][0]), found[name]
        assert not found[name][1]
    assert (made.manifest["samples"], made.manifest["left_out"], made.manifest["remarked"]) == (3, 9, 1)


def overflow():
    return np.array([1, 2, 1e300])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda p: np.save(p, features(1, 4)[0]), r"shape \(3,\), found \(4,\)"),
        (lambda p: np.save(p, features(2, 3)), r"shape \(3,\), found \(2, 3\)"),
        (lambda p: np.save(p, np.float32(3)), r"shape \(3,\), found \(\)"),
        (lambda p: np.save(p, np.array([1, np.nan, 2])), "pose of s001 must be finite"),
        (lambda p: np.save(p, np.array([1, np.inf, 2])), "pose of s001 must be finite"),
        (lambda p: np.save(p, overflow()), "pose of s001 must be finite"),
        (lambda p: np.save(p, np.array(["a", "b", "c"])), "must hold numbers, found <U1"),
        (lambda p: np.save(p, np.array([1j, 2, 3])), "must hold numbers, found complex"),
        (lambda p: np.save(p, np.array([{}, 2, 3], dtype=object), allow_pickle=True), r"whole \.npy file of numbers"),
        (lambda p: cut(p, 0.9), r"whole \.npy file of numbers"),
        (lambda p: p.write_bytes(b""), r"whole \.npy file of numbers"),
        (lambda p: p.write_text("1,2,3"), r"whole \.npy file of numbers"),
        (lambda p: (p.unlink(), p.mkdir()), "must be a file, it is a folder"),
    ],
)
def test_damaged_features_are_left_out(tmp_path, damage, reason):
    source = poses(tmp_path / "mine")
    damage(source / "npy" / "1.npy")
    made = prepared(source, tmp_path)
    assert re.search(reason, reasons(made)["s001"][0])
    assert (made.manifest["samples"], made.manifest["left_out"]) == (11, 1)


def test_any_damaged_byte_of_a_feature_file_is_survived(tmp_path):
    source = poses(tmp_path / "mine", 200)
    for i in range(150):
        path = source / "npy" / f"{i}.npy"
        content = bytearray(path.read_bytes())
        content[i % 128] ^= 1 << (i % 8)
        path.write_bytes(content)
    made = prepared(source, tmp_path)
    assert 50 <= made.manifest["samples"] < 150
    assert made.manifest["samples"] + made.manifest["left_out"] == 200


def test_sequences(tmp_path):
    source = poses(tmp_path / "mine")
    lengths = [9, 3, 1, 4, 4, 4, 2, 5, 6, 7, 8, 0]
    for i, n in enumerate(lengths):
        np.save(source / "npy" / f"{i}.npy", np.full((n, 5 if i == 0 else 2), i, dtype=np.int16))
    made = prepared(source, tmp_path)
    assert re.search(r"shape \(steps, 2\), found \(9, 5\)", reasons(made)["s000"][0])
    assert set(reasons(made)) == {"s000", "s011"}  # one of no step is no sequence
    declared = json.loads((made.folder / "manifest.json").read_text())["options"]["modalities"][0]
    assert (declared["length"], declared["width"]) == (8, 2)
    write_yaml(source, {**POSES, "pose": {"kind": "npy", "width": 5}})
    assert prepared(source, tmp_path / "b").manifest["samples"] == 1
    write_yaml(source, {**POSES, "pose": {"kind": "npy", "length": 3}})
    assert prepared(source, tmp_path / "c").manifest["stored"]["pose"]["shape"] == [3, 3]


def test_features_without_any_file_to_go_by(tmp_path):
    source = poses(tmp_path / "mine")
    for path in (source / "npy").iterdir():
        path.write_text("1,2,3")
    refused(source, r"at least one file of column pose must be an \.npy file with an array \[D\] or \[T, D\] for pose")
    source = poses(tmp_path / "mine")
    write_yaml(source, {**POSES, "pose": {"kind": "npy", "length": 9}})
    refused(source, r"pose\.length is for sequences \[T, D\], found vectors \[3\] in its files; leave it out")


def test_text_without_words(tmp_path):
    source = poses(tmp_path / "mine")
    rewrite(source, lambda rows: [{**rows[0], "caption": "!?"}, {**rows[1], "caption": " "}, *rows[2:]])
    found = reasons(prepared(source, tmp_path))
    assert found == {
        "s000": ("caption holds no word", True),
        "s001": ("column caption must not be empty, it is", False),
    }


def test_a_class_that_cannot_be_read_is_named_when_splits_are_drawn(tmp_path):
    source = poses(tmp_path / "mine", split=lambda i: "test" if i < 4 else "train")
    for i in range(5, 12, 2):
        (source / "npy" / f"{i}.npy").write_bytes(b"")
    prepared(source, tmp_path)
    with pytest.raises(UserError, match=r"problems\.csv\) must hold at least 2 train samples .*found 0 of 'dog'"):
        Manifest(ManifestOptions(name="mine")).load(tmp_path)


def test_nothing_is_there(tmp_path):
    source = poses(tmp_path / "mine")
    shutil.rmtree(source / "npy")
    refused(source, r"must have all of its files, found none of 12, the first: .*0\.npy must be a file, it is missing")


# lists as people write them


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"must hold csv and modalities, found neither; docs/own-data\.md"),
        ("- a", r"must hold names with values, found \['a'\]"),
        ("csv: [", "must be YAML, found a mistake"),
        (
            "csv: clips.csv\nmodalities: {pose: {kind: npy}, pose: {kind: text}}",
            "must have every key once, found 'pose' in line 2 and in line 2: remove one",
        ),
        ("csv: clips.csv\nmodalities: {pose: {kind: [npy]}, caption: {kind: text}}", r"pose .* no kind \['npy'\]"),
        ("csv: clips.csv\nmodality: {}", r"no key 'modality'; did you mean 'modalities'\?"),
        ("modalities: {}", "csv of .* must be the path of a CSV, found None"),
        ("csv: clips.csv", "must name at least two, each with its kind, found None"),
        ("csv: clips.csv\nmodalities: {pose: {kind: npy}}", "must name at least two, each with its kind, found pose"),
        ("csv: clips.csv\nmodalities: {pose: {kind: npy}, caption: text}", "caption .* must have a kind .*'text'"),
        ("csv: clips.csv\nmodalities: {pose: {kind: npy}, caption: {}}", r"must have a kind \(audio, video, image"),
        (
            "csv: clips.csv\nmodalities: {pose: {kind: npyy}, caption: {}}",
            r"pose .* no kind 'npyy'; did you mean 'npy'\?",
        ),
        (
            "csv: clips.csv\nmodalities: {pose: {kind: npy}, caption: {kind: text, lenght: 3}}",
            r"caption has no option 'lenght'; did you mean 'length'\?",
        ),
        (
            "csv: clips.csv\nmodalities: {pose: {kind: npy}, caption: {kind: text, length: x}}",
            r"caption\.length must be a whole number, found 'x'",
        ),
        (
            "csv: clips.csv\nmodalities: {pose: {kind: npy}, c: {kind: audio, preset: x}}",
            r"c\.preset must be one of ogm",
        ),
        ("csv: clips.csv\nmodalities: {pose: {kind: npy}, c: {kind: video, fps: 0}}", r"c\.fps must be > 0"),
        ("csv: clips.csv\nmodalities: {pose: {kind: npy}, a.b: {kind: text}}", "letters, digits and _, found 'a.b'"),
        (
            "csv: clips.csv\nmodalities: {pose: {kind: npy}, 3: {kind: text}}",
            "must have texts as keys, found 3 in line 2",
        ),
        ("csv: clips.csv\nmodalities: {pose: {kind: npy}, label: {kind: text}}", "must not be named label"),
        ("csv: clips.csv\nmodalities: {pose: {kind: npy}, keys: {kind: text}}", "must not be named keys"),
        (
            "csv: clips.csv\nmodalities: {pose: {kind: npy}, text: {kind: text, column: captoin}}",
            r"the column 'captoin' of modality text, found none; did you mean 'caption'\?",
        ),
        (
            "csv: clips.csv\nmodalities: {pose: {kind: npy}, text: {kind: text, column: label}}",
            "the column 'label' of modality text, found none",
        ),
        (
            "csv: clip.csv\nmodalities: {pose: {kind: npy}, caption: {kind: text}}",
            "csv must name a file, found none at",
        ),
        (
            'csv: "clips\\0.csv"\nmodalities: {pose: {kind: npy}, caption: {kind: text}}',
            r"must hold no control characters, found 'clips\\x00\.csv' in line 1: remove them",
        ),
        (
            f"csv: {'a' * 300}\nmodalities: {{pose: {{kind: npy}}, caption: {{kind: text}}}}",
            r"csv must name a file that can be read, found '.*aaa': file name too long; correct the YAML",
        ),
    ],
)
def test_mistakes_in_the_yaml(tmp_path, text, message):
    source = poses(tmp_path / "mine")
    (source / "manifest.yaml").write_text(text)
    refused(source, message)


HEADER = "label,id,pose,caption\n"
ROWS = [f"{'ab'[i % 2]},s{i},npy/{i}.npy,words\n" for i in range(6)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must have a column label, found none"),
        (HEADER, "must have a row a sample, found none"),
        (
            "".join([HEADER.replace("label", "Label"), *ROWS]),
            r"must have a column label, found none; did you mean 'Label'\?",
        ),
        ("".join([HEADER.replace("caption", "pose"), *ROWS]), "name every column once, found 'pose' 2 times"),
        (
            "".join([HEADER, *ROWS, "a,s6,npy/6.npy,one, two\n"]),
            "4 cells in every row, found 5 in line 8; put a text with ','",
        ),
        ("".join([HEADER, *ROWS, "a,s6,npy/6.npy\n"]), "4 cells in every row, found 3 in line 8"),
        ("".join([HEADER, *ROWS, 'a,s6,npy/6.npy,"open\n']), "must be a CSV, found a mistake in line 8"),
        ("".join([HEADER, *ROWS, "a,s6,npy/6.npy,caf\xe9\n"]).encode("latin1"), "must be a CSV in UTF-8"),
        ("".join([HEADER, *ROWS]).encode("utf-16"), "must be a CSV in UTF-8"),
        ("".join([HEADER, *ROWS, "a,s3,npy/6.npy,words\n"]), "line 8 .* an id of its own, found 's3' in line 5, too"),
        ("".join([HEADER, *ROWS, "a,,npy/6.npy,words\n"]), "line 8 .* must have a id, found none"),
        ("".join([HEADER, *ROWS, ",s6,npy/6.npy,words\n"]), "line 8 .* must have a label, found none"),
        (
            "".join([HEADER, *ROWS, "c,s6,npy/6.npy,words\n"]),
            "at least 3 samples of every class, .*found 1 of 'c'; add some",
        ),
        ("".join([HEADER, *ROWS[::2]]), "must have at least two classes, found 'a' only"),
    ],
)
def test_mistakes_in_the_csv(tmp_path, text, message):
    source = poses(tmp_path / "mine")
    (source / "clips.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(source, message)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"split": lambda i: "trian" if i == 4 else "train"},
            "split in line 6 .* one of train, val, test, found 'trian'",
        ),
        ({"split": lambda i: "" if i == 4 else "train"}, "line 6 of .* must have a split, found none"),
        ({"split": lambda i: "train"}, "must hold samples whose split is test, found none"),
        ({"split": lambda i: "test"}, "must hold samples whose split is train, found none"),
        ({"split": lambda i: "test" if i % 2 else "train"}, "at least 2 train samples .*found 0 of 'dog'"),
        (
            {"split": lambda i: "train" if i in (0, 1, 2) else ("test", "val")[i % 2]},
            None,
        ),
        ({"split": lambda i: "train" if i in (0, 1, 2) else "test"}, "at least 2 train samples .*found 1 of 'dog'"),
        ({"group": lambda i: "" if i == 3 else "g"}, "line 5 of .* must have a group"),
        (
            {"group": lambda i: f"g{i // 4}", "split": lambda i: "test" if i > 6 else "train"},
            "no group of .* in two splits, found 'g1' in train and, in line 9, in test",
        ),
    ],
)
def test_mistakes_in_splits_and_groups(tmp_path, columns, message):
    source = poses(tmp_path / "mine", **columns)
    if message is None:
        Manifest().for_source(source)
    else:
        refused(source, message)


def test_a_text_taken_for_a_path(tmp_path):
    source = poses(tmp_path / "mine", caption=lambda i: "word " * 200)
    write_yaml(source, {**POSES, "caption": {"kind": "image"}})
    refused(source, "found none of 12, the first: .* must be a file, it is missing")


@pytest.mark.parametrize("kind", ["audio", "video", "image", "npy"])
@pytest.mark.parametrize("cell", ["a\0b", "a" * 300, "a/" * 3000])
def test_what_cannot_be_a_path(tmp_path, kind, cell):
    source = poses(tmp_path / "mine", other=lambda i: cell)
    write_yaml(source, {**POSES, "other": {"kind": kind}})
    refused(source, "found none of 12, the first: .* must be a file, it is missing")


def test_a_source_longer_than_any_name():
    refused(Path("a" * 300), r"a{300} must hold manifest\.yaml, found none")


def test_a_text_of_any_length(tmp_path):
    """Python's csv takes 131072 characters a cell, for the whole process."""
    limit = csv.field_size_limit()
    source = poses(tmp_path / "mine", caption=lambda i: "of all words " + "word " * 30000 if i == 3 else "one two")
    bundle = loaded(source, tmp_path)
    assert csv.field_size_limit() == limit
    texts = torch.cat([bundle.split(s).stored("caption", torch.arange(len(bundle.split(s)))) for s in SPLITS])
    expected = torch.from_numpy(tokens("of all words word", 4, VOCABULARY))
    assert (texts == expected).all(1).sum() == 1


def test_reading_a_source_reads_no_media(everything, monkeypatch):
    for name in ("read_sound", "read_video", "read_pictures"):
        monkeypatch.setattr(f"balancebench_udi.data.media.{name}", lambda *_: pytest.fail("read"))
    source = read_source(everything / "manifest.yaml")
    assert Counter(i.label for i in source.listing.items) == {"9": 4, "10": 4}


def test_mistakes_on_the_command_line(tmp_path, capsys, catalogue):
    assert prepare_main(["manifest", "--source", str(tmp_path), "--data-root", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} must hold manifest.yaml, found none")
    assert run_main(["--dataset", "manifest", "--data-root", str(tmp_path)]) == 2
    assert "manifest.name must name prepared data" in capsys.readouterr().err
