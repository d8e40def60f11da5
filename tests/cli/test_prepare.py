"""Preparing data as a user does it: lists, checksums, a kill, a Ctrl-C, mistakes, and training on what was made."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from calls import ROOT, Called, content, finish, records, spawn

import registry
from balancebench_udi.data.clips import Clips
from balancebench_udi.data.cremad import CLASSES, CREMAD, CREMADOptions
from balancebench_udi.data.pack import JOURNAL, Packed
from balancebench_udi.data.pack.format import VERIFIED
from balancebench_udi.protocol import load_protocol
from benchmarks import prepare as module
from benchmarks.run import PROTOCOLS
from tests.media import cut, write_video

PREPARE = ROOT / "benchmarks" / "prepare.py"
PRESETS = sorted(path.stem for path in PROTOCOLS.glob("*.yaml"))
OWN = ("--set", "cremad.split=own")
SMALL = (*OWN, "--set", "cremad.candidates=1", "--set", "cremad.stored_size=224")


@pytest.fixture
def prepare(cli, capsys):
    """``prepare("cremad", "--source", ...)`` in this process, from an empty working directory."""
    threads = torch.get_num_threads()

    def call(*arguments: object) -> Called:
        capsys.readouterr()
        code = module.main([str(a) for a in arguments])
        seen = capsys.readouterr()
        return Called(code, seen.out, seen.err)

    yield call
    torch.set_num_threads(threads)


def sentence(called):
    """The complaint, after checking that it is one line and nothing else."""
    assert called.code == 2, called
    assert called.err.startswith("error: "), called.err
    assert called.err.count("\n") == 1, called.err
    assert "Traceback" not in called.err + called.out
    return called.err.removeprefix("error: ").strip()


def lists(folder, **parts):
    """Lists of one's own below a source: part -> clips."""
    (folder / "lists").mkdir(parents=True, exist_ok=True)
    for part, names in parts.items():
        (folder / "lists" / f"{part}.csv").write_text("".join(f"{n},{n.split('_')[2]}\n" for n in names))
    return folder


@pytest.fixture
def sample(data_root):
    if not (data_root / "crema_d_sample" / "VideoFlash").is_dir():
        pytest.skip(f"{data_root / 'crema_d_sample'} is absent")
    return data_root / "crema_d_sample"


@pytest.fixture
def six(sample, tmp_path):
    """A source of the six real clips, with lists of its own."""
    names = [f"1001_DFA_{c}_XX" for c in CLASSES]
    source = lists(tmp_path / "source", train=names[:4], val=names[4:5], test=names[5:])
    (source / "VideoFlash").symlink_to(sample / "VideoFlash")
    return source


@pytest.fixture(scope="session")
def forty(tmp_path_factory):
    """A source of forty small videos, no two alike."""
    source = tmp_path_factory.mktemp("forty")
    names = [f"{1001 + i}_DFA_{CLASSES[i % 4]}_XX" for i in range(40)]
    for i, name in enumerate(names):
        write_video(source / "VideoFlash" / f"{name}.flv", 0.4, 10, (32, 24), start=40 + i)
    return lists(source, train=names[:28], test=names[28:])


