"""CMU-MOSEI and CMU-MOSI in the layouts of MulT and MMSA: small pickles of every protocol, and what becomes of them."""

import os
import pickle
import shutil
import struct
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch

from balancebench_udi.data.loader import Loader
from balancebench_udi.data.mosei import CLASSES, MOSEI, MOSISequences, pool, read_pickle
from balancebench_udi.data.pack import prepare
from balancebench_udi.data.pack.tables import read_table
from balancebench_udi.errors import UserError
from balancebench_udi.nets.encoders import encoder_options
from tests.helpers import train

NOALIGN = "mosei_senti_data_noalign.pkl"
STEPS = {"text": 50, "audio": 130, "vision": 70}
SMALL = {"text": 4, "audio": 3, "vision": 2}
COUNTS = {"train": 14, "valid": 5, "test": 6}
HERE = {"train": "train", "val": "valid", "test": "test"}
KEYS = {"text": "text", "audio": "audio", "video": "vision"}


def make(layout="mult", seed=0, counts=COUNTS, steps=STEPS, widths=(300, 74, 35), signal=0.0):
    """The dict of a pickle: padding at the end, some infinities in the audio, and scores in thirds."""
    rng = np.random.default_rng(seed)
    tables = {}
    for key, n in counts.items():
        scores = rng.integers(-9, 10, n) / 3
        scores[:2] = -1, 1
        table = {}
        for m, width in zip(steps, widths, strict=True):
            values = 5 * rng.standard_normal((n, steps[m], width)) + 3
            values += signal * np.where(scores < 0, -1, 1)[:, None, None]
            for row in range(n):
                values[row, rng.integers(steps[m] // 2, steps[m]) :] = 0
            table[m] = values
        table["audio"][0, 0, 5:8] = -np.inf
        table["audio"][1, 0] = -np.inf
        if layout == "mult":
            table["labels"] = scores.reshape(n, 1, 1)
            table["id"] = np.array([[f"vid_{key}{i // 2}[{i}]", f"{i}.5", f"{i + 1}.25"] for i in range(n)])
        else:
            table |= {
                "text_bert": np.zeros((n, 3, 50), np.int64),
                "audio_lengths": [steps["audio"]] * n,
                "vision_lengths": [steps["vision"]] * n,
                "raw_text": np.array(["so good"] * n),
                "regression_labels": scores.astype(np.float32),
                "classification_labels": np.sign(scores) + 1,
                "annotations": ["Neutral"] * n,
                "id": [f"-vid_{key}{i // 2}$_${i}" for i in range(n)],
            }
        tables[key] = table
    return tables


def write(folder, tables, file=NOALIGN, protocol=4):
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / file).open("wb") as handle:
        pickle.dump(tables, handle, protocol)
    return folder


def build(source, root, cls=MOSEI, **options):
    """(bundle, problems) of a fresh pack."""
    dataset = cls(cls.Options(**options))
    made = prepare(dataset, source, root, workers=2, quiet=True)
    return cls(cls.Options(**options)).load(root), made.problems


def expected(tables, key, m, steps):
    """The stored sequences of one split, one step after the other."""

    def real(values):
        steps = [[x if np.isfinite(x) else 0.0 for x in step] for step in values.tolist()]
        return [step for step in steps if any(step)]

    name = KEYS[m]
    fit = np.array([step for values in tables["train"][name] for step in real(values)])
    mean, std = fit.mean(0), fit.std(0)
    scale = np.array([1 / s if np.ptp(fit[:, d]) > 0 else 0 for d, s in enumerate(std)])
    out = []
    for values in tables[key][name]:
        total = len(values)
        for j in range(steps):
            inside = values[j : j + 1] if total <= steps else values[j * total // steps : (j + 1) * total // steps]
            kept = real(inside)
            out.append((np.mean(kept, 0) - mean) * scale if kept else np.zeros(values.shape[1]))
    return np.reshape(out, (-1, steps, len(mean)))


def close(bundle, part, m, wanted):
    return np.allclose(of(bundle, part, m), wanted, rtol=2e-3, atol=2e-3)


def of(bundle, part, m):
    return bundle.split(part).stored(m, torch.arange(len(bundle.split(part)))).numpy()


@pytest.fixture(scope="module")
def tables():
    tables = make()
    tables["train"]["audio"][:, :, 20] = np.where(tables["train"]["audio"].any(-1), 0.1, 0)  # constant where it sounds
    tables["train"]["vision"][2, 10:30] = 0  # a face lost for a while
    tables["test"]["text"][3] = 0
    return tables


@pytest.fixture(scope="module")
def made(tables, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mosei")
    return build(write(folder / "source", tables), folder / "root")


# what is stored


def test_splits_shapes_and_order(tables, made):
    bundle, _ = made
    assert {m: (x.kind, x.shape, x.encoder) for m, x in bundle.modalities.items()} == {
        "text": ("sequence", (50, 300), "temporal"),
        "audio": ("sequence", (50, 74), "temporal"),
        "video": ("sequence", (50, 35), "temporal"),
    }
    assert list(bundle.modalities) == ["text", "audio", "video"]
    assert bundle.classes == ("negative", "non-negative")
    for part, key in HERE.items():
        assert bundle.split(part).target.tolist() == (tables[key]["labels"].ravel() >= 0).astype(int).tolist()
    assert {values.dtype for values in bundle.train.inputs.values()} == {torch.float16}


def test_every_sequence_is_that_of_its_utterance(tables, made):
    """Cleaned, standardised by train and pooled, in every split; rows of text, sound and face belong together."""
    bundle, _ = made
    for part, key in HERE.items():
        for m in KEYS:
            assert close(bundle, part, m, expected(tables, key, m, 50))


def test_standardised_steps_of_train_when_nothing_is_pooled(tmp_path):
    """Over all of train, which is read in parts."""
    tables = make(counts={"train": 150, "valid": 3, "test": 3})
    tables["train"]["audio"][:, :, 20] = np.where(tables["train"]["audio"].any(-1), 0.1, 0)
    options = {"audio_steps": STEPS["audio"], "video_steps": STEPS["vision"]}
    bundle, _ = build(write(tmp_path / "s", tables), tmp_path / "r", **options)
    for m, key in KEYS.items():
        raw = np.nan_to_num(tables["train"][key], neginf=0)
        real = raw.any(-1)
        stored = of(bundle, "train", m).astype(np.float64)
        assert not stored[~real].any()
        steps = stored[real]
        moving = np.ptp(raw[real], axis=0) > 0
        assert (~moving).sum() == (m == "audio")
        assert not steps[:, ~moving].any()
        assert np.allclose(steps.mean(0)[moving], 0, atol=1e-3)
        assert np.allclose(steps.std(0)[moving], 1, atol=1e-3)


def test_only_train_decides_the_scale(tables, made, tmp_path):
    changed = {key: dict(table) for key, table in tables.items()}
    for key in ("valid", "test"):
        changed[key]["audio"] = 100 * tables[key]["audio"]
    bundle, _ = build(write(tmp_path / "s", changed), tmp_path / "r")
    assert np.array_equal(of(bundle, "train", "audio"), of(made[0], "train", "audio"))
    assert np.abs(of(bundle, "val", "audio")).max() > 20 * np.abs(of(made[0], "val", "audio")).max()


def test_a_feature_that_is_constant_in_train_is_zero_everywhere(made):
    for part in HERE:
        audio = of(made[0], part, "audio")
        assert not audio[:, :, 20].any()
        assert audio[:, :, 19].any()


def test_not_standardised_and_beyond_float16(tables, tmp_path):
    changed = {key: dict(table) for key, table in tables.items()}
    changed["valid"]["vision"] = tables["valid"]["vision"].copy()
    changed["valid"]["vision"][2, 5, 7] = -1e6
    changed["valid"]["vision"][2, 6, 8] = np.inf
    bundle, problems = build(write(tmp_path / "s", changed), tmp_path / "r", standardise=False, video_steps=70)
    text = tables["train"]["text"]
    assert np.allclose(of(bundle, "train", "text"), text, rtol=1e-3, atol=1e-3)
    video = of(bundle, "val", "video")
    assert video[2, 5, 7] == -65504
    assert video[2, 6, 8] == 0
    reasons = problems[problems["id"].str.startswith("val-00002")]["problem"].tolist()
    assert reasons == [
        "video: 1 values that are not finite became 0",
        "video: values beyond 65504, the largest of float16, became that",
    ]


def test_remarks_are_exactly_those_of_the_file(made):
    _, problems = made
    assert problems["kept"].all()
    ids = problems["id"].str.extract(r"^(\w+-\d{5})-", expand=False)
    found = list(zip(ids, problems["problem"], strict=True))
    assert found == [
        ("test-00000", "audio: 3 values that are not finite became 0"),
        ("test-00001", "audio: 74 values that are not finite became 0"),
        ("test-00003", "text: every step is 0"),
        ("train-00000", "audio: 3 values that are not finite became 0"),
        ("train-00001", "audio: 73 values that are not finite became 0"),
        ("val-00000", "audio: 3 values that are not finite became 0"),
        ("val-00001", "audio: 74 values that are not finite became 0"),
    ]


@pytest.mark.parametrize(("total", "length"), [(500, 50), (130, 50), (7, 5), (5, 5), (3, 5), (9, 1), (1, 1)])
def test_pooling(total, length):
    rng = np.random.default_rng(total)
    steps, real = rng.standard_normal((total, 3)), rng.random(total) < 0.6
    got = pool(steps, real, length)
    assert got.shape == (length, 3)
    for j in range(length):
        inside = range(j * total // length, (j + 1) * total // length) if total > length else [j] if j < total else []
        kept = [steps[i] for i in inside if real[i]]
        assert np.allclose(got[j], np.mean(kept, axis=0) if kept else 0)
    assert np.allclose(pool(np.ones((total, 3)), np.ones(total, bool), min(length, total)), 1)


# labels


BOUNDARIES = {
    -3.0: (0, 0, 0, 0),
    -2.5: (0, 0, 1, 0),  # halves to even: -2
    -2.0: (0, 0, 1, 1),
    -1.5: (0, 0, 1, 1),
    -1.4: (0, 0, 2, 1),
    -1.0: (0, 0, 2, 2),
    -0.5: (0, 0, 3, 2),
    -1e-4: (0, 0, 3, 2),
    0.0: (1, None, 3, 3),
    1e-4: (1, 1, 3, 4),
    0.5: (1, 1, 3, 4),
    0.6: (1, 1, 4, 4),
    1.0: (1, 1, 4, 4),
    1.5: (1, 1, 5, 5),
    2.0: (1, 1, 5, 5),
    2.5: (1, 1, 5, 6),
    3.0: (1, 1, 6, 6),
}
"""Score -> class by each label; the last as AGM and BalanceBenchmark: [-1, 0) is class 2, (0, 1] class 4 and so on."""


@pytest.mark.parametrize(("which", "label"), list(enumerate(CLASSES)))
def test_boundaries_of_the_classes(tmp_path, which, label):
    scores = [*BOUNDARIES, -0.0]
    tables = make(counts={"train": len(scores), "valid": 2, "test": 2}, steps=SMALL)
    tables["train"]["labels"] = np.array(scores).reshape(-1, 1, 1)
    bundle, problems = build(write(tmp_path / "s", tables), tmp_path / "r", label=label)
    wanted = [BOUNDARIES[s][which] for s in scores]
    assert bundle.train.target.tolist() == [c for c in wanted if c is not None]
    assert bundle.classes == CLASSES[label]
    assert problems["kept"].all()
    assert len(CLASSES[label]) == (7 if label in ("seven", "intervals") else 2)


def test_what_is_left_out_does_not_decide_the_scale(tmp_path):
    """With nonzero the neutral utterances are gone from the mean and standard deviation as well."""
    tables = make(counts={"train": 8, "valid": 2, "test": 2})
    tables["train"]["labels"][:] = 1
    tables["train"]["labels"][4:] = 0
    tables["train"]["text"][4:] += 1000
    bundle, _ = build(write(tmp_path / "s", tables), tmp_path / "r", label="nonzero")
    assert len(bundle.train) == 4
    assert abs(of(bundle, "train", "text").astype(np.float64).std() - 1) < 0.3


def test_bad_scores_and_repeated_names_are_problems(tmp_path):
    tables = make()
    tables["train"]["labels"][3] = np.nan
    tables["valid"]["labels"][2] = -np.inf
    tables["test"]["id"] = tables["test"]["id"].astype(object)
    tables["test"]["id"][4] = tables["train"]["id"][6]
    bundle, problems = build(write(tmp_path / "s", tables), tmp_path / "r")
    own = problems[~problems["problem"].str.contains("not finite became")]
    assert own[["problem", "kept"]].to_numpy().tolist() == [
        ["vid_train3[6]_6.5_7.25 is in the file more than once", True],
        ["its score must be finite, found nan", False],
        ["its score must be finite, found -inf", False],
    ]
    assert [len(bundle.split(p)) for p in HERE] == [13, 4, 6]
    assert bundle.facts["left_out"] == 2
    assert bundle.train.target.tolist() == [int(s >= 0) for s in tables["train"]["labels"].ravel() if not np.isnan(s)]


# files


def test_index_names_videos_and_scores(tables, made, tmp_path):
    build(write(tmp_path / "s", tables), tmp_path / "r")
    index = read_table(next((tmp_path / "r").glob("packed/mosei/*/index.csv")))
    row = index[index["id"] == "val-00003-vid_valid1[3]_3.5_4.25"].iloc[0]
    assert row["file"] == "val"
    assert row["video"] == "vid_valid1"
    assert float(row["score"]) == pytest.approx(tables["valid"]["labels"][3, 0, 0], abs=1e-5)
    assert index["video"].nunique() == 7 + 3 + 3


@pytest.mark.parametrize("file", ["unaligned_50.pkl", "aligned_50.pkl"])
def test_mmsa(tmp_path, file):
    steps = STEPS if file.startswith("un") else dict.fromkeys(STEPS, 50)
    tables = make("mmsa", widths=(768, 74, 35), steps=steps)
    for table in tables.values():
        table["text"] = table["text"].astype(np.float32)
    tables["test"]["regression_labels"] = tables["test"]["regression_labels"].tolist()
    bundle, _ = build(write(tmp_path / "s", tables, file), tmp_path / "r", file=file)
    assert bundle.modalities["text"].shape == (50, 768)
    for part, key in HERE.items():
        assert bundle.split(part).target.tolist() == [int(s >= 0) for s in tables[key]["regression_labels"]]
        for m in KEYS:
            assert close(bundle, part, m, expected(tables, key, m, 50))
    index = read_table(next((tmp_path / "r").glob("packed/mosei/*/index.csv")))
    assert index.loc[index["id"] == "test-00005--vid_test2$_$5", "video"].tolist() == ["-vid_test2"]


def test_mosi_in_the_same_layout(tmp_path):
    """Narrower features, ids as bytes, audio and video of 375 and 500 steps."""
    tables = make(widths=(300, 5, 20), steps={"text": 50, "audio": 375, "vision": 500})
    for table in tables.values():
        table["audio"] = np.nan_to_num(table["audio"], neginf=1.0)
        table["id"] = table["id"].astype("S")
    bundle, problems = build(write(tmp_path / "s", tables, "mosi_data_noalign.pkl"), tmp_path / "r", MOSISequences)
    assert [x.shape for x in bundle.modalities.values()] == [(50, 300), (50, 5), (50, 20)]
    assert problems.empty
    for m in KEYS:
        assert close(bundle, "test", m, expected(tables, "test", m, 50))
    index = pd.read_csv(next((tmp_path / "r").glob("packed/mosi_sequences/*/index.csv")), dtype=str)
    assert "test-00002-vid_test1[2]_2.5_3.25" in set(index["id"])
    with pytest.raises(UserError, match=r"text of train in .* must be \[N, T, 768\], found \(14, 50, 300\)"):
        build(write(tmp_path / "t", tables, "aligned_50.pkl"), tmp_path / "r", MOSISequences, file="aligned_50.pkl")


class Python2Pickler(pickle._Pickler):
    """Writes text and bytes alike as Python 2's str, and numpy under its old names."""

    dispatch = dict(pickle._Pickler.dispatch)

    def text(self, value):
        data = value.encode("ascii") if isinstance(value, str) else bytes(value)
        short = len(data) < 256
        self.write(
            (pickle.SHORT_BINSTRING + bytes([len(data)])) if short else pickle.BINSTRING + struct.pack("<i", len(data))
        )
        self.write(data)

    def save_global(self, value, name=None):
        if getattr(value, "__name__", "") == "_reconstruct":
            self.write(b"cnumpy.core.multiarray\n_reconstruct\n")
        else:
            super().save_global(value, name)

    dispatch[str] = dispatch[bytes] = text
    dispatch[type(np.empty(0).__reduce__()[0])] = save_global


def write_as(protocol, path, tables):
    with path.open("wb") as handle:
        if protocol == "python2":
            Python2Pickler(handle, 2).dump(tables)
        elif protocol == "old numpy":
            text = pickle.dumps(tables, 3)
            assert b"numpy._core.multiarray" in text
            handle.write(text.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
        else:
            pickle.dump(tables, handle, protocol)


@pytest.mark.parametrize("protocol", [0, 2, 3, 5, "python2", "old numpy"])
def test_pickles_of_every_age(made, tmp_path, protocol):
    steps = {"text": 4, "audio": 9, "vision": 3}
    tables = make(steps=steps)
    tables["train"]["id"] = tables["train"]["id"].astype("S" if protocol == "python2" else object)
    (tmp_path / "s").mkdir()
    write_as(protocol, tmp_path / "s" / NOALIGN, tables)
    if protocol == "python2":
        assert b"cnumpy.core.multiarray\n" in (tmp_path / "s" / NOALIGN).read_bytes()
    bundle, _ = build(tmp_path / "s", tmp_path / "r", audio_steps=9)
    plain, _ = build(write(tmp_path / "t", make(steps=steps)), tmp_path / "q", audio_steps=9)
    for part in HERE:
        assert torch.equal(bundle.split(part).target, plain.split(part).target)
        for m in KEYS:
            assert np.array_equal(of(bundle, part, m), of(plain, part, m))
    ids = [pd.read_csv(next((tmp_path / r).glob("packed/mosei/*/index.csv")), dtype=str)["id"].tolist() for r in "rq"]
    assert ids[0] == ids[1]


class Reduces:
    """Asks the reader to call something."""

    def __init__(self, call, *arguments):
        self.reduced = (call, arguments)

    def __reduce__(self):
        return self.reduced


def attacks(marker):
    command = f"touch {marker}"
    return {
        "system": (pickle.dumps({"train": Reduces(os.system, command)}), "posix.system"),
        "eval": (pickle.dumps([Reduces(eval, f"__import__('os').system('{command}')")]), "builtins.eval"),
        "getattr": (pickle.dumps(Reduces(getattr, "x", "upper")), "builtins.getattr"),
        "numpy": (pickle.dumps(Reduces(np.load, str(marker))), "numpy.load"),
        "old": (b"cos\nsystem\n(V" + command.encode() + b"\ntR.", "os.system"),
        "fromfile": (b"cnumpy.core.multiarray\nfromfile\n(V" + command.encode() + b"\ntR.", "multiarray.fromfile"),
        "dotted": (b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.", "numpy.ndarray.tofile"),
        "in ids": (pickle.dumps({"train": {"id": np.array([Reduces(os.system, command)], object)}}), "posix.system"),
        "tensor": (pickle.dumps({"train": {"text": torch.zeros(2)}}), "torch"),
    }


@pytest.mark.parametrize("attack", list(attacks("")))
def test_nothing_in_a_pickle_is_executed(tmp_path, attack):
    marker = tmp_path / "marker"
    data, name = attacks(marker)[attack]
    (tmp_path / NOALIGN).write_bytes(data)
    with pytest.raises(UserError, match=f"numpy arrays and plain values only, found .*{name}"):
        MOSEI().listing(tmp_path)
    assert not marker.exists()


def test_no_other_codec_than_that_of_bytes(tmp_path):
    (tmp_path / NOALIGN).write_bytes(b"c_codecs\nencode\n(Vabc\nVrot13\ntR.")
    with pytest.raises(UserError, match="damaged"):
        MOSEI().listing(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.9999])
def test_cut_short(tmp_path, share):
    path = write(tmp_path, make(steps=SMALL)) / NOALIGN
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match="must be a whole pickle, it is cut short or damaged"):
        MOSEI().listing(tmp_path)


def test_absent_and_not_prepared(tmp_path):
    with pytest.raises(UserError, match=rf"must hold {NOALIGN}, it is absent; fetch it, or see prepare\.py --list"):
        MOSEI().listing(tmp_path)
    (tmp_path / "unaligned_50.pkl").touch()
    with pytest.raises(
        UserError, match=r"it is absent; --set mosei\.file=unaligned_50\.pkl takes the one that is there"
    ):
        MOSEI().listing(tmp_path)
    with pytest.raises(UserError, match=r"prepare\.py mosei --source DIR .* --set mosei\.label=seven"):
        MOSEI(MOSEI.Options(label="seven")).load(tmp_path)
    with pytest.raises(UserError, match=r"file must be one of mosei_senti_data_noalign\.pkl, "):
        MOSEI.Options(file="mosei.pkl")


def drop(key, name):
    return lambda t: t[key].pop(name)


def put(key, name, change):
    return lambda t: t[key].__setitem__(name, change(t[key][name]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("valid"), "found no valid"),
        (lambda t: t.__setitem__("test", [1]), "found no test"),
        (drop("train", "audio"), "audio of train in .* must be floats .*, found NoneType"),
        (put("test", "text", lambda x: x.tolist()), r"text of test in .* must be floats \[N, T, 300\], found list"),
        (put("test", "text", lambda x: x.astype(np.int64)), "must be floats .* found int64"),
        (put("valid", "vision", lambda x: x[:, :, :-1]), r"vision of valid in .* \[N, T, 35\], found \(5, 2, 34\)"),
        (put("valid", "vision", lambda x: x[:, :0]), r"found \(5, 0, 35\)"),
        (put("train", "audio", lambda x: x[:-1]), "must be as many, found 13, 14 and 14"),
        (put("train", "labels", lambda x: x[:-1]), "must be as many, found 14, 13 and 14"),
        (put("train", "id", lambda x: x[1:]), "must be as many, found 14, 14 and 13"),
        (drop("valid", "labels"), "valid in .* must hold labels or regression_labels"),
        (put("valid", "labels", lambda x: np.tile(x, (1, 1, 6))), "one number an utterance"),
        (put("valid", "labels", lambda x: ["good"] * len(x)), "one number an utterance"),
        (put("valid", "labels", lambda x: x * 10), "must lie in -3 to 3"),
        (put("valid", "labels", lambda x: x * np.nan), "valid in .* must hold an utterance for label=binary"),
        (put("test", "id", lambda x: "abc"), "id of test in .* must be a list, found str"),
        (put("train", "audio", lambda x: x * 0), "audio of train in .* must hold a step that is not 0"),
    ],
)
def test_other_layouts_are_refused(tmp_path, change, message):
    tables = make(steps=SMALL)
    for table in tables.values():
        table["audio"] = np.nan_to_num(table["audio"], neginf=0)
    change(tables)
    with pytest.raises(UserError, match=message):
        MOSEI().listing(write(tmp_path, tables))


def test_without_ids(tmp_path):
    tables = make()
    for table in tables.values():
        del table["id"]
    bundle, problems = build(write(tmp_path / "s", tables), tmp_path / "r")
    assert len(bundle.train) == COUNTS["train"]
    assert set(problems["id"]) == {f"{p}-0000{i}" for p in HERE for i in (0, 1)}


def test_fingerprint(tables, made, tmp_path):
    """Of the bytes, wherever they are, and of the options, each of which makes a pack of its own."""
    source = write(tmp_path / "a", tables)
    first, _ = build(source, tmp_path / "r")
    moved, _ = build(shutil.copytree(source, tmp_path / "elsewhere" / "b"), tmp_path / "q")
    assert first.fingerprint == moved.fingerprint == made[0].fingerprint
    changed = {key: dict(table) for key, table in tables.items()}
    changed["test"]["vision"] = tables["test"]["vision"].copy()
    changed["test"]["vision"][0, 0, 0] = np.nextafter(changed["test"]["vision"][0, 0, 0], 100)
    other, _ = build(write(tmp_path / "c", changed), tmp_path / "p")
    options = [{"label": "seven"}, {"text_steps": 49}, {"audio_steps": 9}, {"video_steps": 9}, {"standardise": False}]
    variants = [build(source, tmp_path / "r", **o)[0] for o in options]
    assert len({b.facts["pack"] for b in (first, other, *variants)}) == 7


def test_memory(tmp_path):
    """Preparation holds the file once: nothing is turned into float64 as a whole, and nothing is copied."""
    counts = {"train": 160, "valid": 4, "test": 4}
    tables = make(counts=counts, steps={"text": 50, "audio": 500, "vision": 500})
    for table in tables.values():
        for m in STEPS:
            table[m] = table[m].astype(np.float32)
    source = write(tmp_path / "s", tables)
    size = (source / NOALIGN).stat().st_size
    assert size > 3e7
    tracemalloc.start()
    try:
        values = read_pickle(source / NOALIGN)
        reading = tracemalloc.get_traced_memory()[1]
        del values
        tracemalloc.reset_peak()
        prepare(MOSEI(), source, tmp_path / "r", workers=1, quiet=True)
        preparing = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert reading < 1.1 * size
    assert preparing < size + 8e7  # 64 samples as float64 are 19 MB; three copies of them


# what is trained


def test_one_batch(made):
    bundle, _ = made
    batch = next(Loader(bundle, torch.device("cpu"), 8, 0).train(0, list(bundle.modalities)))
    for m, modality in bundle.modalities.items():
        assert batch.inputs[m].dtype == torch.float32
        assert batch.inputs[m].shape == (8, *modality.shape)
        assert torch.equal(batch.inputs[m], bundle.train.stored(m, batch.index).float())
    assert torch.equal(batch.target, bundle.train.target[batch.index])


def test_joint_beats_chance_in_two_epochs(tmp_path):
    tables = make(
        counts={"train": 160, "valid": 32, "test": 64}, steps={"text": 10, "audio": 40, "vision": 30}, signal=2.0
    )
    bundle, _ = build(write(tmp_path / "s", tables), tmp_path / "r", text_steps=10, audio_steps=10, video_steps=10)
    encoders = {m: encoder_options(x.encoder, x.kind, {"width": 16}) for m, x in bundle.modalities.items()}
    result, _ = train(bundle, "joint", epochs=2, encoders=encoders)
    share = bundle.test.target.bincount().max() / len(bundle.test)
    accuracy = result["readings"]["last"]["test"]["accuracy"]
    assert share < 0.65
    assert accuracy > 0.85
