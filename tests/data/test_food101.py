"""UPMC Food-101 in its published layouts, written small: alignment, splits, texts, and everything that can be wrong."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from balancebench_udi.data.food101 import FEATURE_IDS, FEATURES, Food101, Food101Options, read_titles
from balancebench_udi.data.loader import Loader
from balancebench_udi.data.pack import prepare
from balancebench_udi.data.text import tokens, words
from balancebench_udi.errors import UserError
from tests.helpers import train
from tests.media import cut

CLASSES = ("apple_pie", "baklava", "sushi")
COUNT = {"train": 8, "test": 3}
SMALL = {"stored_size": 224}


def colour(c, n):
    return (20 + 60 * c, 230 - 12 * n, 40)


def title(c, n):
    return f"{CLASSES[c].replace('_', ' ').title()} - Recipe nr. {n}0{c}, by X | Best"


def picture(path, c, n, size=(60, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour(c, n)).save(path, quality=95)


def samples(part):
    """(class, number) of each; the numbers of test go on after those of train."""
    first = 0 if part == "train" else COUNT["train"]
    return [(c, n) for c in range(len(CLASSES)) for n in range(first, first + COUNT[part])]


def name(part, c, n):
    return f"images/{part}/{CLASSES[c]}/{CLASSES[c]}_{n}.jpg"


def write_titles(path, rows, before="", end="\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=end).writerows(rows)
    path.write_bytes((before + text.getvalue()).encode())


def title_rows(part):
    return [[f"{CLASSES[c]}_{n}.jpg", title(c, n), CLASSES[c]] for c, n in samples(part)]


def build(folder):
    for part in COUNT:
        for c, n in samples(part):
            picture(folder / name(part, c, n), c, n)
        write_titles(folder / "texts" / f"{part}_titles.csv", title_rows(part))
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("source"))


@pytest.fixture
def source(built, tmp_path):
    return shutil.copytree(built, tmp_path / "source")


def dataset(**options):
    return Food101(Food101Options(**{**SMALL, **options}))


def made(source, root, **options):
    """What became of the preparation, and the bundle."""
    root.mkdir(exist_ok=True)
    data = dataset(**options)
    return prepare(data, source, root, workers=2, quiet=True), dataset(**options).load(root)


@pytest.fixture(scope="module")
def prepared(built, tmp_path_factory):
    return made(built, tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module")
def bundle(prepared):
    return prepared[1]


def contents(bundle, part):
    """(class, number) that the picture shows, that the text names, and the target's class, of each sample."""
    split = bundle.split(part)
    index = torch.arange(len(split))
    pixels = split.stored("image", index)[:, 0, 100, 100].float()
    shown = [(round((r - 20) / 60), round((230 - g) / 12)) for r, g, _ in pixels.tolist()]
    known = {tokens(title(c, n)).tobytes(): (c, n) for p in COUNT for c, n in samples(p)}
    said = [known[ids.numpy().tobytes()] for ids in split.stored("text", index)]
    return shown, said, [bundle.classes[y] for y in split.target.tolist()]


def problems(prepared):
    return {(row.id, row.kept): row.problem for row in prepared.problems.itertuples()}


# -- what is loaded ----------------------------------------------------------------------------------------------------


def test_every_sample_has_its_own_picture_text_and_class(bundle):
    assert bundle.classes == CLASSES
    everything = []
    for part in ("train", "val", "test"):
        shown, said, labels = contents(bundle, part)
        assert shown == said
        assert [CLASSES[c] for c, _ in shown] == labels
        everything += shown
    assert sorted(everything) == sorted(samples("train") + samples("test"))
    assert sorted(contents(bundle, "test")[0]) == samples("test")
    assert bundle.val.target.tolist() == [0, 1, 2]  # a tenth of eight, of each class
    assert bundle.facts["samples"] == {"train": 21, "val": 3, "test": 9}
    assert bundle.facts["left_out"] == 0


