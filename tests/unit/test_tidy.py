"""Records read as a stream, and their tidy table: values by hand, order that leaves no trace, speed."""

import copy
import json
import math
import random
import shutil
import time
import weakref
from pathlib import Path

import pytest
import torch

import registry
from balancebench_udi.errors import UserError
from balancebench_udi.metrics.predictions import pack
from balancebench_udi.report.tidy import SAMPLE, frame, rows, samples, trained_alone
from balancebench_udi.spec import keys_of
from balancebench_udi.store import Store, read_record
from tests.helpers import written_spec

RECORDS = Path(registry.__file__).resolve().parent / "results" / "records"
TARGET = [0, 0, 0, 0, 1, 1, 1, 1]
AUDIO = [0, 0, 0, 1, 0, 0, 0, 0]  # right: the first three
VISUAL = [0, 1, 1, 1, 1, 0, 0, 0]  # right: the first and the fifth
FUSED = [0, 0, 1, 0, 1, 1, 0, 0]  # right: all but the third and the last two
SPEC = written_spec(
    dataset_version=2,
    dataset_options={"shuffle": True, "noise": 0.5},
    method_version=3,
    encoders={"visual": {"name": "digit"}, "audio": {"width": 8, "name": "mlp"}},
    optimizer={"name": "sgd", "lr": 0.125},
)


def reading(epochs, accuracy=0.625, **scores):
    test = {"accuracy": accuracy, "macro_f1": 0.5, "loss": 1.5, "masked/none": 0.125, "masked/visual+audio": accuracy}
    test |= {"masked/audio": 0.375, "masked/visual": 0.25, "shapley/visual": 0.1, "shapley/audio": 0.4}
    test |= {"imbalance": 0.3, "imbalance_relative": 0.6, "alone/audio": 0.375, "alone/visual": 0.25, **scores}
    classes = {"fused": FUSED, "masked/audio": AUDIO, "masked/visual": VISUAL}
    predictions = {name: pack(torch.tensor(values)) for name, values in classes.items()}
    return {"epochs": epochs, "test": test, "val": {"accuracy": 0.75, "loss": 2.5}, "predictions": predictions}


def make(method="joint", seed=0, spec=None, **readings):
    """A record of two phases, the first of which was reused."""
    phase = {"seconds": 4.0, "cpu_seconds": 3.0, "evaluation_seconds": 1.0, "reused_from": None}
    return {
        "key": f"{method}-{seed}",
        "cell": f"cell-{method}",
        "spec": {**copy.deepcopy(SPEC), "method": method, "seed": seed, **(spec or {})},
        "result": {
            "readings": readings or {"best_val": reading([2, 1]), "last": reading([3, 3], 0.5)},
            "test_target": pack(torch.tensor(TARGET)),
            "modalities": ["visual", "audio"],
            "parameters": 1234,
            "passes": {"forward": {"visual": 100, "audio": 50}, "backward": {"visual": 20, "audio": 10}},
        },
        "cost": {
            "phases": [{**phase, "reused_from": "another"}, {**phase, "seconds": 0.5}],
            "flops": 10**12,
            "flops_per_sample": {"visual": 2000, "audio": 500},
            "wall_seconds": 2.0,
            "peak_memory_bytes": 10**9,
            "peak_memory_of": "run",
        },
        "machine": {"device_type": "cpu", "device": "Some CPU", "threads": 2, "torch": "2.0", "commit": "abc+"},
    }


# -- rows ------------------------------------------------------------------------------------------------------------


def test_the_distance_to_the_best_possible_stands_where_that_is_known():
    made = make()
    assert not any(name.startswith("bayes_distance") for name in rows(made)[0])
    made["data"] = {"facts": {"bayes_accuracy": {"visual": 0.5, "audio": 0.25, "visual+audio": 0.75}}}
    (best,) = rows(made, "best_val")
    assert best["bayes_distance/fused"] == 0.75 - 0.625
    assert "bayes_distance/fused" in frame([made]).columns


