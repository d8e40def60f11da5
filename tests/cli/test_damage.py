"""Damaged records, stages, checkpoints and weights: none is taken for whole, each is a sentence or trained again."""

from __future__ import annotations

import json
import os
import random
import shutil
from types import SimpleNamespace

import pytest
import torch
from calls import ROOT, Called

from balancebench_udi.errors import UserError
from balancebench_udi.spec import keys_of
from balancebench_udi.store import (
    SUMS,
    Store,
    _sha256,
    check_record,
    listed_sums,
    load_state,
    read_record,
    save_state,
    sealed,
)
from benchmarks import embedding, records
from tests.helpers import make_spec, make_trainer, tiny_bundle

COMMITTED = ROOT / "results" / "records" / "mosi" / "joint"


@pytest.fixture(scope="module")
def bundle():
    return tiny_bundle()


@pytest.fixture
def call(capsys, tmp_path):
    """``records.py`` in this process, on the results folder ``tmp_path``."""

    def call(*arguments):
        capsys.readouterr()
        code = records.main(["--out", str(tmp_path), *map(str, arguments)])
        seen = capsys.readouterr()
        return Called(code, seen.out, seen.err)

    return call


# -- stages and checkpoints --------------------------------------------------------------------------------------------


def flip_signs(path):
    """Another network in the same file, well-formed: what only a checksum tells."""
    state = torch.load(path, weights_only=True)
    tensors = state["snapshots"]["best_val"]["tensors"] if "snapshots" in state else state["strategy"]
    for value in tensors.values():
        value.neg_()
    torch.save(state, path)


def folder(path):
    path.unlink()
    path.mkdir()
    (path / "inside").touch()


def nowhere(path):
    path.unlink()
    path.symlink_to("nowhere")


