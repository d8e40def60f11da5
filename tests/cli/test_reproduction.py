"""The page of published numbers: what the script writes, and that its commands are commands."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from calls import ROOT, Called, content

import registry
from balancebench_udi.errors import UserError
from balancebench_udi.nets.fusion import FUSIONS
from balancebench_udi.protocol import load_protocol
from balancebench_udi.report.published import Claim, load_published
from balancebench_udi.spec import RunSpec
from balancebench_udi.store import Store
from benchmarks.command import PROTOCOLS, parse_settings
from benchmarks.reproduction import PAGE, PUBLISHED, main, wanted
from benchmarks.run import make_plan, run_overrides
from benchmarks.run import parser as parser_of_run

CLAIMS = load_published(PUBLISHED)
RESULTS = ROOT / "results"


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Called]:
    def reproduction(*arguments: object) -> Called:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        seen = capsys.readouterr()
        return Called(code, seen.out, seen.err)

    return reproduction


def found(label: str, dataset: str, group: str) -> Claim:
    (claim,) = (c for c in CLAIMS if (c.label, c.dataset, c.group) == (label, dataset, group))
    return claim


def row(page: str, dataset: str, label: str, group: str) -> list[str]:
    """The cells of a number in its group's table."""
    section = page.split(f"\n## {group}\n")[1].split("\n## ", maxsplit=1)[0]
    (line,) = (x for x in section.splitlines() if x.startswith(f"| {dataset} | {label} |"))
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_without_records_the_page_has_the_numbers_and_the_commands(call: Callable[..., Called], tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    done = call("--out", tmp_path)
    assert (done.code, done.err) == (0, "")
    assert f"{len(CLAIMS)} published numbers: 0 reproduced, 0 not reproduced" in done.out
    page = (tmp_path / PAGE).read_text()
    assert row(page, "cremad", "OGM-GE (sum), 1 frame", "ogm-paper")[2:6] == ["62.2", "-", "-", "no data here"]
    assert row(page, "cremad", "G2D", "g2d-paper")[5] == "method not here"
    label = "Data Remixing, 6.5 over its baseline"
    assert row(page, "cremad", label, "remixing-paper")[2:6] == ["-", "-", "-", "no number"]
    assert row(page, "cremad", "UDI, F1 83.19", "udi-paper")[2:6] == ["82.8 ± 0.45", "-", "-", "no data here"]
    assert not re.search(r"/work|/tmp|DESIGN|issue 4|section \d", page + PUBLISHED.read_text())


def test_check_says_whether_the_page_is_what_the_records_give(call: Callable[..., Called], tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    missing = call("--out", tmp_path, "--check")
    assert missing.code == 1
    assert "not what the records give" in missing.out
    assert [path.name for path in tmp_path.iterdir()] == ["records"]
    assert call("--out", tmp_path).code == 0
    before = content(tmp_path)
    assert call("--out", tmp_path, "--check").code == 0
    assert content(tmp_path) == before
    page = tmp_path / PAGE
    page.write_text(page.read_text().replace("51.7", "51.8"))
    assert call("--out", tmp_path, "--check").code == 1
    assert "51.8" in page.read_text()


def record(out: Path, claim: Claim, protocol: str, seed: int, accuracy: float) -> None:
    """A committed record changed into one that ``claim`` asks for."""
    made = json.loads(min((RESULTS / "records/cgmnist/joint").glob("*.json")).read_text())
    run = wanted(claim, protocol)
    assert run is not None
    made["spec"] |= {**run.fields, "dataset": claim.dataset, "method": claim.method, "seed": seed, "precision": "bf16"}
    spec = RunSpec.from_dict(made["spec"])
    made |= {"key": spec.key, "cell": spec.cell}
    for reading in made["result"]["readings"].values():
        reading["test"]["accuracy"] = accuracy
    Store(out).write(spec, made)


def test_records_under_the_claimed_protocol_are_judged(call: Callable[..., Called], tmp_path: Path) -> None:
    joint = found("joint (FiLM)", "cgmnist", "pmr-paper")
    pmr = found("PMR (concat)", "cgmnist", "pmr-paper")
    for seed in range(2):
        record(tmp_path, joint, "pmr", seed, 0.61 + 0.02 * seed)  # mean 62.0, published 60.0
        record(tmp_path, pmr, "pmr", seed, 0.50)
        record(tmp_path, found("UDI", "cgmnist", "udi-paper"), "small", seed, 0.95)
        record(tmp_path, found("PMR (gated)", "cgmnist", "pmr-paper"), "small", seed, 0.55)
    done = call("--out", tmp_path)
    assert "1 reproduced, 1 not reproduced, 3 other protocol" in done.out
    page = (tmp_path / PAGE).read_text()
    ours = "62.00 ± 1.41 (2 seeds, best_val) bf16"
    assert row(page, "cgmnist", "joint (FiLM)", "pmr-paper")[2:] == ["60", ours, "+2.00", "reproduced", "-"]
    assert row(page, "cgmnist", "PMR (concat)", "pmr-paper")[4:6] == ["-27.20", "not reproduced"]
    assert row(page, "cgmnist", "joint (concat)", "pmr-paper")[5] == "not trained"
    gated = row(page, "cgmnist", "PMR (gated)", "pmr-paper")
    assert gated[3:] == ["-", "-", "other protocol", "small+ v1 bf16: 55.00 ± 0.00 (2 seeds, best_val)"]
    udi = next(x for x in page.splitlines() if x.startswith("| cgmnist | UDI"))
    assert "other protocol | small v1 bf16: 95.00 ± 0.00 (2 seeds, best_val)" in udi


def test_what_a_claim_asks_for_is_what_a_plan_gives(tmp_path: Path) -> None:
    """On a dataset that needs no files, so that the real plan can be made."""
    template = found("joint (FiLM)", "cgmnist", "pmr-paper")
    settings = (("pmr.mu", 0), ("digits.val_share", 0.2), ("optimizer.lr", 0.05))
    claim = Claim(**{**vars(template), "dataset": "digits", "method": "pmr", "settings": settings})
    run = wanted(claim, "ogm")
    assert run is not None
    words = shlex.split(run.options.replace("--data-root DIR", f"--out {tmp_path}"))
    jobs = make_plan(parser_of_run().parse_args(["--methods", "pmr", *words]))[0]
    assert [job.spec.seed for job in jobs] == [0, 1, 2, 3, 4]
    spec = jobs[0].spec.as_dict()
    assert {name: spec[name] for name in run.fields} == run.fields
    assert (spec["protocol"], spec["fusion"], spec["method_options"]["mu"]) == ("ogm+", "film", 0.0)
    assert spec["test_each_epoch"]


def test_options_that_belong_to_nobody_are_refused() -> None:
    template = found("joint (FiLM)", "cgmnist", "pmr-paper")
    with pytest.raises(UserError, match="'cremad' takes no part"):
        wanted(Claim(**{**vars(template), "settings": (("cremad.fps", 3),)}), "pmr")


def test_every_claim_with_a_preset_gives_a_command_or_is_not_here() -> None:
    for claim in CLAIMS:
        if claim.run_protocol is None:
            continue
        here = claim.method in registry.METHODS and claim.dataset in registry.DATASETS
        known = claim.fusion in (None, *FUSIONS)
        assert (wanted(claim, claim.run_protocol) is not None) == (here and known), claim


def test_every_command_is_one(call: Callable[..., Called], tmp_path: Path) -> None:
    """Names, options and what each method asks of a fusion, as far as can be told without data."""
    (tmp_path / "records").mkdir()
    call("--out", tmp_path)
    commands = re.findall(r"^python benchmarks/run.py (.*)$", (tmp_path / PAGE).read_text(), re.M)
    assert len(commands) > 30
    for command in commands:
        given = parser_of_run().parse_args(shlex.split(command))
        names = registry.methods.match(given.methods.split(","))
        settings = parse_settings(given.set, [*names, given.dataset])
        protocol = load_protocol(given.protocol, PROTOCOLS, run_overrides(given, settings), given.dataset)
        assert protocol.run.test_each_epoch or given.select != "best_test", command
        data = registry.datasets.get(given.dataset)
        data.Options.build(
            given.dataset, {**protocol.datasets.get(given.dataset, {}), **settings.get(given.dataset, {})}
        )
        for name in names:
            method = registry.methods.get(name)
            options = method.Options.build(name, {**protocol.methods.get(name, {}), **settings.get(name, {})})
            named = getattr(options, "anchor", "auto")
            method.check(options, ["one" if named == "auto" else named, "two"], FUSIONS[protocol.run.fusion].additive)


def test_the_committed_page_is_what_the_records_give(call: Callable[..., Called]) -> None:
    assert call("--out", RESULTS, "--check").code == 0, "write it again: python benchmarks/reproduction.py"


@pytest.mark.parametrize("name", ["absent", "there"])
@pytest.mark.parametrize("flags", [(), ("--check",)])
def test_a_folder_without_records_is_refused(
    call: Callable[..., Called], tmp_path: Path, name: str, flags: tuple[str, ...]
) -> None:
    (tmp_path / "there").mkdir()
    done = call("--out", tmp_path / name, *flags)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: --out must be a folder with the records of runs, found no folder ")
    assert done.err.count("\n") == 1
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["there"]


def test_mistakes_are_one_sentence(call: Callable[..., Called], tmp_path: Path) -> None:
    wrong = call("--chek")
    assert wrong.code == 2
    assert wrong.err.startswith("error: ")
    folder = tmp_path / "records" / "cgmnist" / "joint"
    folder.mkdir(parents=True)
    (folder / "x.json").write_text("{")
    damaged = call("--out", tmp_path)
    assert damaged.code == 2
    assert re.match(r"error: \S+x.json must be a record, found a damaged file", damaged.err)
    assert not (tmp_path / PAGE).exists()