def test_a_row_by_hand():
    last, best = rows(make())
    assert (last["reading"], last["reading_epochs"], last["accuracy"]) == ("last", "[3,3]", 0.5)
    assert best == {
        **{name: value for name, value in SPEC.items() if not isinstance(value, dict)},
        **{"key": "joint-0", "cell": "cell-joint", "method": "joint", "seed": 0, "lr": 0.125},
        "dataset_options": '{"noise":0.5,"shuffle":true}',
        "method_options": "{}",
        "encoders": '{"audio":{"name":"mlp","width":8},"visual":{"name":"digit"}}',
        "optimizer": '{"lr":0.125,"name":"sgd"}',
        "schedule": '{"name":"constant"}',
        "modalities": '["visual","audio"]',
        **{"reading": "best_val", "reading_epochs": "[2,1]"},
        **reading([])["test"],
        **{"val_accuracy": 0.75, "val_loss": 2.5},
        "utilisation/audio": (0.625 - 0.25) / 0.625,
        "utilisation/visual": (0.625 - 0.375) / 0.625,
        "complementarity/only/audio": 2 / 8,  # the second sample and the third
        "complementarity/only/visual": 1 / 8,  # the fifth
        "complementarity/several": 1 / 8,  # the first
        "complementarity/fusion_only": 2 / 8,  # the fourth and the sixth
        "complementarity/none": 2 / 8,  # the last two
        "complementarity/lost": 1 / 8,  # the third
        **{
            "parameters": 1234,
            "flops_per_sample": 2500,
            "passes_forward": 150,
            "passes_backward": 30,
            "passes": 210,
            "flops": 10**12,
        },
        **{"seconds": 4.5, "cpu_seconds": 6.0, "wall_seconds": 2.0, "peak_memory_bytes": 10**9},
        **{"device_type": "cpu", "device": "Some CPU", "threads": 2, "torch": "2.0", "commit": "abc+"},
    }


def test_select_is_a_reading():
    asked = make(best_val=reading([1]), best_test=reading([2]), last=reading([3]))
    assert [r["reading"] for r in rows(asked)] == ["last", "best_val", "best_test"]
    for name, epochs in (("last", "[3]"), ("best_val", "[1]"), ("best_test", "[2]")):
        assert [(r["reading"], r["reading_epochs"]) for r in rows(asked, name)] == [(name, epochs)]
    assert rows(make(), "best_test") == []
    with pytest.raises(UserError, match="select must be one of last, best_val, best_test, found 'best'"):
        rows(make(), "best")


def test_only_the_predictions_that_are_needed_are_unpacked():
    extra = reading([1])
    extra["predictions"] |= {"alone/audio": "no base64", "probe/audio": "nor this"}
    assert rows(make(best_val=extra))[0]["complementarity/several"] == 1 / 8


def probed(method, audio, seed=0, spec=None):
    """A run with probes: of audio as given, of visual at 0.5; at its last epoch 0.25 less."""
    read = {"probe/audio": audio, "probe/visual": 0.5}
    late = {name: value - 0.25 for name, value in read.items()}
    return make(method, seed, spec, best_val=reading([1], **read), last=reading([2], **late))


def test_the_probe_gap_is_that_to_the_run_trained_alone_with_the_same_seed():
    runs = [probed("apart", 0.875 + 0.0625 * seed, seed) for seed in range(2)] + [probed("sum", 0.75, 2)]
    alone = trained_alone(runs, ["apart", "sum"])
    for seed, gap in enumerate((0.375, 0.4375, 0.25)):
        (row,) = rows(probed("joint", 0.5, seed), "best_val", alone)
        assert (row["probe_gap/audio"], row["probe_gap/visual"]) == (gap, 0)
    assert [row["probe_gap/audio"] for row in rows(probed("joint", 0.25), None, alone)] == [0.625, 0.625]
    assert rows(runs[0], "last", alone)[0]["probe_gap/audio"] == 0
    columns = list(frame([probed("joint", 0.5), make(seed=1)], "best_val", alone).columns)
    assert columns[columns.index("parameters") - 2 :][:2] == ["probe_gap/audio", "probe_gap/visual"]