def files(folder):
    """Every byte below a folder, but for the times and inodes of arrays."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != VERIFIED)
    return {path.relative_to(folder): path.read_bytes() for path in found}


# from the source to the table


def test_what_run_asks_for_is_what_prepare_does(cli, prepare, six, sample, tmp_path, monkeypatch):
    root, out = tmp_path / "data", tmp_path / "out"
    root.mkdir()
    wanted = ("--methods", "joint", "--dataset", "cremad", "--protocol", "mla", "--epochs", "1", "--seeds", "0", *OWN)
    wanted += ("--set", "cremad.fps=2", "--set", "cremad.n_frames=2", "--device", "cpu")
    wanted += ("--set", "encoder.audio.name=mlp", "--set", "encoder.audio.width=8")
    wanted += ("--set", "encoder.video.name=mlp", "--set", "encoder.video.width=8")
    said = sentence(cli(*wanted, "--data-root", root, "--out", out))
    assert f"found no pack in {root}/packed/cremad/" in said
    assert not out.exists()
    (command,) = re.findall(r": call (python benchmarks/prepare\.py .*)$", said)
    python, script, *words = shlex.split(command)
    assert python == "python"
    assert words.count("DIR") == 1
    assert "cremad.split=own" in words
    done = finish(spawn(*(six if w == "DIR" else w for w in words), cwd=tmp_path, script=ROOT / script))
    assert done.code == 0, done
    assert re.search(
        r"^cremad: 6 samples of 6 classes, \d+\.\d MB\n  0 left out, 0 kept with a remark$", done.out, re.M
    )
    assert "\n  split own: train 4, val 1, test 1\n  decoded 6 in " in done.out
    (pack,) = root.glob("packed/cremad/*")
    assert done.out.endswith(f"  in {pack}\n")

    called = finish(spawn(*wanted, "--data-root", root, "--out", "out", cwd=tmp_path))
    assert called.code == 0, called
    assert "cremad (train 4, val 1, test 1; audio, video) under mla+ v1" in called.out
    (record,) = records(out).values()
    assert record["spec"]["dataset_options"]["audio"] == "fbank_raw"
    assert record["spec"]["dataset_options"]["fps"] == 2

    before = content(root)
    monkeypatch.setenv("BALANCEBENCH_DATA", str(root))
    again = prepare("cremad", "--source", six, "--protocol", "mla", "--set", "cremad.fps=2", *OWN)
    assert again.code == 0
    assert "  already prepared in 0 s; fingerprint " in again.out
    assert content(root) == before
    assert "newer than this pack" not in again.out
    (six / "VideoFlash").unlink()
    shutil.copytree(sample / "VideoFlash", six / "VideoFlash")
    told = prepare("cremad", "--source", six, "--protocol", "mla", "--set", "cremad.fps=2", *OWN).out
    assert told.endswith(
        "  6 files of the source are newer than this pack; if any was replaced, remove that folder and prepare again\n"
    )
    other = prepare("cremad", "--source", six, *SMALL)
    assert "  decoded 6 in " in other.out
    assert len(list(root.glob("packed/cremad/*"))) == 2
    assert {k: v for k, v in content(root).items() if k in before} == before


def test_a_source_that_cannot_serve_the_split_is_refused_before_it_is_decoded(prepare, forty, tmp_path):
    """What run.py would refuse when all is decoded."""
    arguments = ("cremad", "--source", forty, "--data-root", tmp_path / "data")
    lists = {
        "OGM-GE": "OGM-GE's train.csv and test.csv (github.com/GeWu-Lab/OGM-GE_CVPR2022, data/CREMAD) in split_OGM-GE/",
        "relearning": "the my_train.csv, val.csv and test.csv of Diagnosing & Re-learning "
        "(github.com/GeWu-Lab/Diagnosing_Relearning_ECCV2024, code/dataset/cremad) in split_relearning/",
    }
    for protocol, split in (("ogm", "OGM-GE"), ("relearning", "relearning"), ("relearning_baseline", "OGM-GE")):
        assert sentence(prepare(*arguments, "--protocol", protocol)) == (
            f"split={split} needs samples that its lists name, found none in {forty}; add {lists[split]}, or choose "
            "--set cremad.split=speaker or own"
        )
    assert not (tmp_path / "data").exists()


def test_a_protocol_that_sets_nothing_for_the_dataset(prepare, six, tmp_path):
    said = "protocol bml sets nothing for cremad, whose own defaults hold\n"
    arguments = ("cremad", "--source", six, *SMALL, "--data-root", tmp_path / "data")
    assert prepare(*arguments, "--protocol", "bml").out.startswith(f"{said}cremad: 6 samples of 6 classes, ")
    for protocol in ((), ("--protocol", "ogm")):
        assert "sets nothing" not in prepare(*arguments, *protocol).out
    assert prepare("digits", "--protocol", "bml").out.startswith(
        "protocol bml sets nothing for digits, whose own defau"
    )


def test_data_that_needs_no_preparation(prepare):
    called = prepare("digits")
    assert called.code == 0
    assert re.match(r"digits is whole: train 1078, val 269, test 450; fingerprint [0-9a-f]{12}\n", called.out)
    assert not list(Path.cwd().iterdir())


# the list, and what presets ask for


def test_the_list_names_every_dataset_and_what_presets_change(prepare):
    called = prepare("--list")
    assert called.code == 0
    assert "could not be loaded" not in called.out
    entries = dict(re.findall(r"^(\w+): (.*(?:\n    .*)*)", called.out, re.M))
    assert list(entries) == registry.datasets.names()
    protocols = [load_protocol(name, PROTOCOLS, {}) for name in PRESETS]
    for name, entry in entries.items():
        cls = registry.datasets.get(name)
        if not issubclass(cls, Packed):
            assert entry.startswith("needs no preparation")
            assert "\n" not in entry
            continue
        assert entry.startswith(f"--source DIR with {cls.source}\n")
        found = dict(re.findall(r"^    (\w+) = .* \((prepared|free)\): ", entry, re.M))
        assert found == {
            option: "prepared" if option in cls.prepared else "free" for option, *_ in cls.Options.describe()
        }
        assert set(cls.prepared) <= set(found)
        changes = {p.name: p.datasets[name] for p in protocols if name in p.datasets}
        assert re.findall(r"^    --protocol (\w+):", entry, re.M) == list(changes)
        for protocol, settings in changes.items():
            (line,) = re.findall(rf"^    --protocol {protocol}: (.*)$", entry, re.M)
            assert line == ", ".join(f"{k}={v}" for k, v in settings.items())
    assert (
        "    --protocol mla: audio=fbank_raw, fps=1, sampling=as_published, candidates=10, n_frames=3, pick=start"
        in entries["cremad"]
    )


def test_the_list_of_one_dataset(prepare):
    whole, one = prepare("--list").out, prepare("cremad", "--list")
    assert one.code == 0
    assert re.findall(r"^(\w+): ", one.out, re.M) == ["cremad"]
    assert one.out in whole
    assert sentence(prepare("cremadd", "--list")).startswith(
        "there is no dataset called 'cremadd'; did you mean 'cremad"
    )
    assert "there is no dataset called 'nope'; known: " in sentence(prepare("nope", "--list"))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_can_be_planned(cli, preset, tmp_path):
    """Its options are those of its datasets and methods, and clips have the shapes that their networks expect."""
    protocol = load_protocol(preset, PROTOCOLS, {})
    for name, given in protocol.datasets.items():
        cls = registry.datasets.get(name)
        dataset = cls(cls.Options.build(name, given))
        if isinstance(dataset, Clips):
            assert dataset.options.n_frames <= dataset.options.candidates
            for m, modality in dataset.modalities(None).items():
                stored = dataset.stored()[m]
                values = torch.zeros(1, *stored.shape, dtype=getattr(torch, stored.dtype))
                assert modality.transform(values).shape == (1, *modality.shape)
    assert set(protocol.methods) <= set(registry.methods.names())
    here = ("--out", tmp_path)  # where nothing was trained
    called = cli("--methods", "all", "--seeds", "0", "--device", "cpu", "--protocol", preset, "--dry-run", *here)
    assert called.code == 0, called.err
    assert f"under {preset} v{protocol.version}: {protocol.run.epochs} epochs" in called.out
    assert f"for {len(registry.methods.names())} of {len(registry.methods.names())} runs" in called.out


# stopped and called again

SLOWLY = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from balancebench_udi.data.pack import builder
from balancebench_udi.data.cremad import CREMAD
from benchmarks.prepare import main

decode, builder._FLUSH_EVERY = CREMAD.decode, 0.0

def slowly(self, item):
    time.sleep(0.1)
    return decode(self, item)

CREMAD.decode = slowly
sys.exit(main(sys.argv[1:]))
"""
"""The command, slow and noting each sample at once."""