def test_how_the_modalities_are_presented(bundle):
    image, text = bundle.modalities["image"], bundle.modalities["text"]
    assert list(bundle.modalities) == ["image", "text"]
    assert (image.kind, image.shape, image.encoder) == ("frames", (3, 1, 224, 224), "resnet18")
    assert (text.kind, text.shape, text.encoder) == ("tokens", (40,), "tokens")
    assert image.transform.aspect == 1.0
    assert text.transform.draws == 0
    assert bundle.train.inputs["text"].dtype == torch.int32
    assert bundle.train.inputs["image"].dtype == torch.uint8


def test_batches_of_the_loader(bundle):
    loader = Loader(bundle, torch.device("cpu"), 8, 0)
    (batch,) = loader.ordered("test", ("image", "text"))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    seen = (batch.inputs["image"][:, :, 0, 50, 50] * std + mean) * 255
    expected = torch.tensor([colour(c, n) for c, n in contents(bundle, "test")[0]])
    torch.testing.assert_close(seen, expected.float(), rtol=0, atol=4)
    assert batch.inputs["text"].dtype == torch.float32
    assert torch.equal(batch.inputs["text"].int(), bundle.test.stored("text", torch.arange(9)))
    first = next(iter(loader.train(0, ("image", "text"))))
    assert first.inputs["image"].shape == (8, 3, 1, 224, 224)
    assert torch.equal(first.target, bundle.train.target[first.index])


def test_a_picture_is_squeezed_to_a_square_and_keeps_its_sides(source, tmp_path):
    """Left red, right blue: both halves stay, in colour and in place."""
    path = source / name("test", 0, 10)  # the first by name
    half = np.zeros((30, 90, 3), dtype=np.uint8)
    half[:, :45, 0], half[:, 45:, 2] = 200, 200
    Image.fromarray(half).save(path, quality=95)
    _, bundle = made(source, tmp_path / "root")
    stored = bundle.test.stored("image", torch.tensor([0]))[0, 0]
    assert stored.shape == (224, 224, 3)
    left, right = stored[:, 5:100].float().mean((0, 1)), stored[:, 124:219].float().mean((0, 1))
    assert left.tolist() == pytest.approx([200, 1, 1], abs=6)
    assert right.tolist() == pytest.approx([1, 1, 200], abs=6)


def test_grey_cmyk_and_transparent_pictures_are_pictures(source, tmp_path):
    first = COUNT["train"]
    Image.new("L", (50, 50), 77).save(source / name("test", 0, first))
    Image.new("CMYK", (50, 50), (0, 255, 255, 0)).save(source / name("test", 0, first + 1))
    Image.new("RGBA", (50, 50), (0, 0, 99, 128)).save(source / name("test", 0, first + 2), format="png")
    prepared, bundle = made(source, tmp_path / "root")
    assert prepared.manifest["left_out"] == 0
    rows = [i for i, c in enumerate(bundle.test.target.tolist()) if c == 0]
    seen = bundle.test.stored("image", torch.tensor(rows))[:, 0, 100, 100].tolist()
    for found, expected in zip(sorted(seen), sorted([[77, 77, 77], [255, 1, 1], [1, 1, 99]]), strict=True):
        assert found == pytest.approx(expected, abs=6)


def test_training_uses_words_that_only_texts_tell(source, tmp_path):
    """Pictures are all alike and titles name the dish. AGM encodes an input of zeros, which is a text without words."""
    for part in COUNT:
        for c, n in samples(part):
            picture(source / name(part, c, n), 1, 1)
    _, bundle = made(source, tmp_path / "root")
    encoders = {
        "image": {"name": "mlp", "width": 4, "depth": 1},
        "text": {"name": "tokens", "width": 16, "vocabulary": 16384, "depth": 1},
    }
    setup = {"epochs": 6, "batch_size": 7, "optimizer": {"name": "adamw", "lr": 0.02}, "encoders": encoders}
    result, _ = train(bundle, "joint", **setup)
    scores = result["readings"]["last"]["test"]
    assert scores["accuracy"] > 0.8
    assert scores["masked/image"] == pytest.approx(1 / 3)
    result, strategy = train(bundle, "agm", **setup | {"epochs": 1})
    assert np.isfinite(result["readings"]["last"]["test"]["loss"])
    assert all(p.isfinite().all() for p in strategy.parameters())


# -- lists -------------------------------------------------------------------------------------------------------------


