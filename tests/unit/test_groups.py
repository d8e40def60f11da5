"""Groups of test samples: what a dataset declares, what a record keeps, what is known of older records."""

import json

import numpy as np
import pytest
import torch

from balancebench_udi.data import groups
from balancebench_udi.data.groups import Groups, digest_of, of_record
from balancebench_udi.errors import UserError
from balancebench_udi.metrics.predictions import pack
from balancebench_udi.report.contest import samples_of
from tests.helpers import tiny_bundle, written_spec

TARGET = np.arange(12) % 3
PRINT = "0123456789ab"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Of published groups, with none."""
    monkeypatch.setattr(groups, "FOLDER", tmp_path)
    groups.published.cache_clear()
    yield tmp_path
    groups.published.cache_clear()


def written(folder, **changes):
    told = {"unit": "subject", "members": [i // 4 for i in range(12)], "labels_sha256": digest_of(TARGET), **changes}
    (folder / f"{PRINT}.json").write_text(json.dumps(told))


def record(**data):
    return {
        "spec": written_spec(fingerprint=PRINT),
        "data": {"classes": list("abcd"), "facts": {}, **data},
        "result": {"test_target": pack(torch.tensor([0, 0, 0, 1, 2, 0]))},
    }


def test_groups_are_numbered_by_name():
    made = Groups.of("speaker", ["yves", "ann", "yves", "bob"])
    assert made == Groups("speaker", (2, 0, 2, 1))
    assert len(made) == 3
    assert Groups(**{k: tuple(v) if k == "members" else v for k, v in made.as_dict().items()}) == made


def test_a_bundle_has_one_group_a_test_sample():
    made = tiny_bundle()
    with pytest.raises(UserError, match=r"groups must have one number a test sample \(\d+\), found 2"):
        type(made)(**{**vars(made), "groups": Groups("subject", (0, 1))})


def test_what_a_record_keeps_comes_first(folder):
    written(folder)
    kept = {"unit": "video", "members": [0, 1] * 6}
    assert of_record(PRINT, {"groups": kept}, TARGET) == Groups("video", (0, 1) * 6)
    assert of_record(PRINT, {"groups": None}, TARGET) is None
    assert of_record(PRINT, {}, TARGET) == Groups("subject", tuple(i // 4 for i in range(12)))
    assert of_record("another", {}, TARGET) is None


def test_groups_of_other_samples_are_refused(folder):
    written(folder)
    with pytest.raises(UserError, match="must be of the test samples of the runs on 0123456789ab, the labels differ"):
        of_record(PRINT, {}, TARGET[::-1])
    with pytest.raises(UserError, match=r"must be one a sample \(12\), found 2 in its record"):
        of_record(PRINT, {"groups": {"unit": "video", "members": [0, 1]}}, TARGET)
    groups.published.cache_clear()
    written(folder, members=[0, 1])
    with pytest.raises(UserError, match=r"must be one a sample \(12\), found 2 in .*0123456789ab\.json"):
        of_record(PRINT, {}, TARGET)


@pytest.mark.parametrize("text", ["", "{}", '{"unit": "a", "members": 3, "labels_sha256": "x"}', "[1, 2]"])
def test_a_damaged_file_is_named(folder, text):
    (folder / f"{PRINT}.json").write_text(text)
    with pytest.raises(UserError, match=r"ab\.json must hold unit, members and labels_sha256, found it damaged"):
        of_record(PRINT, {}, TARGET)


def test_majority_and_chance_are_read_from_the_labels(folder):
    found = samples_of(record())
    assert (found.majority, found.chance, found.groups) == (4 / 6, 0.25, None)
    assert found.floor == found.majority


def test_the_groups_of_published_test_splits_are_whole():
    files = sorted(groups.FOLDER.glob("*.json"))
    units = {}
    for path in files:
        found, digest = groups.published(path.stem)
        assert len(digest) == 64
        assert set(found.members) == set(range(len(found)))
        units[found.unit] = len(found), len(found.members)
    assert units == {"subject": (4, 430), "speaker": (6, 900), "video": (22, 515)}