def noted(journal):
    """Samples in a journal; only its last line may be half written, and an interrupt may have written one twice."""
    lines = journal.read_text().splitlines(keepends=True)[1:] if journal.exists() else []
    return len({json.loads(line)["row"] for line in lines if line.endswith("\n")})


def test_killed_and_interrupted_it_ends_with_the_same_bytes(prepare, forty, tmp_path):
    script = tmp_path / "slowly.py"
    script.write_text(SLOWLY)
    arguments = ("cremad", "--source", forty, *SMALL, "--workers", "1", "--data-root")
    root = tmp_path / "data"
    options = CREMADOptions(candidates=1, stored_size=224)
    pack = CREMAD(options).folder(root)
    journal = pack.with_name(pack.name + ".partial") / JOURNAL
    done = 0
    for how, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        process = spawn(*arguments, root, cwd=tmp_path, script=script)
        deadline = time.monotonic() + 60
        try:
            while noted(journal) < done + 5:
                assert process.poll() is None, finish(process)
                assert time.monotonic() < deadline, "nothing was noted"
                time.sleep(0.01)
            if how == signal.SIGKILL:
                assert "must be built by one process, another is at it" in sentence(prepare(*arguments, root))
        finally:
            process.send_signal(how)
        called = finish(process)
        assert called.code == code, called
        assert "Traceback" not in called.err
        if how == signal.SIGINT:
            assert called.err.splitlines()[-1] == "interrupted; the same command goes on where it was"
        assert not pack.exists()
        assert done + 5 <= noted(journal) < 40  # no step back
        done = noted(journal)
    called = prepare(*arguments, root)
    assert called.code == 0
    assert f"  decoded {40 - done} ({done} were done before) in " in called.out
    assert prepare(*arguments, tmp_path / "peace").code == 0
    assert files(root) == files(tmp_path / "peace")
    assert len(files(root)) == 6