def test_header_bom_crlf_and_quotes_change_nothing(source, prepared, tmp_path):
    header = "\ufeffImage_path,text,label\r\n"
    write_titles(source / "texts" / "train_titles.csv", title_rows("train"), header, "\r\n")
    write_titles(source / "texts" / "test_titles.csv", title_rows("test"), "\ufeff")
    again, _ = made(source, tmp_path / "root")
    assert again.manifest["fingerprint"] == prepared[0].manifest["fingerprint"]
    assert problems(again) == {}


def test_a_title_may_hold_commas_quotes_and_a_line_break(source, tmp_path):
    rows = title_rows("test")
    rows[2][1] = 'Pie, "the best",\nof all'  # apple_pie_10.jpg, the first by name
    write_titles(source / "texts" / "test_titles.csv", rows)
    _, bundle = made(source, tmp_path / "root")
    assert bundle.test.stored("text", torch.tensor([0]))[0].tolist()[:6] == tokens("pie the best of all", 6).tolist()


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("RT  Apple #pie", "apple pie"),
        ("ART of RT pie", "art of rt pie"),
        ("pie http://t.co/x and more", "pie"),
        ("pie https://t.co/x\nand more", "pie and more"),
        ("#RT pie", "rt pie"),
    ],
)
def test_titles_are_cleaned_as_in_balancebenchmark(source, tmp_path, text, seen):
    rows = title_rows("test")
    rows[2][1] = text  # apple_pie_10.jpg, the first by name
    write_titles(source / "texts" / "test_titles.csv", rows)
    _, bundle = made(source, tmp_path / "root")
    assert bundle.test.stored("text", torch.tensor([0]))[0].tolist()[:6] == tokens(seen, 6).tolist()


def test_everything_that_is_not_as_it_should_be_is_listed(source, prepared, tmp_path):
    (source / name("train", 0, 0)).unlink()
    cut(source / name("train", 0, 1))
    (source / name("train", 0, 2)).write_text("<html>404 Not Found</html>")
    picture(source / name("train", 2, 99), 2, 9)
    rows = title_rows("train")
    rows[3][1], rows[4][1] = "  ", "!? x"
    rows += [rows[5], [*rows[6][:1], "another title", *rows[6][2:]]]
    write_titles(source / "texts" / "train_titles.csv", rows)
    picture(source / "images/test/tacos/tacos_1.jpg", 0, 0)
    write_titles(source / "texts" / "test_titles.csv", [*title_rows("test"), ["tacos_1.jpg", "Tacos!", "tacos"]])
    again, bundle = made(source, tmp_path / "root")
    found = problems(again)
    assert {(name("train", 0, n), n > 3) for n in range(7)} | {
        (name("train", 2, 99), False),
        ("images/test/tacos/tacos_1.jpg", False),
    } == set(found)
    for n, reason in enumerate(
        ["missing", "whole picture", "whole picture", "not be empty", "has no word", "first line", "first line"]
    ):
        assert reason in found[name("train", 0, n), n > 3]
    assert "title must be in train_titles.csv" in found[name("train", 2, 99), False]
    assert "one of train's, found 'tacos'" in found["images/test/tacos/tacos_1.jpg", False]
    assert (again.manifest["left_out"], again.manifest["remarked"]) == (6, 3)
    assert bundle.classes == CLASSES
    assert bundle.facts["samples"] == {"train": 17, "val": 3, "test": 9}
    kept = dict(zip(again_ids(again), texts(again), strict=True))
    assert not kept[name("train", 0, 4)].any()
    assert (kept[name("train", 0, 6)] == tokens(title(0, 6))).all()
    assert again.manifest["fingerprint"] != prepared[0].manifest["fingerprint"]


def again_ids(prepared):
    with (prepared.folder / "index.csv").open() as handle:
        return [row["id"] for row in csv.DictReader(handle)]


