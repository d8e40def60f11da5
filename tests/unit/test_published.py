"""Published numbers: what the file may hold, and verdicts on records made by hand."""

import dataclasses
import random
import re
from pathlib import Path

import pytest

from balancebench_udi.errors import UserError
from balancebench_udi.protocol import load_protocol
from balancebench_udi.report.published import Claim, load_published
from balancebench_udi.report.reproduction import VERDICTS, Wanted, counts, markdown, reproduce

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PROTOCOLS = BENCHMARKS / "protocols"
CLAIMS = load_published(BENCHMARKS / "published.yaml")

GROUP = """
groups:
  some-paper:
    source: A and B, 2024
    url: https://example.org
    protocol: >
      ResNet-18,
      100 epochs
    select: best_test
    confidence: paper
    run: {protocol: ogm, set: {ogm.alpha: 0.5, cremad.fps: 3}}
    rows:
      - {method: ogm, label: OGM (sum), dataset: cremad, fusion: sum, frames: 3, set: {ogm.alpha: 0.8},
         accuracy: 60, sd: 0.4, note: a note}
      - {method: alone, dataset: cremad, modality: audio, accuracy: null}
"""


def loaded(tmp_path: Path, text: str = GROUP) -> list[Claim]:
    path = tmp_path / "published.yaml"
    path.write_text(text)
    return load_published(path)


def test_a_claim_holds_what_its_group_and_its_row_say(tmp_path):
    full, bare = loaded(tmp_path)
    assert full == Claim(
        group="some-paper",
        method="ogm",
        label="OGM (sum)",
        dataset="cremad",
        modality=None,
        fusion="sum",
        accuracy=60.0,
        sd=0.4,
        source="A and B, 2024",
        protocol="ResNet-18, 100 epochs",
        select="best_test",
        confidence="paper",
        run_protocol="ogm",
        tolerance=0.8,
        note="a note",
        settings=(("ogm.alpha", 0.8), ("cremad.fps", 3)),
        frames=3,
        url="https://example.org",
    )
    assert (bare.label, bare.modality, bare.fusion, bare.accuracy, bare.sd) == ("alone", "audio", None, None, None)
    assert (bare.tolerance, bare.note, bare.frames) == (2.0, "", None)
    assert bare.settings == (("ogm.alpha", 0.5), ("cremad.fps", 3))


def test_a_tolerance_of_the_group_goes_before_the_deviation(tmp_path):
    claims = loaded(tmp_path, GROUP.replace("    select:", "    tolerance: 3\n    select:"))
    assert [claim.tolerance for claim in claims] == [3.0, 3.0]