# problems


@pytest.fixture
def damaged(forty, tmp_path):
    """Twelve of the videos: one cut, one silent; one more only listed, one misnamed, one without class."""
    names = sorted(path.stem for path in (forty / "VideoFlash").iterdir())[:12]
    source = lists(tmp_path / "damaged", train=[*names[:8], "1050_DFA_ANG_XX"], test=names[8:])
    (source / "VideoFlash").mkdir()
    for name in names:
        shutil.copy(forty / "VideoFlash" / f"{name}.flv", source / "VideoFlash")
    cut(source / "VideoFlash" / f"{names[2]}.flv", 0.02)
    write_video(source / "VideoFlash" / f"{names[5]}.flv", 0.4, 10, (32, 24), silent=True)
    shutil.copy(source / "VideoFlash" / f"{names[0]}.flv", source / "VideoFlash" / "holiday.flv")
    return source, names


def test_problems_are_listed_and_the_rest_is_kept(prepare, damaged, tmp_path):
    source, names = damaged
    called = prepare("cremad", "--source", source, *SMALL, "--data-root", tmp_path / "data")
    assert called.code == 0
    (pack,) = (tmp_path / "data").glob("packed/cremad/*")
    problems = pd.read_csv(pack / "problems.csv")
    assert list(problems.columns) == ["id", "problem", "kept"]
    assert list(zip(problems["id"], problems["kept"], strict=True)) == [
        (names[2], False),
        (names[5], True),
        ("1050_DFA_ANG_XX", False),
        ("holiday", False),
    ]
    assert f"{source}/VideoFlash/{names[2]}.flv" in problems["problem"][0]
    assert problems["problem"][1] == "silent"
    assert problems["problem"][2] == "its sound must be in AudioWAV/, AudioMP3/ or VideoFlash/, it is missing"
    assert problems["problem"][3].startswith("its name must be like 1001_DFA_ANG_XX")
    lines = called.out.splitlines()
    assert [line.split(":")[0].strip() for line in lines[:3]] == [names[2], names[5], "1050_DFA_ANG_XX"]
    assert lines[1] == f"  {names[5]}: silent (kept)"
    assert lines[3] == f"  ... all in {pack}/problems.csv"
    assert lines[4].startswith("cremad: 11 samples of 6 classes, ")
    assert lines[5:7] == ["  3 left out, 1 kept with a remark", "  split own: train 7, test 4"]
    again = prepare("cremad", "--source", source, *SMALL, "--data-root", tmp_path / "data")
    assert again.out.splitlines()[:7] == lines[:7]
    said = sentence(prepare("cremad", "--source", source, *SMALL, "--data-root", tmp_path / "data", "--strict"))
    assert f"found 4 that are not, the first {names[2]}: " in said