def texts(prepared):
    return np.load(prepared.folder / "text.npy")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "apple_pie_1.jpg,a title without quotes, but a comma,apple_pie",
            "found 'apple_pie_1.jpg,a title .* in line 3",
        ),
        ("apple_pie_1.jpg,apple_pie", "lines such as"),
        ("apple_pie_1,Pie,apple_pie", "lines such as"),
        ("apple_pie_1.jpg,Pie,", "lines such as"),
        ('apple_pie_1.jpg,"' + "x" * 140000 + '"', "lines such as .* found 'apple_pie_1.jpg,x{64}' in line 3"),
        ('apple_pie_1.jpg,"Pie,apple_pie', "lines such as"),
    ],
)
def test_malformed_titles(source, tmp_path, line, message):
    path = source / "texts" / "test_titles.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[2:]]) + "\n")
    with pytest.raises(UserError, match=message):
        dataset().listing(source)


def test_a_title_of_any_length(source):
    path, limit = source / "texts" / "test_titles.csv", csv.field_size_limit()
    before = read_titles(path, "test")
    path.write_text(path.read_text() + 'apple_pie_77.jpg,"' + "pie, " * 40000 + '",apple_pie\n')
    *rows, last = read_titles(path, "test")
    assert rows == before
    assert (last.text, last.label) == (("pie, " * 40000).strip(), "apple_pie")
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("part", ["train", "test"])
def test_missing_lists(source, part):
    (source / "texts" / f"{part}_titles.csv").unlink()
    with pytest.raises(UserError, match=f"found no texts/{part}_titles.csv for split=titles"):
        dataset().listing(source)
    with pytest.raises(UserError, match=r"found no train.jsonl for split=jsonl"):
        dataset(split="jsonl").listing(source)


@pytest.mark.parametrize("below", ["food101", "UPMC-Food-101", "FOOD101"])
def test_the_folder_may_lie_inside(built, prepared, tmp_path, below):
    (tmp_path / below).symlink_to(built)
    again, _ = made(tmp_path, tmp_path / "root")
    assert again.manifest["fingerprint"] == prepared[0].manifest["fingerprint"]


def test_nothing_there(source):
    shutil.rmtree(source / "images")
    with pytest.raises(
        UserError, match=r"found none of 33 samples, the first: .*apple_pie_0\.jpg: its image must be there"
    ):
        prepare(dataset(), source, source / "root", 1, quiet=True)


def test_not_prepared(tmp_path):
    with pytest.raises(UserError, match=r"prepare.py food101 --source DIR .*--set food101.length=9"):
        dataset(length=9).load(tmp_path)


# -- jsonl -------------------------------------------------------------------------------------------------------------


def write_jsonl(folder, **change):
    """MMBT's lists: the last two of each class's training images validate, and the text is of the page."""
    rows = {"train": [], "dev": [], "test": []}
    for part in COUNT:
        for c, n in samples(part):
            to = "dev" if part == "train" and n >= 6 else part
            label = CLASSES[c]
            text = f"page about {title(c, n)}"
            row = {"id": f"{label}_{label}_{n}.jpg", "label": label, "text": text, "img": name(part, c, n)}
            rows[to].append(row)
    for part, lines in rows.items():
        text = "".join(json.dumps(row) + "\n" for row in lines)
        (folder / f"{part}.jsonl").write_text(text + change.get(part, ""))


def test_jsonl_lists(source, tmp_path):
    shutil.rmtree(source / "texts")
    write_jsonl(source)
    _, bundle = made(source, tmp_path / "root", split="jsonl", length=50)
    assert bundle.facts["samples"] == {"train": 18, "val": 6, "test": 9}
    for part, expected in (
        ("val", [(c, n) for c, n in samples("train") if n >= 6]),
        ("test", samples("test")),
    ):
        split = bundle.split(part)
        index = torch.arange(len(split))
        known = {tokens(f"page about {title(c, n)}", 50).tobytes(): (c, n) for c, n in expected}
        said = [known[ids.numpy().tobytes()] for ids in split.stored("text", index)]
        red = split.stored("image", index)[:, 0, 9, 9, 0].float()
        assert sorted(said) == expected
        assert [c for c, _ in said] == split.target.tolist() == ((red - 20) / 60).round().int().tolist()


def test_jsonl_without_dev_holds_a_share_of_train_out(source, tmp_path):
    write_jsonl(source)
    (source / "dev.jsonl").unlink()
    prepared, bundle = made(source, tmp_path / "root", split="jsonl")
    assert bundle.facts["samples"] == {"train": 15, "val": 3, "test": 9}
    assert problems(prepared) == {}


