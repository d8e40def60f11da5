"""``python benchmarks/report.py``: one page from a results folder, and one sentence where that cannot be."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from calls import Called

import registry
from balancebench_udi.metrics.predictions import pack
from balancebench_udi.report.published import Claim
from balancebench_udi.spec import RunSpec
from balancebench_udi.store import Store
from benchmarks import report

SPEC: dict[str, Any] = {
    "protocol": "pmr",
    "protocol_version": 1,
    "dataset": "cgmnist",
    "dataset_version": 1,
    "dataset_options": {},
    "fingerprint": "0123456789ab",
    "method_version": 1,
    "method_options": {},
    "encoders": {"gray": {"name": "mlp"}, "colour": {"name": "mlp"}},
    "fusion": "concat",
    "optimizer": {"name": "sgd"},
    "schedule": {"name": "constant"},
    "epochs": 1,
    "batch_size": 8,
    "precision": "fp32",
}


def stored(root: Path, method: str, seed: int, right: int, **changes: Any) -> Path:
    """Write a record in which the first ``right`` of 40 test samples are right."""
    version = registry.methods.get(method).version if method in registry.methods.names() else 1
    given = {"method": method, "method_version": version, "seed": seed, **changes}
    spec = RunSpec(**{**copy.deepcopy(SPEC), **given})
    target = torch.arange(40) % 2
    prediction = torch.where(torch.arange(40) < right, target, 1 - target)
    score = right / 40
    names = ["fused", "alone/gray", "alone/colour"]
    test = {"accuracy": score, "macro_f1": score, "loss": 1.0, "imbalance": 0.1, "imbalance_relative": 0.1}
    test |= {"alone/gray": score, "alone/colour": score, "shapley/gray": 0.1, "shapley/colour": 0.2}
    reading = {
        "epochs": [0],
        "val": test,
        "test": test,
        "predictions": {name: pack(prediction) for name in names},
    }
    count = {"gray": 10, "colour": 10}
    record = {
        "format": 1,
        "key": spec.key,
        "cell": spec.cell,
        "spec": spec.as_dict(),
        "result": {
            "readings": {"last": reading, "best_val": reading},
            "curves": [{"phase": "train", "epoch": 0, "lr": 0.1, "train": {"loss": 1.0}, "val": test}],
            "test_target": pack(target),
            "modalities": ["gray", "colour"],
            "passes": {"forward": count, "backward": count},
            "parameters": 10,
        },
        "cost": {
            **{"flops": 10.0, "flops_per_sample": {"gray": 1.0}, "wall_seconds": 1.0, "peak_memory_bytes": None},
            "phases": [
                {
                    "phase": "train",
                    "cpu_seconds": 1.0,
                    "seconds": 1.0,
                    "reused_from": None,
                    "forward": count,
                    "backward": count,
                }
            ],
        },
        "data": {"classes": ["even", "odd"], "facts": {"generated": True}},
        "machine": {"device_type": "cpu", "device": "Some CPU", "threads": 1, "torch": "2.0", "commit": "abc"},
    }
    return Store(root).write(spec, record)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Called]:
    """``report.py`` in this process, on ``tmp_path / "out"``, from another working directory."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    def made(*arguments: object) -> Called:
        capsys.readouterr()
        code = report.main(["--out", str(tmp_path / "out"), *map(str, arguments)])
        seen = capsys.readouterr()
        return Called(code, seen.out, seen.err)

    return made


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Results with two datasets."""
    folder = tmp_path / "out"
    for seed in (0, 1):
        stored(folder, "joint", seed, 20)
        stored(folder, "udi", seed, 36)
        stored(folder, "joint", seed, 24, dataset="mosi")
    return folder


def test_it_writes_one_page_into_the_results(out: Path, call: Callable[..., Called]) -> None:
    called = call("--figures", 0)
    assert (called.code, called.err) == (0, "")
    assert called.out.startswith(f"6 runs in 2 groups; figures for 0 of them\nwritten: {out / 'report.html'} (")
    text = (out / "report.html").read_text()
    assert "None of them can be recommended: udi has the highest mean, but the runs are too noisy" in text
    assert 'href="https://arxiv.org/abs/2509.02281"' in text
    assert str(out) not in text
    assert call("--figures", 0).code == 0
    assert (out / "report.html").read_text() == text


def test_a_dataset_and_a_place_can_be_named(out: Path, tmp_path: Path, call: Callable[..., Called]) -> None:
    page = tmp_path / "new" / "page.html"
    called = call("--dataset", "mosi", "--to", page, "--select", "last", "--figures", 0)
    assert called.code == 0, called.err
    assert "2 runs in 1 groups" in called.out
    text = page.read_text()
    assert "mosi, protocol pmr v1" in text
    assert "cgmnist" not in text
    assert "read at its last epoch" in text
    assert not (out / "report.html").exists()


def test_figures_are_drawn_from_whole_records(out: Path, call: Callable[..., Called]) -> None:
    called = call("--dataset", "cgmnist", "--figures", 1)
    assert called.code == 0, called.err
    text = (out / "report.html").read_text()
    assert text.count("<figure>") >= 3
    assert "groups have figures" not in text  # all of them have


def test_published_numbers_are_asked_for(out: Path, call: Callable[..., Called]) -> None:
    assert call("--dataset", "cgmnist", "--figures", 0).code == 0
    assert "<h3>Published</h3>" not in (out / "report.html").read_text()
    assert call("--dataset", "cgmnist", "--figures", 0, "--published").code == 0
    text = (out / "report.html").read_text()
    assert "<h3>Published</h3>" in text
    assert "in no mean" in text


def test_claims_of_single_modalities_and_other_fusions_stay_away() -> None:
    shared: dict[str, Any] = {"group": "g", "accuracy": 50.0, "sd": None, "source": "S", "protocol": "P"}
    shared |= {"select": "last", "confidence": "paper", "run_protocol": None, "tolerance": 2.0, "method": "m"}
    claims = [
        Claim(label=f"{dataset} {modality} {fusion}", dataset=dataset, modality=modality, fusion=fusion, **shared)
        for dataset in ("cgmnist", "mosi")
        for modality in (None, "gray")
        for fusion in (None, "concat", "sum")
    ]
    found = report.published(claims, {"dataset": "cgmnist", "fusion": "concat"})
    assert [row["label"] for row in found] == ["cgmnist None None", "cgmnist None concat"]
    assert found[0] == {"label": "cgmnist None None", "accuracy": 50.0, "source": "S", "protocol": "P"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--dataset", "cgmnits"), r"no record of a dataset called 'cgmnits'.*did you mean 'cgmnist'\?"),
        (("--select", "best_test"), "needs runs that were evaluated for best_test, found none"),
        (("--select", "worst"), "invalid choice"),
        (("--figures", -1), "--figures must be at least 0, found -1"),
    ],
)
def test_mistakes_are_one_sentence(
    out: Path, call: Callable[..., Called], arguments: tuple[object, ...], sentence: str
) -> None:
    called = call(*arguments)
    assert called.code == 2
    assert called.out == ""
    assert called.err.startswith("error: ")
    assert called.err.count("\n") == 1
    assert re.search(sentence, called.err)
    assert not (out / "report.html").exists()


def test_an_empty_results_folder_and_a_damaged_record(tmp_path: Path, call: Callable[..., Called]) -> None:
    called = call()
    assert called.code == 2
    assert "found none" in called.err
    stored(tmp_path / "out", "joint", 0, 20).write_text(json.dumps({"key": 1}))
    called = call()
    assert called.code == 2
    assert "damaged" in called.err


def test_a_page_that_cannot_be_written(out: Path, tmp_path: Path, call: Callable[..., Called]) -> None:
    (tmp_path / "file").write_text("")
    called = call("--figures", 0, "--to", tmp_path / "file" / "page.html")
    assert called.code == 2
    assert "could not be written" in called.err


def test_a_page_cannot_replace_a_folder(out: Path, tmp_path: Path, call: Callable[..., Called]) -> None:
    called = call("--figures", 0, "--to", tmp_path / "elsewhere")
    assert (called.code, called.out) == (2, "")
    assert called.err.startswith(f"error: the page must be a file, found the folder {tmp_path / 'elsewhere'}: ")
    assert called.err.count("\n") == 1
    (out / "report.html").mkdir()
    assert "found the folder" in call("--figures", 0).err


def test_every_method_has_an_idea_in_at_most_two_sentences() -> None:
    facts = report.method_facts()
    assert list(facts) == registry.methods.names()
    for one in facts.values():
        assert 20 < len(one.summary) < 500, one.name
        assert one.reference


def test_the_options_of_a_protocol_are_those_of_its_version() -> None:
    assert report.protocol_options({"protocol": "small", "protocol_version": 1}) == {"agm": {"alpha": 0.5}}
    assert report.protocol_options({"protocol": "small+", "protocol_version": 1}) == {"agm": {"alpha": 0.5}}
    assert report.protocol_options({"protocol": "small", "protocol_version": 99}) == {}
    assert report.protocol_options({"protocol": "mine.yaml", "protocol_version": 1}) == {}


def test_a_summary_is_the_attribute_or_prose_of_the_docstring() -> None:
    class Documented:
        """Title of it. Authors, VENUE, https://a.b/c.

        It does this: ``x = 1``. It does that. And more.
        """

    class Named(Documented):
        idea = "Short. Sweet."

    assert report.summary(Documented) == "Title of it. It does this: ``x = 1``."
    assert report.summary(Named) == "Short. Sweet."


def test_figures_are_saved_where_asked(out: Path, call: Callable[..., Called]) -> None:
    called = call("--dataset", "cgmnist", "--save-figures")
    assert called.code == 0, called.err
    (folder,) = (out / "figures").iterdir()
    assert folder.name == "cgmnist-pmr"
    pictures = {path.name for path in folder.iterdir()}
    assert "accuracy_with_intervals.svg" in pictures
    assert {Path(name).stem for name in pictures if name.endswith("svg")} == {
        Path(name).stem for name in pictures if name.endswith("png")
    }
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert call("--dataset", "cgmnist", "--save-figures").code == 0
    assert before == {path: path.read_bytes() for path in folder.iterdir()}


def mapped(out: Path, keys: Sequence[str]) -> Path:
    folder = out / "figures" / "cgmnist-pmr"
    folder.mkdir(parents=True)
    places = pd.DataFrame({"panel": "with", "x": range(8), "y": range(8), "target": [0, 1] * 4, "modality": "colour"})
    places.assign(key=[keys[i % len(keys)] for i in range(8)]).to_csv(folder / "tsne.csv", index=False)
    return folder / "tsne.csv"


def test_a_map_of_features_that_was_drawn_of_these_runs_is_shown(out: Path, call: Callable[..., Called]) -> None:
    keys = [path.stem for path in (out / "records" / "cgmnist" / "udi").iterdir()]
    mapped(out, keys)
    assert call("--dataset", "cgmnist").code == 0
    page = (out / "report.html").read_text()
    assert "<h4>Features of a modality, by t-SNE</h4>" in page
    assert "cgmnist, protocol pmr: colour" in page


@pytest.mark.parametrize("kind", ["absent", "other", "cut", "empty", "binary"])
def test_a_map_that_cannot_be_shown_is_a_caveat(kind: str, out: Path, call: Callable[..., Called]) -> None:
    if kind != "absent":
        path = mapped(out, ["000000000000"])
        if kind != "other":
            path.write_bytes({"cut": b"panel,x\n1,2\n", "empty": b"", "binary": bytes(range(128, 256)) * 9}[kind])
    assert call("--dataset", "cgmnist").code == 0
    page = (out / "report.html").read_text()
    assert "<h4>Features of a modality, by t-SNE</h4>" not in page
    assert "No figure “Features of a modality, by t-SNE”: " in page
    said = {"absent": "it needs networks", "other": "is of other runs"}.get(kind, "cannot be read")
    assert said in page


def test_runs_of_a_former_version_are_left_out_and_counted() -> None:
    def record(method: str, version: int) -> dict[str, Any]:
        return {"spec": {"method": method, "method_version": version}}

    joint, udi = registry.methods.get("joint").version, registry.methods.get("udi").version
    given = [record("joint", joint), record("udi", udi), record("udi", udi - 1), record("theirs", 7)]
    former: Counter[str] = Counter()
    assert list(report.present(given, former)) == [given[0], given[1], given[3]]
    assert former == {f"udi {udi - 1}": 1}