def test_strict_leaves_no_pack_and_keeps_what_is_done(prepare, damaged, tmp_path):
    source, names = damaged
    arguments = ("cremad", "--source", source, *SMALL, "--data-root", tmp_path / "data")
    said = sentence(prepare(*arguments, "--strict"))
    (path,) = (tmp_path / "data").rglob("problems.csv")
    assert f"(--strict), found 4 that are not, the first {names[2]}: " in said
    assert said.endswith(f"all are listed in {path}")
    assert len(pd.read_csv(path)) == 4
    assert not list((tmp_path / "data").rglob("manifest.json"))
    later = prepare(*arguments)
    assert later.code == 0
    assert "  decoded 2 (10 were done before) in " in later.out  # the cut and the silent one may have been replaced
    assert not path.exists()


# checksums


@pytest.fixture
def three(tmp_path):
    """Three files, one with spaces in its name, and their sums."""
    source = tmp_path / "three"
    (source / "VideoFlash").mkdir(parents=True)
    names = ["VideoFlash/a.flv", "VideoFlash/12 angry men.flv", "notes.txt"]
    for i, name in enumerate(names):
        (source / name).write_bytes(bytes([i]) * 100)
    return source, {name: hashlib.sha256((source / name).read_bytes()).hexdigest() for name in names}


FORMATS = {
    "git lfs": lambda name, digest: f"{digest} * {name}",
    "git lfs, not there": lambda name, digest: f"{digest} - {name}",
    "with sizes": lambda name, digest: f"{digest} 100 {name}",
    "of ./": lambda name, digest: f"{digest}  ./{name}",
    "capitals": lambda name, digest: f"{digest.upper()}  {name}",
    "one space": lambda name, digest: f"{digest} {name}",
}


@pytest.mark.parametrize("how", ["sha256sum", "sha256sum -b", *FORMATS])
def test_sums_of_every_format(prepare, three, tmp_path, how):
    source, sums = three
    path = tmp_path / "sums"
    if how in FORMATS:
        # without two spaces before it, a name that starts with a number would be taken for a size
        known = {name: digest for name, digest in sums.items() if how in ("of ./", "capitals") or " " not in name}
        path.write_text("\n".join(FORMATS[how](*item) for item in known.items()) + "\r\n\n")
    else:
        known = sums
        if shutil.which("sha256sum") is None:
            pytest.skip("sha256sum is absent")
        done = subprocess.run([*how.split(), *sums], cwd=source, capture_output=True, text=True, check=True)
        path.write_text(done.stdout)
    called = prepare("cremad", "--source", source, "--verify", path)
    assert called == Called(0, f"{len(known)} of {len(known)} files are as listed, 0 are absent\n", "")
    (source / "notes.txt").write_text("changed")
    assert f"1 that differ, the first {source}/notes.txt; fetch" in sentence_after(
        prepare("cremad", "--source", source, "--verify", path), f"{len(known) - 1} of {len(known)} files are as listed"
    )
    (source / "notes.txt").unlink()
    called = prepare("cremad", "--source", source, "--verify", path)
    assert called == Called(0, f"{len(known) - 1} of {len(known)} files are as listed, 1 are absent\n", "")
    assert sentence_after(prepare("cremad", "--source", source, "--verify", path, "--strict"), called.out) == (
        f"every file of {path} must be there (--strict), found 1 absent, the first {source}/notes.txt; fetch them"
    )
    assert not list(Path.cwd().iterdir())