@pytest.mark.parametrize(
    ("part", "line", "message"),
    [
        (
            "test",
            '{"img": "images/train/sushi/sushi_0.jpg", "text": "a b", "label": "sushi"}',
            "found .* train and test",
        ),
        ("dev", '{"img": "a.jpg", "text": "a b"}', "in line 7"),
        ("dev", '{"img": null, "text": "a b", "label": "sushi"}', "must hold a JSON object"),
        ("train", '{"img": "a.jpg", "text": ["a b"], "label": "sushi"}', "must hold a JSON object"),
        ("train", '["a.jpg", "a b", "sushi"]', "must hold a JSON object"),
        ("train", '{"img": "a.jpg", "text": "a', "in line 19"),
    ],
)
def test_malformed_jsonl(source, part, line, message):
    write_jsonl(source, **{part: line + "\n"})
    with pytest.raises(UserError, match=message):
        dataset(split="jsonl").listing(source)


# -- precomputed features ----------------------------------------------------------------------------------------------


def write_features(folder, seed=0, order=1):
    """A row for every title: its own class and number, and noise."""
    names = sorted(name(part, c, n) for part in COUNT for c, n in samples(part))
    rows = np.random.default_rng(seed).normal(size=(len(names), 6))
    for row, image in zip(rows, names, strict=True):
        _, _, label, file = image.split("/")
        row[:2] = CLASSES.index(label), int(file[:-4].rsplit("_", 1)[1])
    np.save(folder / "texts" / FEATURES, rows[::order].astype(np.float32))
    (folder / "texts" / FEATURE_IDS).write_text("\n".join(names[::order]) + "\n")


def test_features_follow_their_image(source, tmp_path):
    write_features(source, order=-1)
    prepared, bundle = made(source, tmp_path / "root", text="features", width=6)
    text = bundle.modalities["text"]
    assert (text.kind, text.shape, text.encoder) == ("vector", (6,), "mlp")
    for part in ("train", "val", "test"):
        index = torch.arange(len(bundle.split(part)))
        rows = bundle.split(part).stored("text", index)
        green = bundle.split(part).stored("image", index)[:, 0, 9, 9, 1].float()
        assert rows.dtype == torch.float32
        assert rows[:, 0].tolist() == bundle.split(part).target.tolist()
        assert rows[:, 1].tolist() == ((230 - green) / 12).round().tolist()
    write_features(source)
    turned, _ = made(source, tmp_path / "turned", text="features", width=6)
    assert turned.manifest["fingerprint"] == prepared.manifest["fingerprint"]
    write_features(source, seed=1)
    other, _ = made(source, tmp_path / "other", text="features", width=6)
    assert other.manifest["fingerprint"] != prepared.manifest["fingerprint"]


def test_features_need_no_title_but_a_finite_row(source, tmp_path):
    write_features(source)
    path, ids = source / "texts" / FEATURES, source / "texts" / FEATURE_IDS
    rows, names = np.load(path), ids.read_text().split()
    lost, broken, silent = names[0], names[1], (name("train", 0, 7))
    rows[1, 3] = np.nan
    np.save(path, rows[1:])
    ids.write_text("\r\n".join(names[1:]))
    titles = title_rows("train")
    titles[7][1] = ""
    write_titles(source / "texts" / "train_titles.csv", titles)
    prepared, _ = made(source, tmp_path / "root", text="features", width=6)
    found = problems(prepared)
    assert set(found) == {(lost, False), (broken, False)}
    assert FEATURE_IDS in found[lost, False]
    assert "finite" in found[broken, False]
    assert silent in again_ids(prepared)


def test_damaged_features(source):
    options = {"text": "features", "width": 6}
    with pytest.raises(UserError, match=rf"text=features needs .*{FEATURES}, which is absent"):
        dataset(**options).listing(source)
    write_features(source)
    with pytest.raises(UserError, match=r"numbers \[N, 768\], found float32 \[33, 6\]; set width"):
        dataset(text="features").listing(source)
    path, ids = source / "texts" / FEATURES, source / "texts" / FEATURE_IDS
    names = ids.read_text().split()
    for wrong, message in ((names[1:], "found 32 names"), ([names[1], *names[1:]], "32 of them different")):
        ids.write_text("\n".join(wrong))
        with pytest.raises(UserError, match=message):
            dataset(**options).listing(source)
    cut(path)
    with pytest.raises(UserError, match=r"must be a whole .npy file of numbers, it is not; save it again"):
        dataset(**options).listing(source)
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"must be a whole .npy file of numbers, it is not; save it again"):
        dataset(**options).listing(source)


