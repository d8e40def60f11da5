"""The map of features from the command line, on the embedded digits."""

from __future__ import annotations

import pandas as pd
import pytest
from calls import ROOT, finish, records, spawn

ON = ("--dataset", "digits", "--protocol", "quick", "--modality", "gray", "--samples", "60")
SCRIPT = ROOT / "benchmarks" / "embedding.py"


def call(*arguments, cwd):
    return finish(spawn(*arguments, cwd=cwd, script=SCRIPT))


def test_two_variants_are_trained_kept_and_drawn(tmp_path):
    panels = ("--panel", "trained jointly: joint", "--panel", "half: ogm alpha=0.5", "--set", "optimizer.lr=0.02")
    protocol = tmp_path / "two.yaml"
    protocol.write_text("run: {epochs: 2}\n")
    on = ("--dataset", "digits", "--protocol", str(protocol), "--modality", "gray", "--samples", "60", "--name", "map")
    called = call(*on, *panels, "--out", str(tmp_path / "out"), cwd=tmp_path)
    assert called.code == 0, called.err
    places = pd.read_csv(tmp_path / "out" / "figures" / "map" / "tsne.csv")
    assert places["panel"].value_counts().to_dict() == {"trained jointly": 60, "half": 60}
    assert sorted(p.name for p in (tmp_path / "out" / "figures" / "map").iterdir()) == [
        "tsne.csv",
        "tsne.png",
        "tsne.svg",
    ]
    specs = [record["spec"] for record in records(tmp_path / "out").values()]
    assert sorted(s["method"] for s in specs) == ["joint", "ogm"]
    assert {s["optimizer"]["lr"] for s in specs} == {0.02}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--panel", "no method"), "--panel takes TITLE: METHOD [OPTION=VALUE ...], found 'no method'"),
        (("--panel", "a: joint x"), "--panel takes TITLE"),
        (("--panel", "a: jiont"), "did you mean 'joint'"),
        (("--panel", "a: joint", "--modality", "grey"), "digits has no modality 'grey'"),
        (("--panel", "a: joint", "--samples", "3"), "--samples must be at least 7, found 3"),
        (("--panel", "a: joint", "--seed", "0-1"), "one seed, found 2 runs"),
        (("--panel", "a: joint", "--name", "../x"), "--name must be a plain folder name"),
        (("--panel", "a: joint", "--name", ".."), "--name must be a plain folder name"),
    ],
)
def test_mistakes_get_a_sentence(arguments, said, tmp_path):
    called = call(*ON, "--out", str(tmp_path / "out"), *arguments, cwd=tmp_path)
    assert called.code == 2
    assert said in called.err
    assert called.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