def sentence_after(called, out):
    """The complaint of a call that has printed ``out`` before."""
    assert called.out.startswith(out), called.out
    return sentence(called)


def test_the_official_sums(prepare, sample):
    called = prepare("cremad", "--source", sample, "--verify", sample / "official_lfs_manifest.sha256.gz")
    assert called == Called(0, "12 of 22326 files are as listed, 22314 are absent\n", "")


@pytest.mark.parametrize(
    ("mistake", "expected"),
    [
        (("--protocol", "omg"), "there is no protocol called 'omg'; did you mean 'ogm'"),
        (("--set", "cremad.fsp=2"), "cremad has no option 'fsp'; did you mean 'fps'"),
        (("--set", "ave.fps=2"), "'ave' takes no part in this call"),
    ],
)
def test_mistakes_are_found_though_sums_are_compared_only(prepare, three, tmp_path, mistake, expected):
    source, sums = three
    (tmp_path / "sums").write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    arguments = ("cremad", "--source", source, "--verify", tmp_path / "sums")
    assert prepare(*arguments, "--strict", "--protocol", "bml").out == "3 of 3 files are as listed, 0 are absent\n"
    assert expected in sentence(prepare(*arguments, *mistake))


def test_sums_that_are_none(prepare, three, tmp_path):
    source, sums = three
    (text,) = [f"{digest}  {name}\n" for name, digest in sums.items() if name == "notes.txt"]
    packed = gzip.compress(text.encode())
    wrong = {
        "absent": (None, "must be a readable list of SHA-256 sums, found: .*No such file"),
        "empty": (b"\n", "must list SHA-256 sums, it is empty"),
        "garbage": (b"\x00\xff\xfe\x80", "must be a readable list"),
        "prose": (b"all files are fine\n", "found 'all files are fine' in line 1"),
        "second": (f"\n{text}{'g' * 64}  x\n".encode(), f"found '{'g' * 64}  x' in line 3"),
        "alone": (f"{'a' * 64}\n".encode(), "must have lines 'SHA-256 sum, path'"),
        "other": (
            f"{'a' * 64}  other.txt\n".encode(),
            r"must hold files that .*, such as other\.txt, found none",
        ),
        "plain.gz": (text.encode(), "must be a readable list"),
        "cut.gz": (packed[:-9], "must be a readable list"),
        "flipped.gz": (packed[:12] + b"\xff\xff\xff" + packed[15:], "must be a readable list"),
    }
    for name, (given, expected) in wrong.items():
        if given is not None:
            (tmp_path / name).write_bytes(given)
        said = sentence(prepare("cremad", "--source", source, "--verify", tmp_path / name))
        assert re.search(expected, said), (name, said)
    (tmp_path / "whole.gz").write_bytes(packed)
    assert prepare("cremad", "--source", source, "--verify", tmp_path / "whole.gz").code == 0


def test_a_file_that_cannot_be_read(prepare, three, tmp_path, monkeypatch):
    source, sums = three
    (tmp_path / "sums").write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))

    def broken(path):
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(module, "_digest", broken)
    said = sentence(prepare("cremad", "--source", source, "--verify", tmp_path / "sums"))
    assert said == f"{source}/VideoFlash/a.flv must be readable, found: Input/output error"


# mistakes