def test_a_group_without_a_protocol_of_ours(tmp_path):
    text = re.sub(r"run: .*", "run: none", GROUP)
    assert [(c.run_protocol, c.settings) for c in loaded(tmp_path, text)] == [(None, (("ogm.alpha", 0.8),)), (None, ())]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("groups:", "group:", r"has no key 'group'; did you mean 'groups'\?"),
        ("confidence: paper", "confidance: paper", r"some-paper has no key 'confidance'; did you mean 'confidence'"),
        (
            "confidence: paper",
            "confidence: rumour",
            r"confidence of some-paper must be one of paper, .*, found 'rumour'",
        ),
        ("    confidence: paper\n", "", r"some-paper must have confidence, found only source, url"),
        ("select: best_test", "select: best", r"select of some-paper must be one of best_test, .*, found 'best'"),
        ("source: A and B, 2024", "source: 2024", r"source of some-paper must be a text, found 2024"),
        ("url: https://example.org", "url: [x]", r"url of some-paper must be a text, found \['x'\]"),
        ("accuracy: 60", "accuracy: 101", r"accuracy of row 1 of some-paper must be in percent, 0 to 100, found 101"),
        ("accuracy: 60", "accuracy: -0.1", r"accuracy of row 1 of some-paper must be in percent, .* found -0.1"),
        ("accuracy: 60", "accuracy: .nan", r"accuracy of row 1 of some-paper must be in percent, .* found nan"),
        ("accuracy: 60", "accuracy: true", r"accuracy of row 1 of some-paper must be in percent, .* found True"),
        ("accuracy: 60", "accuracy: '60'", r"accuracy of row 1 of some-paper must be in percent, .* found '60'"),
        ("accuracy: 60, ", "", r"row 1 of some-paper must have accuracy, found only method"),
        ("accuracy: 60", "acuracy: 60", r"row 1 of some-paper has no key 'acuracy'; did you mean 'accuracy'"),
        ("sd: 0.4", "sd: high", r"sd of row 1 of some-paper must be in percent, 0 to 100, found 'high'"),
        ("frames: 3", "frames: 0", r"frames of row 1 of some-paper must be a whole number from 1, found 0"),
        ("frames: 3", "frames: 1.5", r"frames of row 1 of some-paper must be a whole number from 1, found 1.5"),
        (
            "dataset: cremad, modality",
            "dataset: '', modality",
            r"dataset of row 2 of some-paper must be a text, found ''",
        ),
        (
            "set: {ogm.alpha: 0.8}",
            "set: {alpha: 0.8}",
            r"set of row 1 of some-paper must hold options such as optimizer.lr",
        ),
        ("set: {ogm.alpha: 0.8}", "set: [1]", r"set of row 1 of some-paper must hold options such as optimizer.lr"),
        ("{ogm.alpha: 0.5", "{ogm.alpha: [1, 2]", r"ogm.alpha in set of run of some-paper must be a text or a number"),
        ("{protocol: ogm, ", "{protocoll: ogm, ", r"run of some-paper has no key 'protocoll'; did you mean 'protocol'"),
        ("{protocol: ogm, ", "{", r"run of some-paper must have protocol, found only set"),
        (
            "run: {protocol: ogm, set: {ogm.alpha: 0.5, cremad.fps: 3}}",
            "run: ogm",
            r"run of some-paper must be none, or",
        ),
        ("    rows:\n", "    rows: 1\n    run: none\n", r"must have every key once, found 'run' in line "),
        ("method: alone, dataset", "method: ogm, label: OGM (sum), fusion: sum, set: {ogm.alpha: 0.8}, dataset", None),
    ],
)
def test_one_sentence_for_every_mistake(tmp_path, old, new, message):
    assert old in GROUP
    text = GROUP.replace(old, new)
    if message is None:  # told apart by the modality
        assert len(loaded(tmp_path, text)) == 2
        text, message = (
            text.replace("modality: audio, ", ""),
            r"some-paper must have every number once, found two of OGM",
        )
    with pytest.raises(UserError, match=message) as found:
        loaded(tmp_path, text)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"must have groups, found only nothing"),
        ("groups: [1]", r"groups of .* must hold names with values, found \[1\]"),
        ("groups: {x: 1}", r"x must hold names with values, found 1"),
        (
            GROUP.split("    rows:", maxsplit=1)[0] + "    rows: []",
            r"rows of some-paper must be a list of numbers, found \[\]",
        ),
        (
            GROUP.split("      - ", maxsplit=1)[0] + "      - 60.5",
            r"row 1 of some-paper must hold names with values",
        ),
    ],
)
def test_a_file_of_another_shape(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        loaded(tmp_path, text)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"absent.yaml must be a file of published numbers, found none"):
        load_published(tmp_path / "absent.yaml")


def published(group: str, dataset: str) -> dict[str, float | None]:
    return {c.label: c.accuracy for c in CLAIMS if (c.group, c.dataset) == (group, dataset)}


def test_the_published_numbers_are_there():
    balance = [c for c in CLAIMS if c.group.startswith("balancebenchmark")]
    assert len(balance) == 18 * 7 - 3 + 2 * 6 + 3  # Greedy has four of seven data sets
    assert {c.select for c in balance if c.dataset == "mosei"} == {"best_val"}
    assert {c.select for c in balance if c.dataset != "mosei"} == {"best_test"}
    assert published("balancebenchmark", "vggsound")["Modality-valuation"] == 48.25
    assert published("balancebenchmark", "ucf101")["AMCo"] == 86.91
    assert published("balancebenchmark-mosei", "mosei")["third modality alone"] == 80.58
    assert published("inforeg-paper", "kinetics_sounds")["AGM"] == 66.54
    assert published("pmr-paper", "cgmnist")["PMR (gated)"] == 68.7
    assert published("mmpareto-paper-unconfirmed", "kinetics_sounds")["PMR"] == 65.7
    udi = {c.label: (c.accuracy, c.f1, c.sd) for c in CLAIMS if (c.group, c.dataset) == ("udi-paper", "cremad")}
    assert udi["UDI"] == (82.80, 83.19, 0.45)
    assert udi["joint (sum)"] == (66.40, 66.82, None)
    assert published("udi-paper", "cgmnist") == {
        "gray alone": 99.32,
        "colour alone": 71.69,
        "joint (sum)": 64.07,
        "UDI": 99.12,
    }
    assert published("udi-paper-ablation", "cgmnist")["UDI with consistency alone"] == 96.37
    assert len([c for c in CLAIMS if c.group.startswith("udi-paper")]) == 25 + 9 + 63 + 30 + 13 + 9
    assert all(c.confidence == "paper" for c in CLAIMS if c.group.startswith("udi-paper"))


