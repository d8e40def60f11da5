"""``benchmarks/speed.py``: what it reports, and that a planted slowness, wait or leak shows where it should."""

from __future__ import annotations

import gc
import json
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from calls import ROOT, Called, finish, spawn

import registry
from balancebench_udi import UserError
from balancebench_udi.data.base import Affine
from balancebench_udi.errors import RunFailed
from baselines.joint import Joint
from baselines.unimodal import Unimodal
from benchmarks import speed, speed_parts, speed_runs
from benchmarks.speed_runs import BARE, REPLAYED, Case, Lap, Peak, digits, vectors
from tests.media import write_video

CPU = torch.device("cpu")
PARTS = ["methods", "scaling", "memory", "peer", "floor", "jobs"]
SHORT = Case("digit", digits(), batch=8, steps=5, epochs=2, rounds=3)
TINY = Case("vectors", vectors(), batch=8, steps=5, epochs=2, rounds=3)
NAP = 0.02
"""Seconds; far more than a step of ``TINY`` takes."""


class Twice(Joint):
    """Every step made twice."""

    name = "twice"

    def step(self, batch):
        super().step(batch)
        return super().step(batch)


class Drowsy(Joint):
    """Sleeps in every step: time passes, the processor rests."""

    name = "drowsy"

    def step(self, batch):
        time.sleep(NAP)
        return super().step(batch)


class DrowsyAlone(Unimodal):
    """Sleeps in every step of every phase."""

    name = "drowsy_alone"

    def step(self, batch):
        time.sleep(NAP)
        return super().step(batch)


class Epochal(Joint):
    """Works between epochs."""

    name = "epochal"

    def end_epoch(self):
        time.sleep(5 * NAP)


class Broken(Joint):
    """Breaks in its second epoch."""

    name = "broken"

    def step(self, batch):
        if self.task.epoch == 1:
            raise RunFailed("the loss must stay finite,\nfound nan")
        return super().step(batch)


def rows(case, *methods, failed=None):
    """name -> row of the table of ``methods`` and joint."""
    chosen = {cls.name: cls for cls in (Joint, *methods)}
    laps, watched = speed_runs.compete(case, chosen, "fp32", CPU, [] if failed is None else failed)
    return {name: speed_parts._method_row(name, laps, watched, case) for name in laps}


# -- the whole command -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> tuple[Called, Path]:
    """A quick call from another directory, and its folder."""
    here = tmp_path_factory.mktemp("elsewhere")
    process = spawn("--quick", "--name", "mine", "--out", "out", cwd=here, script=ROOT / "benchmarks/speed.py")
    called = finish(process, timeout=400)
    assert called.code == 0, called.err
    return called, here / "out" / "speed" / "mine"


@pytest.fixture
def tables(quick):
    """Title -> rows of the quick call."""
    report = json.loads((quick[1] / "speed.json").read_text())
    return {t["title"]: t["rows"] for part in report["parts"].values() for t in part["tables"]}


def test_quick_writes_every_part_with_machine_and_settings(quick):
    called, folder = quick
    assert sorted(p.name for p in folder.iterdir()) == ["speed.json", "speed.md"]
    report = json.loads((folder / "speed.json").read_text())
    assert list(report["parts"]) == PARTS
    text = (folder / "speed.md").read_text()
    for name, part in report["parts"].items():
        assert part["machine"]["device_type"] == "cpu"
        assert part["machine"]["threads"] == 1
        assert part["versions"]["torch"] == torch.__version__.split("+")[0]
        assert part["settings"]["cases"] == {"digit": {"batch": 8, "steps": 2, "epochs": 2, "rounds": 1}}
        assert part["settings"]["precision"] == ["fp32"]
        assert part["failed"] == []
        assert part["seconds"] > 0
        section = text.split(f"## {name}\n")[1].split("\n## ")[0]
        assert section.strip() in called.out
        assert "Measured with --quick" in section
        for table in part["tables"]:
            assert f"### {table['title']}\n\n{table['says']}\n" in section
            assert len(re.findall(r"^\| ", section, re.MULTILINE)) >= len(table["rows"]) + 2
    assert "%|" in called.err  # progress