WRONG = {
    "nothing": ((), r"needs the name of a dataset, found none; see --list"),
    "dataset": (("cremadd", "--source", "."), r"no dataset called 'cremadd'; did you mean 'cremad'"),
    "protocol": (("cremad", "--source", ".", "--protocol", "omg"), r"no protocol called 'omg'; did you mean 'ogm'"),
    "option": (("cremad", "--source", ".", "--set", "cremad.fsp=2"), r"no option 'fsp'; did you mean 'fps'"),
    "value": (("cremad", "--source", ".", "--set", "cremad.fps=0"), r"cremad\.fps must be >= 1, found 0"),
    "choice": (("cremad", "--source", ".", "--set", "cremad.audio=fbnak"), r"cremad\.audio .*fbank"),
    "form of --set": (("cremad", "--source", ".", "--set", "fps=2"), r"--set takes NAME\.OPTION=VALUE.* found 'fps=2'"),
    "other dataset": (("cremad", "--source", ".", "--set", "ave.fps=2"), r"'ave' takes no part in this call"),
    "what is for training": (
        ("cremad", "--source", ".", "--set", "optimizer.lr=1"),
        r"--set must name options of cremad, found 'optimizer'",
    ),
    "an encoder": (
        ("cremad", "--source", ".", "--set", "encoder.audio.name=mlp"),
        r"--set must name options of cremad, found 'encoder\.audio'",
    ),
    "no source": (("cremad",), r"cremad needs --source DIR with CREMA-D .*VideoFlash/.*; none was given"),
    "no source of other data": (("utd_mhad",), r"utd_mhad needs --source DIR with utd_mhad/"),
    "source absent": (("cremad", "--source", "nowhere"), r"--source must be a folder, found none at nowhere"),
    "source longer than any name": (
        ("cremad", "--source", "a" * 300),
        r"--source must be a folder, found none at a{300}$",
    ),
    "source that is a file": (
        ("utd_mhad", "--source", ROOT / "README.md"),
        r"--source must be a folder, found the file .*README\.md; name the folder it is in",
    ),
    "source without MNIST": (("cgmnist", "--source", "."), r"^--source must hold MNIST's four IDX files"),
    "source of something else": (("cremad", "--source", "."), r"must hold CREMA-D .*found no VideoFlash/"),
    "no workers": (("cremad", "--source", ".", "--workers", "0"), r"--workers must be at least 1, found 0"),
    "workers in words": (("cremad", "--source", ".", "--workers", "two"), r"--workers: invalid int value: 'two'"),
    "flag": (("cremad", "--source", ".", "--worker-count", "2"), r"unrecognized arguments: --worker-count 2; see --h"),
}


@pytest.mark.parametrize("name", WRONG)
def test_one_sentence(prepare, tmp_path, name):
    arguments, expected = WRONG[name]
    said = sentence(prepare(*arguments, "--data-root", tmp_path / "data"))
    assert re.search(expected, said)
    assert not (tmp_path / "data").exists()
    assert not list(Path.cwd().iterdir())


def test_a_list_that_is_malformed(prepare, forty, tmp_path):
    source = lists(tmp_path / "source", train=["1001_DFA_ANG_XX"], test=["1001_DFA_ANG_XX"])
    (source / "VideoFlash").symlink_to(forty / "VideoFlash")
    said = sentence(prepare("cremad", "--source", source, "--data-root", tmp_path / "data"))
    assert "a clip must be in one split only, found 1001_DFA_ANG_XX in 2 lists" in said
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("where", ["data", "data/packed", "data/packed/cremad"])
def test_no_room_for_a_pack(prepare, forty, tmp_path, where):
    """A file lies where a folder should be."""
    (tmp_path / where).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / where).write_text("mine")
    said = sentence(prepare("cremad", "--source", forty, *SMALL, "--data-root", tmp_path / "data"))
    assert re.match(rf"{tmp_path / where}\S* must be readable and writable, found: (Not a directory|File exists)", said)
    assert (tmp_path / where).read_text() == "mine"