def changed(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


PARTS = ("progress", "strategy", "optimizer", "generator", "snapshots", "cost", "curves", "from")
WRONG = {
    "flipped signs": flip_signs,
    "a flipped bit": changed,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "an empty dict": lambda path: torch.save({}, path),
    "a list": lambda path: torch.save([1], path),
    "a tensor": lambda path: torch.save(torch.ones(3), path),
    "signed, an empty dict": lambda path: save_state(path, {}),
    "signed, a list": lambda path: save_state(path, [1]),
    "signed, a tensor": lambda path: save_state(path, torch.ones(3)),
    "signed, parts of other kinds": lambda path: save_state(path, dict.fromkeys(PARTS, 1)),
    "a folder": folder,
    "a link to nowhere": nowhere,
}


@pytest.mark.parametrize("damage", WRONG.values(), ids=WRONG)
def test_a_wrong_stage_is_set_aside_and_trained_again(bundle, tmp_path, damage):
    def train():
        store, said = Store(tmp_path), []
        store.prepare(said.append)
        trainer = make_trainer(bundle, "unimodal", store=store, epochs=1, checkpoint_every=1000)
        return trainer.run(), said

    first, said = train()
    assert said == []
    path = sorted((tmp_path / "stages").iterdir())[0]
    damage(path)
    again, said = train()
    assert again["result"] == first["result"]
    (line,) = said
    assert line.startswith(f"{path} is damaged or of another version: it is now {path.stem}.")
    assert "is trained again" in line
    assert len(list((tmp_path / "stages").glob(f"{path.stem}.*.damaged"))) == 1
    third, said = train()
    assert said == []
    assert all(cost["reused_from"] for cost in third["cost"]["phases"])


@pytest.mark.parametrize("damage", WRONG.values(), ids=WRONG)
def test_a_wrong_checkpoint_is_set_aside_and_the_run_starts_again(bundle, tmp_path, damage):
    store, said, resumed = Store(tmp_path), [], []
    store.prepare(said.append)
    first = make_trainer(bundle, "joint", store=store, epochs=2)
    result = first.run()["result"]
    path = store.checkpoint_path(first.spec)
    assert load_state(path)["progress"]["epoch"] == 1
    damage(path)
    again = make_trainer(bundle, "joint", store=store, epochs=2, tick=lambda phase, n: resumed.append(phase))
    assert again.run()["result"] == result
    assert "resumed" not in resumed
    (line,) = said
    assert line.startswith(f"{path} is damaged or of another version: ")
    assert line.endswith("and the run starts again")


def test_a_state_under_another_name_is_not_taken(tmp_path):
    save_state(tmp_path / "a.pt", {"x": torch.ones(2)})
    assert load_state(tmp_path / "a.pt")["x"].sum() == 2
    os.rename(tmp_path / "a.pt", tmp_path / "b.pt")
    assert load_state(tmp_path / "b.pt") is None


def test_every_flipped_bit_and_every_cut_of_a_state_is_noticed(tmp_path):
    path = tmp_path / "a.pt"
    save_state(path, {"x": torch.arange(50.0), "y": [1, "two"]})
    whole, draw = path.read_bytes(), random.Random(0)
    for _ in range(100):
        data = bytearray(whole)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        for wrong in (data, whole[: draw.randrange(len(whole))]):
            path.write_bytes(wrong)
            assert load_state(path) is None
    path.write_bytes(whole)
    assert load_state(path)["y"] == [1, "two"]


def test_code_in_a_state_is_not_run(tmp_path):
    save_state(tmp_path / "a.pt", {"progress": Store(tmp_path)})
    assert load_state(tmp_path / "a.pt") is None


# -- weights -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(bundle, tmp_path):
    """A trainer whose weights were kept, and their store."""
    trainer, store = make_trainer(bundle, "joint", epochs=1), Store(tmp_path, weights=True)
    trainer.run()
    store.save_weights(trainer.spec, trainer.weights())
    return trainer, store, store.weights_path(trainer.spec)


def read(kept, bundle):
    trainer, store, _ = kept
    method, options = type(trainer.strategy), trainer.strategy.options
    job = SimpleNamespace(spec=trainer.spec, bundle=bundle, method=method, options=options)
    given = SimpleNamespace(select="last", samples=10, modality="audio")
    return embedding.features(job, store, torch.device("cpu"), given)


def negated(path):
    torch.save({r: {n: -v for n, v in t.items()} for r, t in torch.load(path, weights_only=True).items()}, path)


WRONG_WEIGHTS = {
    "another network": negated,
    "a flipped bit": changed,
    "cut": WRONG["cut"],
    "an empty dict": WRONG["an empty dict"],
    "a list": WRONG["a list"],
    "a tensor": WRONG["a tensor"],
    "no file of torch": lambda path: path.write_bytes(b"<html>"),
    "a folder": folder,
    "a link to nowhere": nowhere,
}


@pytest.mark.parametrize("damage", WRONG_WEIGHTS.values(), ids=WRONG_WEIGHTS)
@pytest.mark.parametrize("checksum", [True, False])
def test_wrong_weights_are_one_sentence(kept, bundle, damage, checksum):
    path = kept[2]
    whole = read(kept, bundle)[0]
    assert torch.equal(whole, read(kept, bundle)[0])
    if not checksum:  # of an older version
        path.with_suffix(".sha256").unlink()
        assert torch.equal(whole, read(kept, bundle)[0])
    damage(path)
    if not checksum and damage in (negated, changed):
        return
    with pytest.raises(UserError, match=rf"^{path}( must be readable, | must hold the weights that were kept, |: )"):
        read(kept, bundle)


def test_weights_are_a_plain_file_of_torch(kept):
    trainer, _, path = kept
    plain = torch.load(path, weights_only=True)
    assert plain.keys() == trainer.weights().keys()
    digest, name = path.with_suffix(".sha256").read_text().split()
    assert (len(digest), name) == (64, path.name)


# -- records -----------------------------------------------------------------------------------------------------------


def put(root, spec, **changes):
    made = sealed(
        spec,
        {"readings": {}, "modalities": [], "parameters": 3},
        {"phases": [], "wall_seconds": 1.0},
        {"classes": ["a", "b"], "facts": {}},
        {"device_type": "cpu"},
    )
    return Store(root).write(spec, {**made, **changes})


def edit(path, *where, value):
    record = json.loads(path.read_text())
    inner = record
    for name in where[:-1]:
        inner = inner[name]
    inner[where[-1]] = value
    path.write_text(json.dumps(record))


SPECIFICATION = [
    (("spec", "seed"), 7),
    (("spec", "optimizer", "lr"), 0.3),
    (("spec", "schedule", "at"), 0.1),
    (("spec", "epochs"), 99),
    (("spec", "precision"), "bf16"),
    (("spec", "method"), "ogm"),
    (("spec", "test_each_epoch"), True),
    (("key",), "0" * 12),
    (("cell",), "0" * 12),
    (("format",), 99),
    (("format",), "1"),
]
REST = [
    (("cost", "wall_seconds"), 2.0),
    (("data", "classes"), ["b", "a"]),
    (("machine", "device_type"), "cuda"),
    (("result", "parameters"), 4),
    (("sha256",), "0" * 64),
]


@pytest.mark.parametrize(("where", "value"), SPECIFICATION, ids=lambda v: ".".join(v) if isinstance(v, tuple) else None)
@pytest.mark.parametrize("committed", [False, True])
def test_no_table_is_made_of_a_record_with_another_specification(tmp_path, bundle, call, where, value, committed):
    if committed:
        source = sorted(COMMITTED.glob("*.json"))[0]
        path = tmp_path / "records" / "mosi" / "joint" / source.name
        path.parent.mkdir(parents=True)
        shutil.copyfile(source, path)
    else:
        path = put(tmp_path, make_spec(bundle, "joint"))
    check_record(path)
    edit(path, *where, value=value)
    with pytest.raises(UserError, match=str(path)):
        read_record(path)
    called = call("--check")
    assert (called.code, called.out) == (2, "")
    assert called.err.count("\n") == 2
    assert "Traceback" not in called.err


@pytest.mark.parametrize(("where", "value"), REST, ids=lambda v: ".".join(v) if isinstance(v, tuple) else None)
def test_whatever_else_was_changed_is_found(tmp_path, bundle, call, where, value):
    path = put(tmp_path, make_spec(bundle, "joint"))
    assert call("--check") == Called(0, "1 records are as they were written\n", "")
    edit(path, *where, value=value)
    called = call("--check")
    assert called.code == 2
    assert called.err.startswith(f"error: {path} must ")


def test_a_record_without_its_checksum_is_found(tmp_path, bundle, call):
    path = put(tmp_path, make_spec(bundle, "joint"))
    record = json.loads(path.read_text())
    del record["sha256"]
    path.write_text(json.dumps(record))
    assert call("--check").code == 2


def test_a_result_that_was_changed_with_its_checksum_is_found(tmp_path, bundle, call):
    path = put(tmp_path, make_spec(bundle, "joint"))
    result = {"readings": {}, "modalities": [], "parameters": 5}
    edit(path, "result", value=result)
    edit(path, "result_sha256", value=_sha256(result))
    assert call("--check").code == 2


def test_every_damaged_record_is_listed(tmp_path, bundle, call):
    paths = [put(tmp_path, make_spec(bundle, "joint", seed=seed)) for seed in range(4)]
    edit(paths[0], "spec", "seed", value=9)
    paths[1].write_text("{")
    paths[2].unlink()
    paths[2].mkdir()
    called = call("--check", "--to", tmp_path / "x.csv")
    assert (called.code, called.out) == (2, "")
    *lines, last = called.err.splitlines()
    assert sorted(line.split()[1] for line in lines) == sorted(map(str, paths[:3]))
    assert last == "3 of 4 records are damaged"
    assert not (tmp_path / "x.csv").exists()


def test_a_record_under_another_method_or_name_is_found(tmp_path, bundle):
    spec = make_spec(bundle, "joint")
    path = put(tmp_path, spec)
    other = tmp_path / "records" / "tiny" / "ogm" / path.name
    other.parent.mkdir()
    shutil.copyfile(path, other)
    with pytest.raises(UserError, match=f"^{other} must lie in tiny/joint, found another folder"):
        read_record(other)
    os.rename(other, other := path.with_name("0" * 12 + ".json"))
    with pytest.raises(UserError, match=f"^{other} must hold the record {'0' * 12}, found {spec.key}: "):
        read_record(other)


def test_every_flipped_bit_of_a_record_is_noticed_or_harmless(tmp_path, bundle):
    path = put(tmp_path, make_spec(bundle, "joint"))
    whole, draw = path.read_bytes(), random.Random(1)
    record, noticed = json.loads(whole), 0
    for _ in range(200):
        data = bytearray(whole)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        try:
            check_record(path)
        except UserError:
            noticed += 1
        else:
            assert json.loads(data) == record  # white space
    assert noticed > 100


def test_the_keys_of_a_record_are_those_of_its_specification(bundle):
    others = ({"seed": 10**12}, {"optimizer": {"lr": 1e-5}}, {"protocol": "größe"}, {"test_each_epoch": True})
    for changes in ({}, *others):
        spec = make_spec(bundle, "udi", **changes)
        assert keys_of(json.loads(json.dumps(spec.as_dict()))) == (spec.key, spec.cell)
    older = {name: value for name, value in spec.as_dict().items() if name != "test_each_epoch"}
    assert keys_of(older)[0] == make_spec(bundle, "udi").key
    with pytest.raises(TypeError):
        keys_of({**spec.as_dict(), "more": 1})


# -- places ------------------------------------------------------------------------------------------------------------

PLACES = {
    "record": lambda store, spec: store.record_path(spec),
    "failure": lambda store, spec: store.failure_path(spec),
    "claim": lambda store, spec: store.root / "claims" / f"{spec.key}.lock",
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_folder_or_a_dead_link_in_place_of_a_file(tmp_path, bundle, place, kind):
    store, spec = Store(tmp_path), make_spec(bundle, "joint")
    path = place(store, spec)
    path.parent.mkdir(parents=True)
    path.mkdir() if kind == "folder" else path.symlink_to(tmp_path / "no" / "where")
    if kind == "link" and "failures" in path.parts:
        store.write_failure(spec, "it broke")
        assert path.read_text() == "it broke"
        return
    with pytest.raises(UserError, match=str(path)), store.claim(spec):
        store.done(spec)


@pytest.mark.parametrize("name", ["records", "records/tiny", "records/tiny/joint", "failures", "weights", "stages"])
def test_a_file_in_place_of_a_folder_is_refused_before_training(tmp_path, bundle, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("x")
    with (
        pytest.raises(UserError, match="a file lies where a folder should be"),
        Store(tmp_path).claim(make_spec(bundle, "joint")),
    ):
        pass


@pytest.mark.parametrize(("where", "value"), [*REST, (("data", "classes"), ["a", "b"])], ids=str)
def test_a_list_of_checksums_covers_what_records_of_before_do_not(tmp_path, call, where, value):
    """Records of format 1 have a checksum of the result alone: ``SHA256SUMS`` beside them stands for the rest."""
    source = min(COMMITTED.glob("*.json"))
    path = tmp_path / "records" / "mosi" / "joint" / source.name
    path.parent.mkdir(parents=True)
    shutil.copy(source, path)
    assert json.loads(path.read_text())["format"] == 1
    line = next(one for one in (COMMITTED.parents[1] / SUMS).read_text().splitlines() if one.endswith(source.name))
    (tmp_path / "records" / SUMS).write_text(f"{line}\n")
    assert call("--check").code == 0
    edit(path, *where, value=value)
    called = call("--check")
    assert called.code == 2
    assert f"error: {path} must " in called.err
    path.unlink()
    (path.parent / "000000000000.json").write_text("{}")
    assert f"error: {path} must be there as {SUMS} lists it, found no such file" in call("--check").err


def test_every_committed_record_of_before_is_listed():
    listed = listed_sums(ROOT / "results" / "records")
    old = [path for path in Store(ROOT / "results").record_paths() if read_record(path)["format"] == 1]
    assert set(old) <= set(listed)
    assert all(path.exists() for path in listed)