def test_the_methods_table_holds_every_method_once(tables):
    (joint_bare,) = tables["Joint against a bare loop"]
    found = {row["method"]: row for row in tables["Methods, digit, fp32"]}
    assert list(found) == [BARE, *registry.methods.names()]
    joint = found["joint"]
    assert joint["time"]["median"] == joint["passes"] == joint["step"]["median"] == 1
    assert joint_bare["share"]["median"] == pytest.approx(found[BARE]["time"]["median"])
    assert joint_bare["verdict"] == ("ok" if joint_bare["share"]["median"] >= 0.9 else "under")
    assert 0.3 < joint_bare["share"]["median"] < 1.5
    assert (joint["steps"], found["unimodal"]["steps"], found["ensemble"]["steps"]) == (4, 8, 8)
    assert found["unimodal"]["passes"] == found["ogm"]["passes"] == 1
    assert found["mmpareto"]["passes"] > 1.3
    budgets = {name: row["budget"] for name, row in found.items() if row["budget"] is not None}
    assert budgets == {"ogm_ge": 1.10, "pmr": 1.25, "agm": 2.2, "mmpareto": 1.8, "udi": 1.8}
    for name, row in found.items():
        assert (row["verdict"] is None) == (name not in budgets)
        assert row["samples_per_second"]["median"] * row["ms_per_step"]["median"] == pytest.approx(8 * 1000)
        if name != BARE:
            assert 0 < row["waiting"]["median"] < 0.9
            assert row["waiting"]["median"] + row["between"]["median"] < 1
    assert found["ogm"]["window"] == 1.0
    assert found["joint"]["window"] is None


def test_the_other_tables_are_sane(tables):
    samples = tables["Samples"]
    assert [row["value"] for row in samples] == [8, 16]
    assert [row["data"] for row in samples] == [8 * 4 * 28 * 28, 16 * 4 * 28 * 28]
    assert all(50e6 < row["own"] < 3e9 and abs(row["growth"]) < 100e6 for row in samples)
    for title, values in (("Modalities", [2, 3]), ("Classes", [10, 100])):
        assert [(row["encoder"], row["value"]) for row in tables[title]] == [
            (encoder, value) for encoder in ("MLP on vectors", "DigitNet") for value in values
        ]
        assert all(row["ms_per_step"]["median"] > 0 for row in tables[title])
    (memory,) = tables["Peak memory"]
    assert 50e6 < memory["own"] < 3e9
    assert memory["ratio"] == 1
    (peer,) = tables["Against BalanceBenchmark"]
    one = {name: peer[name]["median"] for name in ("seconds", "memory", "time", "memory_ratio")}
    assert 1 < one["seconds"] < 400
    assert 100e6 < one["memory"] < 5e9
    assert (one["time"], one["memory_ratio"]) == (one["seconds"] / 243, one["memory"] / 5.5e9)
    assert peer["time_verdict"] is None  # another workload, another number of threads
    rates = {row["what"]: row["rate"] for row in tables["Peak rates"]}
    (floor,) = tables["Floor"]
    assert floor["arithmetic"] == pytest.approx(1e3 * floor["flops"] / rates["matrix product, fp32"])
    assert floor["traffic"] == pytest.approx(floor["bytes"] / rates["copy"])
    assert floor["floor"] == max(floor["arithmetic"], floor["traffic"])
    assert 0 < floor["share"] == floor["floor"] / floor["joint"]["median"]
    joint = next(row for row in tables["Methods, digit, fp32"] if row["method"] == "joint")
    assert floor["joint"] == joint["ms_per_step"]
    assert [(row["jobs"], row["threads"]) for row in tables["Several trainings at once"]] == [(1, 1), (2, 1)]