@pytest.mark.parametrize(
    "other",
    [
        *({"seed": 1}, {"fingerprint": "f" * 12}, {"protocol": "small"}, {"epochs": 8}, {"precision": "bf16"}),
        {"encoders": {"visual": {"name": "mlp"}, "audio": {"name": "mlp"}}},
    ],
)
def test_runs_under_other_circumstances_say_nothing_of_a_gap(other):
    alone = trained_alone([probed("apart", 0.875)], ["apart"])
    changed = probed("joint", 0.5, spec=other)
    assert not any(name.startswith("probe_gap") for name in rows(changed, "best_val", alone)[0])
    free = probed("joint", 0.5, spec={"method_version": 9, "method_options": {"a": 1}, "test_each_epoch": True})
    assert rows(free, "best_val", alone)[0]["probe_gap/audio"] == 0.375
    assert not any(name.startswith("probe_gap") for name in rows(make(), "best_val", alone)[0])  # without probes
    assert not any(name.startswith("probe_gap") for name in rows(probed("joint", 0.5), "best_val")[0])


def test_of_several_runs_alone_the_preferred_the_latest_and_the_first_options_count():
    runs = [
        probed("apart", 0.75, spec={"method_version": 4, "method_options": {"checkpoint": "best_val"}}),
        probed("apart", 0.6, spec={"method_version": 4, "method_options": {"checkpoint": "last"}}),
        probed("apart", 0.9),
        probed("sum", 0.8, spec={"method_version": 9}),
        probed("joint", 0.1),
    ]
    for _ in range(10):
        random.shuffle(runs)
        for names, audio in ((("apart", "sum"), 0.75), (("sum", "apart"), 0.8), (("apart",), 0.75)):
            alone = trained_alone(runs, names)
            assert {test["probe/audio"] for (_, name), test in alone.items() if name == "best_val"} == {audio}


def test_samples_by_hand():
    made = make("udi", 3, best_val=reading([1]))
    made["data"] = {"classes": ["no", "yes"]}
    masked = {"none": 1 - torch.tensor(TARGET), "visual": torch.tensor(VISUAL), "audio": torch.tensor(AUDIO)}
    masked["visual+audio"] = torch.tensor(FUSED)
    predictions = made["result"]["readings"]["best_val"]["predictions"]
    predictions |= {f"masked/{name}": pack(values) for name, values in masked.items()}
    table = samples(made, "best_val")
    assert list(table.columns) == [*SAMPLE, "shapley/visual", "shapley/audio"]
    assert set(table[list(SAMPLE[:8])].itertuples(index=False, name=None)) == {
        ("udi-3", "cell-udi", "toy", "0123456789ab", "quick", "udi", 3, "best_val")
    }
    assert list(table["sample"]) == list(range(8))
    assert list(table["target"]) == ["no"] * 4 + ["yes"] * 4
    assert list(table["prediction"]) == ["no", "no", "yes", "no", "yes", "yes", "no", "no"]
    assert list(table["right"]) == [True, True, False, True, True, True, False, False]
    # v(none) = 0 everywhere. Visual alone is right for 0 and 4, audio alone for 0, 1 and 2, both for 0, 1, 3, 4 and 5.
    assert list(table["shapley/visual"]) == [0.5, 0, -0.5, 0.5, 1, 0.5, 0, 0]
    assert list(table["shapley/audio"]) == [0.5, 1, 0.5, 0.5, 0, 0.5, 0, 0]
    assert samples(made, "last").empty
    with pytest.raises(UserError, match="select must be one of last, best_val, best_test, found 'best'"):
        samples(made, "best")


@pytest.mark.parametrize("dataset", sorted(path.name for path in RECORDS.iterdir() if path.is_dir()))
def test_contributions_of_samples_average_to_those_of_the_record(dataset):
    record = read_record(next(iter(sorted((RECORDS / dataset / "udi").glob("*.json")))))
    table = samples(record).groupby("reading")
    for name, found in record["result"]["readings"].items():
        mine = table.get_group(name)
        assert mine["right"].mean() == pytest.approx(found["test"]["accuracy"])
        for m in record["result"]["modalities"]:
            assert mine[f"shapley/{m}"].mean() == pytest.approx(found["test"][f"shapley/{m}"])