def test_every_group_names_a_preset_that_exists():
    assert {c.run_protocol for c in CLAIMS} - {None} <= {path.stem for path in PROTOCOLS.glob("*.yaml")}


def said_there(label: str) -> tuple[str, str | None, str | None]:
    """Method, modality and fusion of a label such as ``OGM-GE (concat)`` or ``gray alone``."""
    name, fusion = re.fullmatch(r"(.+?)(?: \((\w+)\))?", label).groups()
    if name.endswith(" alone"):
        return "unimodal", name.removesuffix(" alone"), fusion
    return {"joint and unimodal losses": "uniform"}.get(name, name.lower().replace("-", "_")), None, fusion


@pytest.mark.parametrize("path", sorted(PROTOCOLS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_presets_say_the_same_numbers(path):
    for dataset, rows in load_protocol(path.stem, PROTOCOLS, {}).published.items():
        for row in rows:
            method, modality, fusion = said_there(row["label"])
            same = [
                claim.accuracy
                for claim in CLAIMS
                if (claim.method, claim.dataset, claim.modality) == (method, dataset, modality)
                and claim.fusion == fusion
                and not claim.settings
                and claim.source[:14] == row["source"][:14]
            ]
            assert same == [row["accuracy"]], (dataset, row)


# ---- verdicts


def make(seed, accuracy, *, spec=None, cell="c", reading="best_val", scores=None):
    """One record of method ``mine`` on data ``toy`` under ``paper``."""
    given = {
        "method": "mine",
        "dataset": "toy",
        "protocol": "paper",
        "protocol_version": 1,
        "fusion": "concat",
        "method_options": {"alpha": 0.5},
        "precision": "fp32",
        "seed": seed,
        **(spec or {}),
    }
    readings = {"best_val": {"test": {"accuracy": 0.125}}, "last": {"test": {"accuracy": 0.25}}}
    readings[reading] = {"test": {"accuracy": accuracy, **(scores or {})}}
    return {"cell": cell, "spec": given, "result": {"readings": readings}}


def claim(accuracy=62.5, **changes):
    given = {"group": "g", "method": "mine", "label": "Mine", "dataset": "toy", "modality": None, "fusion": None}
    given |= {"accuracy": accuracy, "sd": None, "source": "S", "protocol": "P", "select": "best_val"}
    return Claim(**{**given, "confidence": "paper", "run_protocol": "paper", "tolerance": 2.0, **changes})


def wanted(asked, name):
    """A preset has concat fusion and alpha 0.5, ``other`` alpha 0.25."""
    if name == "gone":
        return None
    fusion = asked.fusion or "concat"
    alpha = dict(asked.settings).get("mine.alpha", 0.25 if name == "other" else 0.5)
    protocol = name if fusion == "concat" else f"{name}+"
    fields = {"protocol": protocol, "fusion": fusion, "method_options": {"alpha": alpha}}
    return Wanted(fields, f"--dataset {asked.dataset} --protocol {name}")


def judged(records, *claims, methods=("mine",)):
    return reproduce(claims or [claim()], records, methods, wanted)


THREE = [make(seed, 0.5 + 0.125 * seed) for seed in range(3)]


def test_mean_and_deviation_over_the_seeds():
    (finding,) = judged(THREE)
    assert finding.ours is not None
    assert (finding.ours.n, finding.ours.mean, finding.ours.sd, finding.ours.reading) == (3, 62.5, 12.5, "best_val")
    assert (finding.verdict, finding.gap, finding.elsewhere) == ("reproduced", 0.0, ())
    assert str(finding.ours) == "62.50 ± 12.50 (3 seeds, best_val)"
    (single,) = judged(THREE[:1])
    assert str(single.ours) == "50.00 (1 seed, best_val)"


@pytest.mark.parametrize(
    ("accuracy", "tolerance", "verdict"),
    [
        (64.5, 2.0, "reproduced"),
        (60.5, 2.0, "reproduced"),
        (64.6, 2.0, "not reproduced"),
        (60.4, 2.0, "not reproduced"),
        (60.4, 2.5, "reproduced"),
        (62.4, 0.0, "not reproduced"),
    ],
)
def test_the_tolerance_is_an_edge_on_both_sides(accuracy, tolerance, verdict):
    (finding,) = judged(THREE, claim(accuracy, tolerance=tolerance))
    assert finding.verdict == verdict
    assert finding.gap == pytest.approx(62.5 - accuracy)


def test_runs_are_read_as_the_claim_was_where_all_of_them_can_be():
    best = [make(seed, 0.75, reading="best_test") for seed in range(2)]
    (finding,) = judged(best, claim(select="best_test"))
    assert (finding.ours.reading, finding.ours.mean) == ("best_test", 75.0)
    (finding,) = judged([*best, make(2, 0.5)], claim(select="best_test"))
    assert (finding.ours.reading, finding.ours.n, finding.ours.mean) == ("best_val", 3, 25.0)
    (finding,) = judged(best, claim(select="unknown"))
    assert (finding.ours.reading, finding.ours.mean) == ("best_val", 12.5)
    (finding,) = judged(best, claim(select="last"))
    assert (finding.ours.reading, finding.ours.mean) == ("last", 25.0)


def test_a_modality_is_read_where_it_was_trained_alone():
    records = [make(0, 0.9, scores={"alone/gray": 0.75})]
    gray, colour = judged(records, claim(modality="gray"), claim(modality="colour"))
    assert gray.ours.mean == 75.0
    assert (colour.verdict, colour.ours) == ("not trained", None)


@pytest.mark.parametrize(
    "change",
    [{"protocol": "paper+"}, {"fusion": "sum"}, {"method_options": {"alpha": 0.8}}, {"method": "x"}, {"dataset": "x"}],
    ids=str,
)
def test_what_differs_is_not_the_same_protocol(change):
    (finding,) = judged([make(0, 0.625, spec=change), make(0, 0.1, spec={"method": "x"})])
    assert (finding.verdict, finding.ours, finding.gap, finding.elsewhere) == ("not trained", None, None, ())


def test_a_claim_with_fusion_and_options_finds_its_runs():
    changed = [make(0, 0.5, spec={"protocol": "paper+", "fusion": "sum", "method_options": {"alpha": 0.8}})]
    plain, summed = judged(changed, claim(), claim(fusion="sum", settings=(("mine.alpha", 0.8),)))
    assert (plain.verdict, summed.verdict, summed.ours.mean) == ("not trained", "not reproduced", 50.0)


def test_runs_under_other_protocols_are_shown_and_not_judged():
    other = [make(s, 0.625, spec={"protocol": "other", "method_options": {"alpha": 0.25}}, cell="o") for s in range(2)]
    strange = [make(0, 0.625, spec={"protocol": "gone"}, cell="x")]
    (finding,) = judged([*strange, *other])
    assert (finding.verdict, finding.ours, finding.gap) == ("other protocol", None, None)
    assert [(o.protocol, o.n, o.mean) for o in finding.elsewhere] == [("other v1", 2, 62.5)]
    (finding,) = judged([*other, *THREE])
    assert (finding.verdict, finding.ours.n, finding.elsewhere) == ("reproduced", 3, ())
    (finding,) = judged(THREE, claim(run_protocol=None))
    assert (finding.verdict, finding.wanted, len(finding.elsewhere)) == ("other protocol", None, 1)


def test_cells_are_never_averaged():
    coarse = [make(s, 0.75, spec={"precision": "bf16"}, cell="b") for s in range(4)]
    (finding,) = judged([*THREE, *coarse])
    assert (finding.ours.n, finding.ours.mean, finding.ours.precision) == (4, 75.0, "bf16")
    tested = [make(0, 0.875, reading="best_test", cell="t")]
    (finding,) = judged([*THREE, *tested], claim(select="best_test"))
    assert (finding.ours.n, finding.ours.mean) == (1, 87.5)


def test_what_cannot_be_judged_says_why():
    findings = judged(
        THREE,
        claim(accuracy=None),
        claim(method="yours"),
        claim(dataset="far"),
        claim(method="yours", dataset="far"),
        claim(method="ours"),
        methods=("mine", "ours"),
    )
    assert [f.verdict for f in findings] == [
        "no number",
        "method not here",
        "no data here",
        "method not here",
        "not trained",
    ]
    assert [f.gap for f in findings] == [None] * 5
    assert counts(findings) == {
        **dict.fromkeys(VERDICTS, 0),
        "no number": 1,
        "method not here": 2,
        "no data here": 1,
        "not trained": 1,
    }


def cells(line):
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


def test_the_page():
    other = [make(0, 0.5, spec={"protocol": "other", "method_options": {"alpha": 0.25}, "precision": "bf16"}, cell="o")]
    claims = [
        claim(60.0, group="first", tolerance=3.0),
        claim(70.5, group="first", label="Mine | pipe", sd=1.0, note="odd", frames=3),
        claim(
            50.0, group="second", dataset="toy", settings=(("mine.alpha", 0.25),), run_protocol=None, url="https://x.y"
        ),
    ]
    page = markdown(judged([*THREE, *other], *claims))
    lines = page.splitlines()
    assert lines[2] == (
        "Of 3 numbers in papers and repositories 2 can be judged with the runs recorded here: 1 reproduced and 1 not "
        "reproduced, ours of 3 seeds each. The others: 1 other protocol."
    )
    first = [
        cells(line) for line in lines[lines.index("## Judged") : lines.index("## How they are judged")] if "|" in line
    ]
    assert [(row[0], row[-1]) for row in first[2:]] == [
        ("[first](#first)", "reproduced"),
        ("[first](#first)", "not reproduced"),
    ]
    below = lines[lines.index("## Overview") :]
    overview = [cells(line) for line in below if line.startswith(("| [", "| all"))]
    assert overview == [
        ["[first](#first)", "S", "paper", "2", "1", "1", *["-"] * 5],
        ["[second](#second)", "S", "paper", "1", "-", "-", "1", *["-"] * 4],
        ["all", "", "", "3", "1", "1", "1", *["-"] * 4],
    ]
    rows = [cells(line) for line in lines if line.startswith("| toy")]
    assert rows == [
        ["toy", "Mine", "60", "62.50 ± 12.50 (3 seeds, best_val)", "+2.50", "reproduced"],
        [
            "toy",
            r"Mine \| pipe, 3 frames, odd",
            "70.5 ± 1",
            "62.50 ± 12.50 (3 seeds, best_val)",
            "-8.00",
            "not reproduced",
        ],
        [
            "toy",
            "Mine, mine.alpha 0.25",
            "50",
            "-",
            "-",
            "other protocol",
            "other v1 bf16: 50.00 (1 seed, best_val)",
        ],
    ]
    assert [line for line in lines if line.startswith("python")] == [
        "python benchmarks/run.py --methods mine --dataset toy --protocol paper"
    ]
    assert "[S](https://x.y). Confidence: paper. Read at: the best epoch on val." in lines


def test_equal_records_equal_bytes():
    there = {"protocol": "other", "method_options": {"alpha": 0.25}}
    records = [*THREE, *(make(s, 0.3 + 0.1 * s, spec=there, cell="o") for s in range(5))]
    records += [make(s, 0.3 + 0.2 * s, spec={"protocol": "next"}, cell="n") for s in range(4)]
    claims = [claim(), claim(fusion="sum"), claim(run_protocol="other", group="h"), claim(run_protocol=None, group="i")]
    assert [o.protocol for o in judged(records, claims[-1])[0].elsewhere] == ["next v1", "other v1", "paper v1"]
    page = markdown(judged(records, *claims))
    for seed in range(5):
        random.Random(seed).shuffle(records)
        assert markdown(judged(iter(records), *claims)) == page


def test_one_command_for_methods_that_share_the_rest():
    claims = [claim(), dataclasses.replace(claim(), method="ours"), claim(dataset="far"), claim(), claim(method="no")]
    page = markdown(judged(THREE, *claims, methods=("mine", "ours")))
    assert re.findall(r"^python .*", page, re.M) == [
        "python benchmarks/run.py --methods mine,ours --dataset toy --protocol paper",
        "python benchmarks/run.py --methods mine --dataset far --protocol paper",
    ]