def test_a_part_measured_again_replaces_itself_only(quick, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "out" / "speed" / "mine"
    folder.mkdir(parents=True)
    before = json.loads((quick[1] / "speed.json").read_text())
    (folder / "speed.json").write_text(json.dumps(before))
    monkeypatch.chdir(tmp_path)
    assert speed.main(["--quick", "--parts", "floor", "--name", "mine", "--out", "out", "--precision", "bf16"]) == 0
    after = json.loads((folder / "speed.json").read_text())
    assert {k: v for k, v in after["parts"].items() if k != "floor"} == {
        k: v for k, v in before["parts"].items() if k != "floor"
    }
    assert after["parts"]["floor"]["settings"]["precision"] == ["bf16"]
    text = (folder / "speed.md").read_text()
    assert re.findall(r"^## (\w+)$", text, re.MULTILINE) == PARTS
    assert re.findall(r"^## (\w+)$", capsys.readouterr().out, re.MULTILINE) == ["floor"]


MISTAKES = {
    "part": (("--parts", "methds"), r"--parts: there is no part called 'methds'; did you mean 'methods'"),
    "an empty part": (("--parts", ""), r"--parts needs at least one value, found ''"),
    "no part": (("--parts", ","), r"--parts needs at least one value, found ','"),
    "case": (("--cases", "digt"), r"--cases: there is no case called 'digt'; did you mean 'digit'"),
    "method": (("--methods", "omg"), r"no method called 'omg'; did you mean 'ogm'"),
    "precision": (("--precision", "bf61"), r"no precision called 'bf61'; did you mean 'bf16'"),
    "rounds": (("--rounds", "0"), r"--rounds: must be a whole number >= 1, found '0'"),
    "steps": (("--steps", "many"), r"--steps: must be a whole number >= 1, found 'many'"),
    "name": (("--name", "a/b"), r"--name must be a plain folder name, found 'a/b'"),
    "flag": (("--part", "floor", "--partz"), r"--partz"),
    "device": (("--device", "tpu"), r"--device"),
}


@pytest.mark.parametrize(("arguments", "said"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_costs_one_sentence(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert speed.main(["--quick", *arguments, "--out", "out"]) == 2
    seen = capsys.readouterr()
    assert re.fullmatch(rf"error: [^\n]*{said}[^\n]*\n", seen.err)
    assert seen.out == ""
    assert not list(tmp_path.iterdir())


def test_another_file_in_the_place_of_the_report_is_refused(tmp_path, capsys):
    folder = tmp_path / "speed" / "mine"
    folder.mkdir(parents=True)
    for content in ("{", "[]", '{"format": 99, "parts": {}}'):
        (folder / "speed.json").write_text(content)
        assert speed.main(["--quick", "--parts", "floor", "--name", "mine", "--out", str(tmp_path)]) == 2
        assert re.fullmatch(r"error: \S+ must be a report of format 1, found [^\n]*\n", capsys.readouterr().err)
        assert (folder / "speed.json").read_text() == content


def test_a_folder_that_cannot_be_made_is_refused_before_measuring(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert speed.main(["--quick", "--parts", "floor", "--out", str(tmp_path / "file")]) == 2
    seen = capsys.readouterr()
    assert re.fullmatch(r"error: --out must be a folder that can be written, found [^\n]*\n", seen.err)
    assert seen.out == ""


def test_a_broken_method_is_named_and_the_rest_measured(tmp_path, monkeypatch, capsys):
    get = registry.methods.get
    monkeypatch.setattr(registry.methods, "get", lambda name: Broken if name == "ogm" else get(name))
    monkeypatch.setattr(Broken, "name", "ogm")
    call = ["--quick", "--parts", "methods", "--methods", "ogm,uniform", "--name", "mine", "--out", str(tmp_path)]
    assert speed.main(call) == 1
    sentence = "digit fp32: ogm: RunFailed: the loss must stay finite, found nan"
    assert f"failed: {sentence}\n" in capsys.readouterr().err
    part = json.loads((tmp_path / "speed" / "mine" / "speed.json").read_text())["parts"]["methods"]
    assert part["failed"] == [sentence]
    assert [row["method"] for row in part["tables"][1]["rows"]] == [BARE, "joint", "uniform"]
    assert f"- failed: {sentence}" in (tmp_path / "speed" / "mine" / "speed.md").read_text()


# -- what slowness shows as --------------------------------------------------------------------------------------------


def test_a_step_made_twice_costs_twice():
    row = rows(SHORT, Twice)["twice"]
    assert 1.5 < row["time"]["median"] < 2.6
    assert row["passes"] == 2
    assert row["time"]["q1"] <= row["time"]["median"] <= row["time"]["q3"]


def test_sleep_in_steps_costs_time():
    row = rows(TINY, Drowsy)["drowsy"]
    assert row["ms_per_step"]["median"] >= 1e3 * NAP
    assert row["time"]["median"] > 2
    assert row["step"]["median"] > 2


def test_work_between_epochs_counts_in_the_whole_and_not_in_the_step():
    found = rows(TINY, Epochal)
    assert found["joint"]["time"] == {"median": 1, "q1": 1, "q3": 1, "n": 3}
    row = found["epochal"]
    assert row["time"]["median"] > 3
    assert row["step"]["median"] < 0.5 * row["time"]["median"]
    assert row["between"]["median"] > 0.5


def test_phases_add_up():
    (job,) = TINY.jobs({"drowsy_alone": DrowsyAlone}, "fp32").values()
    lap = speed_runs.train(job, CPU)
    assert lap.steps == 20
    assert lap.passes == 2 * 80 * 3  # 80 samples through each of 2 encoders, forward + 2 x backward
    assert 20 * NAP < lap.wall < 40 * NAP


def test_evaluation_is_left_out(monkeypatch):
    import balancebench_udi.trainer as module

    evaluate = module.evaluate
    monkeypatch.setattr(module, "evaluate", lambda *a, **k: (time.sleep(10 * NAP), evaluate(*a, **k))[1])
    (job,) = TINY.jobs({"joint": Joint}, "fp32").values()
    speed_runs.train(job, CPU)
    assert speed_runs.train(job, CPU).wall < 10 * NAP


def test_a_slow_transform_shows_as_waiting(monkeypatch):
    before = rows(TINY)["joint"]
    call = Affine.__call__

    def slow(*arguments):
        time.sleep(NAP)
        return call(*arguments)

    monkeypatch.setattr(Affine, "__call__", slow)
    after = rows(TINY)["joint"]
    assert before["waiting"]["median"] < 0.5
    assert after["waiting"]["median"] > 0.75
    assert after["ms_per_step"]["median"] > 2 * 1e3 * NAP  # two modalities


@pytest.mark.parametrize("plant", ["step", "transform"])
def test_overhead_shows_against_the_bare_loop(monkeypatch, plant):
    def share():
        setting = speed_parts.Setting(CPU, {"joint": Joint}, ["fp32"], [replace(TINY, name="digit")])
        ((row,), *_) = (table.rows for table in speed_parts.methods(setting))
        return row

    plain = share()
    assert 0.3 < plain["share"]["median"] < 1.2
    owner, name = (Joint, "step") if plant == "step" else (Affine, "__call__")
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *a: (time.sleep(NAP), original(*a))[1], raising=False)
    slow = share()
    assert slow["share"]["median"] < 0.5 * plain["share"]["median"]
    assert slow["verdict"] == "under"
    assert slow["joint"]["median"] < TINY.batch / NAP < slow["bare loop"]["median"]


@pytest.mark.parametrize(("device", "said"), [("cuda", "under"), ("cpu", "ok")])
def test_on_a_gpu_joint_is_held_against_the_loop_that_replays(monkeypatch, device, said):
    """At 0.94 of it; at 1.6 of the loop that does not."""
    seconds = {BARE: 1.6, REPLAYED: 0.94, "joint": 1.0} if device == "cuda" else {BARE: 1.6, "joint": 1.0}
    laps = {name: [Lap(w, 10, w, w, passes=1)] * 3 for name, w in seconds.items()}
    monkeypatch.setattr(speed_parts, "compete", lambda *arguments: (laps, {}))
    setting = speed_parts.Setting(torch.device(device), {"joint": Joint}, ["fp32"], [replace(TINY, name="digit")])
    (row,) = speed_parts.methods(setting)[0].rows
    assert row["share"]["median"] == pytest.approx(1.6)
    assert row["verdict"] == said
    assert (row["replayed"] or {}).get("median") == (pytest.approx(0.94) if device == "cuda" else None)


def test_the_bare_loop_trains_the_same_networks():
    (job,) = TINY.jobs({"joint": Joint}, "fp32").values()
    bare = speed_runs.Bare(job, CPU)
    trainer = speed_runs.Trainer(job.spec, job.bundle, job.method, job.options, CPU)
    for mine, theirs in zip(bare.model.parameters(), trainer.strategy.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert {k: v for k, v in bare.optimizer.defaults.items() if k != "lr"} == {
        k: v for k, v in trainer.task.make_optimizer(bare.model.parameters()).defaults.items() if k != "lr"
    }
    before = [p.clone() for p in bare.model.parameters()]
    bare.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, bare.model.parameters(), strict=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_bare_loop_keeps_the_precision(precision):
    (job,) = SHORT.jobs({"joint": Joint}, precision).values()
    bare = speed_runs.Bare(job, CPU)
    seen = []
    bare.model.encoders["m0"].register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    bare.step()
    assert seen == [{"fp32": torch.float32, "bf16": torch.bfloat16}[precision]]
    assert bare.inputs["m1"].is_contiguous(memory_format=torch.channels_last)


def test_one_stalled_round_does_not_move_the_ratio():
    laps = [Lap(w, 1, w, w) for w in (1.0, 1.0, 9.0, 1.0, 1.0)]
    slowed = [Lap(2 * w, 1, w, w) for w in (1.0, 1.0, 9.0, 1.0, 9.0)]
    ratio = speed_runs.paired(slowed, laps, lambda lap: lap.wall)
    assert ratio == {"median": 2, "q1": 2, "q3": 2, "n": 5}


def test_rounds_take_turns():
    calls = []

    def run(name):
        calls.append(name)
        if name == "c":
            raise ValueError("no\nluck")
        return Lap(1.0, 1, 1.0, 1.0)

    names = ("a", "b", "c", "d")
    failed: list[str] = []
    runs = {name: lambda name=name: run(name) for name in names}
    laps = speed_runs.interleave({"a": runs["a"]}, runs, 3, "label", failed)
    assert calls == ["a", *"abcd", *"bda", *"dab"]
    assert {name: len(found) for name, found in laps.items()} == {"a": 3, "b": 3, "d": 3}
    assert failed == ["label: c: ValueError: no luck"]


def test_no_round_begins_that_would_end_too_late():
    def run():
        time.sleep(NAP)
        return Lap(1.0, 1, 1.0, 1.0)

    runs = {"a": run, "b": run}
    for seconds, rounds in ((0, 1), (7 * NAP, 3), (1000 * NAP, 5)):
        laps = speed_runs.interleave({}, runs, 5, "label", [], until=time.monotonic() + seconds)
        assert {len(found) for found in laps.values()} == {rounds}


def test_no_part_begins_too_late(monkeypatch, tmp_path, capsys):
    def late(setting):
        assert setting.until - time.monotonic() == pytest.approx(300, abs=5)
        setting.until = 0
        return []

    monkeypatch.setitem(speed_parts.PARTS, "floor", late)
    assert speed.main(["--quick", "--parts", "floor,jobs,peer", "--minutes", "5", "--out", str(tmp_path)]) == 0
    assert "left out after 5 min: jobs, peer" in capsys.readouterr().err
    (report,) = tmp_path.glob("speed/*/speed.json")
    assert list(json.loads(report.read_text())["parts"]) == ["floor"]


# -- a machine whose speed drifts --------------------------------------------------------------------------------------


def test_a_clock_divides_steps_by_the_beats_around_them():
    naps = iter([0, 1, 2, 4, 8, 8])
    clock = speed_runs.Clock(lambda: time.sleep(NAP * next(naps)))  # the first loads kernels, the second is the measure
    assert clock.tick(3 * NAP) == pytest.approx(2 * NAP, rel=0.2)
    clock.tick(6 * NAP)
    found = clock.stretch(9 * NAP + 7.0)
    assert found.steps == pytest.approx([2, 2], rel=0.2)
    assert found.rest == pytest.approx(7 / ((1 + 2 + 4) / 3), rel=0.2)
    assert clock.stretch(7.0).rest == pytest.approx(7 / 4, rel=0.2)
    clock.tick(NAP)
    clock.tick(24 * NAP)
    assert clock.stretch(25 * NAP).steps == pytest.approx([1 / 6, 3], rel=0.2)


def test_steps_of_a_phase_are_like_the_median_one():
    clock = speed_runs.Clock()
    clock.first = 2.0
    epochs = [speed_runs.Stretch([1, 1, 9], 5), speed_runs.Stretch([1, 7], 1)]
    assert clock.evened(epochs) == [3 * 2 * 1 + 5, 2 * 2 * 1 + 1]
    assert clock.tick(3.0) == 0
    assert clock.evened([clock.stretch(6.0)]) == [6 * 2]


def test_epochs_after_the_first_are_prolonged():
    assert speed_runs.prolonged([5.0, 1.0, 3.0]) == 5 + 99 * 2
    assert speed_runs.prolonged([4.0]) == 400


def test_a_machine_that_slows_down_leaves_the_ratio_alone(monkeypatch):
    """Every step takes longer the later it comes; the second competitor is no slower than the first."""
    begun = time.monotonic()
    step = Joint.step, speed_runs.Bare.step

    def slower(original):
        return lambda *a: (time.sleep(NAP * (1 + (time.monotonic() - begun) / 2)), original(*a))[1]

    class Same(Joint):
        name = "same"

    monkeypatch.setattr(Joint, "step", slower(step[0]), raising=False)
    monkeypatch.setattr(speed_runs.Bare, "step", slower(step[1]))
    laps, _ = speed_runs.compete(replace(TINY, rounds=1), {"joint": Joint, "same": Same}, "fp32", CPU, [])
    ratio = {of: getattr(laps["same"][0], of) / getattr(laps["joint"][0], of) for of in ("wall", "even", "long")}
    assert ratio["wall"] > 1.15
    assert ratio["even"] == pytest.approx(1, abs=0.08)
    assert ratio["long"] == pytest.approx(1, abs=0.1)


def test_work_once_a_phase_hardly_counts_in_a_long_run():
    class Prepares(Joint):
        name = "prepares"

        def begin_phase(self):
            time.sleep(5 * NAP)

    class Closes(Joint):
        name = "closes"

        def end_phase(self):
            time.sleep(5 * NAP)

    found = rows(TINY, Prepares, Closes, Epochal)
    for name in ("prepares", "closes"):
        assert found[name]["time"]["median"] > 2
        assert found[name]["long"]["q1"] < found[name]["time"]["median"] / 2
    assert found["epochal"]["long"]["median"] > 2


def test_a_users_mistake_ends_the_rounds():
    def refuse():
        raise UserError("a sentence")

    with pytest.raises(UserError, match="a sentence"):
        speed_runs.interleave({}, {"a": refuse}, 1, "label", [])


@pytest.mark.parametrize(
    ("value", "limit", "least", "said"),
    [(1.1, 1.1, False, "ok"), (1.11, 1.1, False, "over"), (0.9, 0.9, True, "ok"), (0.89, 0.9, True, "under")],
)
def test_verdicts(value, limit, least, said):
    assert speed_parts.verdict(value, limit, least) == said
    assert speed_parts.verdict(value, None, least) is None


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (None, "ratio", "-"),
        (1.23456, "ratio", "1.235"),
        (0.1234, "percent", "12.3"),
        (5.5e9, "MB", "5500"),
        (1234.5, "number", "1234"),
        (0.012345, "number", "0.0123"),
        (12, "number", "12"),
        (0.0, "number", "0"),
        ({"median": 1.0, "q1": 0.5, "q3": 2.0, "n": 3}, "ratio", "1.000 (0.500 to 2.000)"),
        ({"median": 0.5, "q1": 0.4, "q3": 0.6, "n": 3}, "percent", "50.0"),
    ],
)
def test_cells(value, kind, text):
    assert speed_parts._cell(value, kind) == text


# -- memory, other processes, floor ------------------------------------------------------------------------------------


def test_own_and_mapped_memory_are_told_apart(tmp_path):
    with Peak() as nothing:
        time.sleep(0.01)
    with Peak() as own:
        kept = torch.ones(50_000_000)  # 200 MB, gone before the end
        time.sleep(0.2)
        del kept
    assert 180e6 < own.values["own"] - nothing.values["own"] < 260e6
    case = Case("mapped", digits(), batch=64, steps=300, epochs=1, rounds=1, folder=str(tmp_path))
    case.bundle()
    gc.collect()
    with Peak() as nothing:
        time.sleep(0.01)
    with Peak() as mapped:
        case.bundle().train.inputs["m1"].max()
        time.sleep(0.2)
    assert 30e6 < mapped.values["mapped"] - nothing.values["mapped"] < 90e6  # 45 MB
    assert mapped.values["own"] - nothing.values["own"] < 30e6


def test_mapped_data_are_written_once_and_stay_the_same(tmp_path):
    case = Case("mapped", digits(), batch=64, steps=20, epochs=1, rounds=1, folder=str(tmp_path))
    first = {m: x.clone() for m, x in case.bundle().train.inputs.items()}
    written = {p.name: (p.stat().st_mtime_ns, p.stat().st_size) for p in tmp_path.iterdir()}
    assert sum(size for _, size in written.values()) == case.stored_bytes
    again = case.bundle().train.inputs
    assert all(torch.equal(first[m], again[m]) for m in first)
    assert len(first["m0"].unique()) == 255  # 0 marks a frame that is not there
    assert not torch.equal(first["m0"][:128], first["m0"][1024:1152])  # from one chunk to the next
    assert written == {p.name: (p.stat().st_mtime_ns, p.stat().st_size) for p in tmp_path.iterdir()}


def test_memory_does_not_grow_with_mapped_data(tmp_path):
    cases = {
        n: Case(f"n{n}", digits(2, "mlp"), batch=64, steps=n, epochs=1, rounds=1, folder=str(tmp_path))
        for n in (160, 640)  # more than the probes take in either
    }
    failed: list[str] = []
    calls = {n: (case, "joint", "fp32", "cpu", 1) for n, case in cases.items()}
    kept = torch.ones(400_000_000)  # 1.6 GB in this process
    peaks = speed_parts._peaks(calls, "test", failed)
    del kept
    assert failed == []
    assert max(peak["own"] for peak in peaks.values()) < 1.4e9
    assert cases[640].stored_bytes > 100e6
    assert abs(peaks[640]["own"] - peaks[160]["own"]) < 30e6
    assert peaks[640]["mapped"] - peaks[160]["mapped"] > 80e6  # all of it was read


def test_a_call_in_another_process_that_breaks_is_named():
    failed: list[str] = []
    assert speed_parts._peaks({"x": (TINY, "nobody", "fp32", "cpu", 1)}, "memory", failed) == {}
    assert failed == ["memory: x: UserError: " + failed[0].split("UserError: ")[1]]
    assert "nobody" in failed[0]


def test_trainings_at_once_begin_together():
    with speed_runs.fresh_processes(2, speed_runs.barriers([1, 2])) as pool:
        call = (SHORT, "fp32", "cpu", 1)
        alone = pool.submit(speed_runs.train_together, *call, 1).result()
        both = [f.result() for f in [pool.submit(speed_runs.train_together, *call, 2) for _ in range(2)]]
    assert alone[2] == both[0][2] == both[1][2] == 80
    assert alone[1] <= min(start for start, _, _ in both)
    assert abs(both[0][0] - both[1][0]) < 0.5  # the second process takes seconds to start


def test_a_watched_command_has_its_own_peak_and_its_own_complaint():
    kept = torch.ones(400_000_000)  # 1.6 GB in this process
    listed = speed_parts.run_watched(["--list"], threads=1)
    del kept
    assert listed["code"] == 0
    assert 100e6 < listed["memory"] < 1.4e9
    assert 0.1 < listed["cpu_seconds"] <= 4 * listed["seconds"]
    wrong = speed_parts.run_watched(["--methods", "omg"], threads=1)
    assert wrong["code"] == 2
    assert "no method called 'omg'" in wrong["said"]


def test_the_peer_is_judged_on_its_own_workload_only(monkeypatch):
    asked = []

    def watched(words, threads):
        asked.append((" ".join(words), threads))
        return {"code": 0, "said": "", "seconds": 100.0, "cpu_seconds": 190.0, "memory": int(2e9)}

    monkeypatch.setattr(speed_parts, "run_watched", watched)
    monkeypatch.setattr(speed_parts, "pack_of_clips", lambda *given: packed.append(given[1:]))
    packed = []
    paces = iter([7.2, 7.2, 7.2, 7.2, 14.4, 7.2, 3.6])  # before and after two rounds of two runs, and two more
    monkeypatch.setattr(speed_parts, "their_pace", lambda *size, steps: next(paces) if steps else 7.2)
    cases = ((2, False, ["ok", "over", "ok", "over"]), (1, False, [None] * 4), (2, True, [None] * 2))
    short = replace(SHORT, rounds=2)
    for threads, quick, said in cases:
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        setting = speed_parts.Setting(CPU, {"joint": Joint}, ["fp32", "bf16"], [short], quick)
        (table,) = speed_parts.peer(setting)
        assert [row["time_verdict"] for row in table.rows] == said
        at_this_pace = [(243.0, 243.0), (243.0, 364.5), (364.5,) * 2, (182.25,) * 2]
        for row, expected in zip(table.rows, at_this_pace if said[0] else [(243.0,) * 2] * len(said), strict=True):
            assert (row["their_seconds"]["q1"], row["their_seconds"]["q3"]) == pytest.approx(expected)
            assert row["their_seconds"]["n"] == (2 if row["way"] == "as it is" and not quick else 1)
        assert [row["memory_ratio_verdict"] for row in table.rows] == ["ok" if one else None for one in said]
        ways = ["as it is", "as it is", "--no-spare-memory", "--spare-memory"]
        assert [row["way"] for row in table.rows] == (["as it is"] * 2 if quick else ways)
    said = [[w for w in words.split() if w.endswith("spare-memory")] for words, _ in asked[:6]]
    assert said == [[], [], [], [], ["--no-spare-memory"], ["--spare-memory"]]
    words, threads = asked[1]
    assert threads == 2
    for part in ("--precision bf16", "--epochs 2", "--batch-size 32", "--dataset manifest"):
        assert part in words
    assert packed[0] == ({"train": 256, "val": 8, "test": 64}, 2)


def test_a_step_of_the_peer_is_timed_after_another_one():
    assert speed_parts.their_pace(4, 2, steps=0) == speed_parts.PEER_STEP
    started = time.perf_counter()
    step = speed_parts.their_pace(2, 1, steps=1)
    assert 0 < step < time.perf_counter() - started


def test_least_work_has_a_closed_form():
    (job,) = TINY.jobs({"joint": Joint}, "fp32").values()
    flops, moved = speed_parts.least_work(speed_runs.Bare(job, CPU))
    batch, first, second, head = 8, 48 * 128, 128 * 128, 256 * 10
    products = 2 * (2 * first + 3 * second) + 3 * head  # the inputs need no gradient
    assert flops == 2 * batch * products
    parameters = 2 * (first + 128 + second + 128) + head + 10
    assert moved == 4 * (6 * parameters + batch * 2 * 48)  # weights, gradients, momentum: each twice


def test_rates_count_operations_and_both_ways_of_a_copy(monkeypatch):
    monkeypatch.setattr(speed_parts, "_shortest", lambda work, device: 0.5)
    assert speed_parts.matrix_rate(16, "bf16", CPU) == 2 * 16**3 / 0.5
    assert speed_parts.copy_rate(100, CPU) == 2 * 400 / 0.5


def test_cases_suit_the_device_and_obey_the_command_line():
    av = speed_runs.make_case("av", CPU, frames=3, steps=2)
    assert av.inputs["audio"].shape == (1, 257, 188)
    assert av.inputs["visual"].shape == (3, 3, 224, 224)
    assert (av.batch, av.steps, av.samples) == (16, 2, 32)
    assert speed_runs.make_case("av", torch.device("cuda")).samples == 6016  # about CREMA-D's training clips
    quick = speed_runs.make_case("digit", CPU, quick=True, epochs=3)
    assert (quick.batch, quick.steps, quick.epochs, quick.rounds) == (8, 2, 3, 1)


def test_the_av_networks_train():
    case = Case("av", speed_runs.make_case("av", CPU).inputs, batch=2, steps=1, epochs=1, rounds=1, classes=6)
    (job,) = case.jobs({"joint": Joint}, "bf16").values()
    assert job.bundle.train.inputs["audio"].dtype == torch.float16
    lap = speed_runs.train(job, CPU, watch=True)
    assert (lap.steps, lap.passes) == (1, 2 * 2 * 3)
    assert 0 < lap.waiting < lap.wall
    assert 0 < lap.stepping < lap.wall


# torch.compile, preparation, a whole table


def test_a_slower_compiled_encoder_shows(monkeypatch):
    def slowed(module):
        module.register_forward_pre_hook(lambda *_: time.sleep(NAP))
        return module

    monkeypatch.setattr(torch, "compile", slowed)
    setting = speed_parts.Setting(CPU, {"joint": Joint}, ["fp32"], [replace(TINY, name="digit")], quick=True)
    (table,) = speed_parts.compiled(setting)
    assert [row["case"] for row in table.rows] == ["digit, m0", "digit, m1"]
    for row in table.rows:
        assert row["compiled"]["median"] > 1e3 * NAP > row["eager"]["median"]
        assert row["ratio"]["median"] == pytest.approx(row["compiled"]["median"] / row["eager"]["median"])


def test_what_cannot_be_compiled_is_said(monkeypatch):
    def broken(module):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    setting = speed_parts.Setting(CPU, {"joint": Joint}, ["fp32"], [replace(TINY, name="digit")], quick=True)
    assert speed_parts.compiled(setting) == []
    assert setting.failed == ["compile digit m0: RuntimeError: no compiler"]


def test_preparing_is_timed_on_real_files(tmp_path, monkeypatch):
    for i in range(3):
        write_video(tmp_path / "clips" / f"{i}.mp4", seconds=1)
    setting = speed_parts.Setting(CPU, {}, [], [], quick=True, clips=tmp_path / "clips")
    torch.set_num_threads(2)
    try:
        (table,) = speed_parts.preparing(setting)
        assert ([row["workers"] for row in table.rows], torch.get_num_threads()) == ([1, 2], 2)
        assert table.rows[1]["verdict"] == "ok"
    finally:
        torch.set_num_threads(1)
    ((row,), *_) = (table.rows for table in speed_parts.preparing(setting))
    assert row["minutes"] == pytest.approx(7442 / row["pace"] / 60)
    decode = speed_parts._Repeated.decode
    monkeypatch.setattr(speed_parts._Repeated, "decode", lambda *a: (time.sleep(0.2), decode(*a))[1])
    ((slow,), *_) = (table.rows for table in speed_parts.preparing(setting))
    assert slow["minutes"] > max(row["minutes"], 7442 * 0.2 / 60)


def test_preparing_needs_clips(tmp_path, capsys):
    for clips in (["--clips", str(tmp_path)], []):
        assert speed.main(["--quick", "--parts", "floor,preparing", *clips, "--out", str(tmp_path)]) == 2
        assert "needs --clips FOLDER with video files, found none in" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())  # before anything is measured


def test_the_time_of_a_whole_table():
    long = (("joint", 1800.0), ("udi", 3600.0))
    laps = {name: [Lap(wall=1, steps=10, even=1, long=seconds)] for name, seconds in long}
    rows = speed_parts._whole_table(laps, TINY, "fp32").rows
    times = 3 * 6028 / TINY.samples  # seeds, and epochs of that length
    assert [(row["method"], row["hours"]["median"]) for row in rows] == [
        ("joint", pytest.approx(times * 0.5)),
        ("udi", pytest.approx(times)),
        ("all", pytest.approx(times * 1.5)),
    ]


def test_frames_are_stored_and_augmented_as_packs_are():
    x = speed_runs.make_case("av", CPU, frames=2).inputs["visual"]
    assert x.stored_shape == (3, 256, 256, 3)
    assert x.transform.draws > 0
    assert x.transform(speed_runs._draw(x, 2), torch.rand(2, x.transform.draws)).shape == (2, 3, 2, 224, 224)