# -- the table -------------------------------------------------------------------------------------------------------


def test_columns_stand_in_one_order():
    new = {"cka/visual+audio": 0.5, "ece": 0.25, "top5": 1.0, "probe/visual": 0.75, "probe/audio": 0.5}
    new |= {"share/visual": 0.5, "discrepancy/audio": 2.0, "something/new": 1.0, "else": 0.0}
    table = frame([make(), make("ogm", best_val=reading([0], **new))])
    columns = list(table.columns)
    assert columns[:2] == ["key", "cell"]
    start = columns.index("reading_epochs") + 1
    scores = "accuracy macro_f1 loss ece top5 share/visual masked/audio masked/none masked/visual masked/visual+audio"
    scores += " alone/audio alone/visual probe/audio probe/visual shapley/audio shapley/visual imbalance"
    scores += " imbalance_relative discrepancy/audio cka/visual+audio else something/new val_accuracy val_loss"
    scores += " utilisation/audio utilisation/visual complementarity/fusion_only"
    assert columns[start:][: len(scores.split())] == scores.split()
    assert columns[-5:] == ["device_type", "device", "threads", "torch", "commit"]
    assert len(set(columns)) == len(columns)


def test_what_a_run_lacks_is_nan():
    table = frame([make(), make("ogm", best_val=reading([0], ece=0.25))], "best_val").set_index("method")
    assert table.loc["ogm", "ece"] == 0.25
    assert math.isnan(table.loc["joint", "ece"])


def test_the_order_of_records_leaves_no_trace():
    records = [make(method, seed) for method in ("udi", "joint") for seed in (10, 9, 2)]
    records += [make("ogm", 3, best_val=reading([0], ece=0.25))]
    records += [make("joint", 2, {"dataset": dataset}) for dataset in ("a toy", "toys")]
    expected = frame(records).to_csv()
    mixed = random.Random(0)
    for _ in range(5):
        mixed.shuffle(records)
        assert frame(records).to_csv() == expected
    table = frame(records, "best_val")
    assert list(table["dataset"].unique()) == ["a toy", "toy", "toys"]
    toy = table[table["dataset"] == "toy"]
    assert list(zip(toy["method"], toy["seed"], strict=True)) == [
        *[("joint", 2), ("joint", 9), ("joint", 10), ("ogm", 3), ("udi", 2), ("udi", 9), ("udi", 10)]
    ]
    assert list(frame(records)["reading"][:4]) == ["last", "best_val"] * 2


def test_no_records_are_an_empty_table():
    assert frame([]).empty
    assert frame([make()], "best_test").empty
    assert "accuracy" not in frame([])
    assert list(frame([]).columns[:2]) == ["key", "cell"]


class Held(dict):
    """A record that can be watched."""


def test_one_record_is_held_at_a_time():
    made, most = [], 0

    def stream():
        nonlocal most
        for seed in range(20):
            record = Held(make("joint", seed))
            made.append(weakref.ref(record))
            most = max(most, sum(each() is not None for each in made))
            yield record

    assert len(frame(stream(), "last")) == 20
    assert most <= 2  # the one before goes when the next is there