# -- fingerprints and options ------------------------------------------------------------------------------------------


def test_the_same_source_elsewhere_has_the_same_fingerprint(source, prepared, bundle, tmp_path):
    again, loaded = made(source, tmp_path / "root")
    assert again.manifest["fingerprint"] == prepared[0].manifest["fingerprint"]
    assert loaded.fingerprint == bundle.fingerprint
    assert np.array_equal(texts(again), texts(prepared[0]))


@pytest.mark.parametrize("what", ["image", "title"])
def test_other_bytes_have_another_fingerprint(source, prepared, tmp_path, what):
    if what == "image":
        picture(source / name("train", 1, 1), 1, 1, size=(60, 41))
    else:
        rows = title_rows("train")
        rows[0][1] += " dessert"
        write_titles(source / "texts" / "train_titles.csv", rows)
    again, _ = made(source, tmp_path / "root")
    assert again.manifest["samples"] == 33
    assert again.manifest["fingerprint"] != prepared[0].manifest["fingerprint"]


def test_options_that_need_another_pack(source, tmp_path):
    keys = {
        dataset(**o).key()
        for o in (
            {},
            {"split": "jsonl"},
            {"text": "features"},
            {"length": 7},
            {"vocabulary": 100},
            {"width": 6},
            {"stored_size": 230},
        )
    }
    assert len(keys) == 7
    assert dataset(val_seed=1, val_share=0.3).key() == dataset().key()
    _, bundle = made(source, tmp_path / "root", length=3, vocabulary=11, stored_size=230)
    assert bundle.test.inputs["text"].shape == (33, 3)
    assert bundle.test.inputs["image"].shape == (33, 1, 230, 230, 3)
    ids = bundle.test.stored("text", torch.arange(9))
    assert ids.min() >= 1
    assert ids.max() <= 10


# -- tokens ------------------------------------------------------------------------------------------------------------


def test_words():
    assert words("Apple-Pie: the BEST recipe! (a 5 x_1)") == ["apple", "pie", "the", "best", "recipe", "x_1"]
    assert words("Crème brûlée 寿司") == ["crème", "brûlée", "寿司"]
    assert words("? a - 1") == []


def test_tokens_are_murmurhash3_of_the_words():
    """Published values of MurmurHash3_x86_32 with seed 0: hello 0x248bfa47, test 0xba6bd213."""
    ids = tokens("Hello TEST, hello", 5, 16384)
    first, second = 0x248BFA47 % 16383 + 1, 0xBA6BD213 % 16383 + 1
    assert ids.tolist() == [first, second, first, 0, 0]
    assert ids.dtype == np.int32
    assert tokens("hello", 1, 2**24)[0] == 0x248BFA47 % (2**24 - 1) + 1


def test_no_word_is_ever_padding_and_all_ids_are_used():
    text = " ".join(f"word{i}" for i in range(4000))
    ids = tokens(text, 4000, 50)
    assert set(ids.tolist()) == set(range(1, 50))
    counts = np.bincount(ids)[1:]
    assert counts.max() < 2 * counts.min()


def test_tokens_of_long_empty_and_odd_texts():
    assert tokens("one two three", 2).tolist() == tokens("one two", 2).tolist()
    for empty in ("", " \n", "!? a", "\ud800 \x00"):
        assert tokens(empty, 4).tolist() == [0, 0, 0, 0]
    assert tokens("x" * 10**6, 2)[1] == 0


@pytest.mark.parametrize(("length", "vocabulary"), [(0, 10), (5, 1)])
def test_bad_sizes(length, vocabulary):
    with pytest.raises(UserError, match=f"length >= 1 and vocabulary >= 2, found {length} and {vocabulary}"):
        tokens("a b", length, vocabulary)