@pytest.mark.parametrize("dataset", sorted(path.name for path in RECORDS.iterdir() if path.is_dir()))
def test_of_committed_records(dataset):
    """One run of each method: the table says what the records say, and its shares of samples add up."""
    paths = [next(iter(sorted(folder.glob("*.json")))) for folder in sorted((RECORDS / dataset).iterdir())]
    table = frame(map(read_record, paths)).set_index(["key", "reading"])
    for record in map(read_record, paths):
        for name, found in record["result"]["readings"].items():
            row = table.loc[record["key"], name]
            assert {score: row[score] for score in found["test"]} == found["test"]
            assert json.loads(row["reading_epochs"]) == found["epochs"]
            assert json.loads(row["method_options"]) == record["spec"]["method_options"]
            cases = row[[c for c in table.columns if c.startswith("complementarity/")]].dropna().astype(float)
            lost = cases.pop("complementarity/lost")
            assert cases.sum() == pytest.approx(1)
            assert 1 - cases["complementarity/none"] - lost == pytest.approx(row["accuracy"])
            first, *rest = record["result"]["modalities"]
            without = found["test"]["masked/" + "+".join(rest)]
            assert row[f"utilisation/{first}"] == pytest.approx((row["accuracy"] - without) / row["accuracy"])


# -- the stream ------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path):
    """Two datasets and two methods, and names in which a wildcard would find more."""
    store = Store(tmp_path)
    for dataset in ("toy", "toys", "t*"):
        for method in ("joint", "ogm"):
            for seed in (1, 0):
                made = make(method, seed, {"dataset": dataset})
                key, cell = keys_of(made["spec"])
                path = tmp_path / "records" / dataset / method / f"{key}.json"
                text = json.dumps({**made, "format": 1, "key": key, "cell": cell})
                store.replace(path, lambda handle, text=text: handle.write(text.encode()))
    return store


@pytest.mark.parametrize(
    ("dataset", "method", "count"),
    [(None, None, 12), ("toy", None, 4), (None, "ogm", 6), ("toys", "joint", 2), ("t*", None, 4), ("to", None, 0)],
)
def test_records_of_a_dataset_and_of_a_method(store, dataset, method, count):
    found = list(store.records(dataset, method))
    assert len(found) == len(store.record_paths(dataset, method)) == count
    assert {r["spec"]["dataset"] for r in found} <= {dataset or r["spec"]["dataset"] for r in found}
    assert {r["spec"]["method"] for r in found} <= {method or r["spec"]["method"] for r in found}
    assert store.record_paths(dataset, method) == sorted(store.record_paths(dataset, method))


def test_a_record_is_read_when_it_is_asked_for(store):
    first, *rest = store.record_paths("toy")
    for path in rest:
        path.write_text("damaged")
    for path in store.record_paths("toys"):
        path.write_text("damaged")
    stream = store.records("toy")
    assert next(stream)["key"] == first.stem
    with pytest.raises(UserError, match=f"{rest[0].name} must be a record, found a damaged file"):
        next(stream)
    assert len(list(store.records("t*"))) == 4  # the files of other datasets are not read


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_not_a_number_is_not_read(store, number):
    path = store.record_paths("toy")[0]
    path.write_text(path.read_text().replace("1234", number))
    with pytest.raises(UserError, match="damaged file"):
        read_record(path)


def test_two_thousand_records_take_seconds(tmp_path):
    """CPU time, so that a busy machine does not matter; several times of what it takes."""
    path = sorted((RECORDS / "cgmnist" / "joint").glob("*.json"))[0]
    record, text = read_record(path), path.read_bytes()
    assert len(text) > 70_000
    folder = tmp_path / "records" / record["spec"]["dataset"] / record["spec"]["method"]
    folder.mkdir(parents=True)
    try:
        for seed in range(2000):
            key = keys_of({**record["spec"], "seed": seed})[0]
            changed = text.replace(record["key"].encode(), key.encode())
            changed = changed.replace(b'"seed": %d' % record["spec"]["seed"], b'"seed": %d' % seed)
            (folder / f"{key}.json").write_bytes(changed)
        store, started = Store(tmp_path), time.process_time()
        assert sum(1 for _ in store.records()) == 2000
        read, started = time.process_time() - started, time.process_time()
        table = frame(store.records(), "best_val")
        made = time.process_time() - started
    finally:
        shutil.rmtree(tmp_path / "records")
    assert list(table["seed"]) == list(range(2000))
    assert table["key"].is_unique
    assert table["accuracy"].nunique() == 1
    assert read < 2  # 10,000 must take less than 5 s on an idle machine
    assert made < 10
