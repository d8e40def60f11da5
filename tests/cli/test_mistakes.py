"""A mistake costs one sentence on stderr and the exit status 2, before anything is trained or written."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from calls import Called, command, content, spawn

import registry
from balancebench_udi import Strategy
from balancebench_udi.catalogue import Catalogue

QUICK = ("--dataset", "digits", "--protocol", "quick", "--seeds", "0")
THREE = ("--dataset", "synthetic", "--set", "synthetic.modalities=3", "--set", "synthetic.n_train=64")


def sentence(called: Called) -> str:
    """The complaint, after checking that it is one line and nothing else."""
    assert called.code == 2, called
    assert called.err.startswith("error: "), called.err
    assert called.err.count("\n") == 1, called.err
    assert called.err.endswith("\n")
    assert "Traceback" not in called.err + called.out
    return called.err.removeprefix("error: ").strip()


@pytest.fixture
def mistake(cli, tmp_path):
    """``mistake(*arguments)``: the sentence of a call that must leave nothing behind."""
    out = tmp_path / "out"

    def call(*arguments: object) -> str:
        said = sentence(cli(*arguments, "--out", out))
        assert not out.exists(), list(out.rglob("*"))
        assert not list(Path.cwd().iterdir())
        return said

    return call


WRONG = {
    "method": (("--methods", "omg", *QUICK), r"no method called 'omg'; did you mean 'ogm'"),
    "method far from all": (("--methods", "zzzz", *QUICK), r"no method called 'zzzz'; known: .*joint"),
    "one of several methods": (("--methods", "joint,jiont", *QUICK), r"no method called 'jiont'; did you mean 'joint'"),
    "wildcard": (("--methods", "zz*", *QUICK), r"no method called 'zz\*'"),
    "name above": (("--methods", "joint", *QUICK, "--name", ".."), r"--name must be a plain folder name, found '..'"),
    "no method": (("--methods", ",", *QUICK), r"--methods needs at least one value, found ','"),
    "dataset": (("--methods", "joint", "--dataset", "digit"), r"no dataset called 'digit'; did you mean 'digits'"),
    "protocol": (("--methods", "joint", "--protocol", "qick"), r"no protocol called 'qick'; did you mean 'quick'"),
    "name that is too long": (("--methods", "joint", "--protocol", "x" * 300), r"xxx\.\.\. must be .*name too long"),
    "protocol file": (("--methods", "joint", "--protocol", "absent.yaml"), r"no protocol called 'absent.yaml'"),
    "option of a method": (
        ("--methods", "ogm", *QUICK, "--set", "ogm.alhpa=1"),
        r"ogm has no option 'alhpa'; did you mean 'alpha'",
    ),
    "option of a method without any": (
        ("--methods", "joint", *QUICK, "--set", "joint.alpha=1"),
        r"joint has no option 'alpha'; it has none",
    ),
    "option of the dataset": (("--methods", "joint", *QUICK, "--set", "digits.val_shar=0.2"), r"mean 'val_share'"),
    "option of the optimizer": (("--methods", "joint", *QUICK, "--set", "optimizer.rl=1"), r"mean 'lr'"),
    "option of an encoder": (("--methods", "joint", *QUICK, "--set", "encoder.gray.wdth=8"), r"gray.*no option 'wdth'"),
    "value out of bounds": (
        ("--methods", "ogm", *QUICK, "--set", "ogm.alpha=-1"),
        r"ogm\.alpha must be >= 0, found -1\.0",
    ),
    "value of the wrong type": (
        ("--methods", "ogm", *QUICK, "--set", "ogm.alpha=abc"),
        r"ogm\.alpha must be a number, found 'abc'",
    ),
    "value not among the choices": (("--methods", "joint", *QUICK, "--set", "optimizer.name=sdg"), r"sgd, adamw"),
    "value that is not finite": (("--methods", "joint", *QUICK, "--set", "optimizer.lr=inf"), r"optimizer\.lr .*inf"),
    "value that is no number": (("--methods", "joint", *QUICK, "--set", "ogm.alpha=nan"), r"'ogm' takes no part"),
    "nan": (("--methods", "ogm", *QUICK, "--set", "ogm.alpha=nan"), r"ogm\.alpha must be a number, found nan"),
    "dataset's values together": (("--methods", "joint", *QUICK, "--set", "digits.val_share=0.9"), r"must be < 1"),
    "--set without =": (("--methods", "ogm", *QUICK, "--set", "ogm.alpha"), r"NAME\.OPTION=VALUE.*found 'ogm\.alpha'"),
    "--set without .": (("--methods", "ogm", *QUICK, "--set", "alpha=1"), r"NAME\.OPTION=VALUE.*found 'alpha=1'"),
    "--set on a name that takes no part": (
        ("--methods", "joint", *QUICK, "--set", "ogm.alpha=1"),
        r"--set ogm\.alpha=1: 'ogm' takes no part in this call",
    ),
    "modality of an encoder": (
        ("--methods", "joint", *QUICK, "--set", "encoder.grey.name=mlp"),
        r"digits has no modality 'grey'; did you mean 'gray'",
    ),
    "encoder": (("--methods", "joint", *QUICK, "--set", "encoder.gray.name=digti"), r"modality gray: .*'digti'"),
    "encoder for other data": (("--methods", "joint", *QUICK, "--set", "encoder.gray.name=sequence"), r"modality gray"),
    "flag": (("--methods", "joint", *QUICK, "--epoch-count", "3"), r"unrecognized arguments: --epoch-count 3; see --h"),
    "flag without its value": (("--methods",), r"--methods: expected one argument; see --help"),
    "flag's choice": (("--methods", "joint", "--select", "best"), r"--select: invalid choice: 'best'"),
    "epochs 0": (("--methods", "joint", *QUICK, "--epochs", "0"), r"run\.epochs must be >= 1, found 0"),
    "epochs text": (("--methods", "joint", *QUICK, "--epochs", "x"), r"--epochs: invalid int value: 'x'"),
    "batch size": (("--methods", "joint", *QUICK, "--batch-size", "1"), r"run\.batch_size must be >= 2, found 1"),
    "precision": (("--methods", "joint", *QUICK, "--precision", "fp16"), r"run\.precision must be one of fp32, bf16"),
    "fusion": (("--methods", "joint", *QUICK, "--fusion", "flim"), r"no fusion called 'flim'; did you mean 'film'"),
    "seeds text": (("--methods", "joint", "--seeds", "a"), r"--seeds takes whole numbers .*found 'a'"),
    "seeds backwards": (
        ("--methods", "joint", "--seeds", "3-1"),
        r"--seeds takes ranges from low to high, found '3-1'",
    ),
    "seeds below 0": (("--methods", "joint", "--seeds=-1"), r"--seeds takes whole numbers .*found '-1'"),
    "no seeds": (("--methods", "joint", "--seeds", ""), r"--seeds needs at least one value"),
    "reading that no run has": (
        ("--methods", "joint", *QUICK, "--select", "best_test"),
        r"--select best_test .*--test-each-epoch",
    ),
    "absent data": (
        ("--methods", "joint", "--dataset", "cgmnist", "--seeds", "0"),
        r"dataset cgmnist needs --data-root DIR with MNIST's four IDX files.*cgmnist\.download=true",
    ),
    "data root that is no folder": (
        ("--methods", "joint", "--dataset", "cgmnist", "--data-root", "nowhere"),
        r"--data-root must be a folder with .*nowhere is not a folder",
    ),
    "data of three modalities, absent": (
        ("--methods", "joint", "--dataset", "mosi"),
        r"dataset mosi needs --data-root DIR with .*github\.com",
    ),
    "FiLM with three modalities": (
        ("--methods", "joint", *THREE, "--fusion", "film"),
        r"fusion film takes exactly 2 modalities, found 3: use concat or sum",
    ),
    "share without an additive fusion": (
        ("--methods", "ogm", *QUICK, "--fusion", "film"),
        r"readout=share needs a fusion .*set ogm\.readout=masked, or the fusion to concat or sum",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_one_sentence(mistake, name):
    arguments, expected = WRONG[name]
    assert re.search(expected, mistake(*arguments))


def test_a_process_ends_with_2_and_a_sentence(tmp_path):
    out = tmp_path / "out"
    called = command("--methods", "omg", *QUICK, "--out", out, cwd=tmp_path)
    assert re.fullmatch(r"there is no method called 'omg'; did you mean 'ogm'.*", sentence(called))
    assert called.out == ""
    assert not list(tmp_path.iterdir())


def test_a_reader_that_goes_away_is_no_mistake(tmp_path):
    """As with ``| head -1``: no traceback, and the status that a shell gives."""
    process = spawn("--list", cwd=tmp_path)
    process.stdout.close()
    assert process.stderr.read() == "stopped: nobody reads the output any more\n"
    assert process.wait() == 141


def test_cuda_without_a_gpu(mistake, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = mistake("--methods", "joint", *QUICK, "--device", "cuda")
    assert re.search(r"--device cuda needs a GPU .*found none: use --device cpu or auto", said)


def test_a_method_for_two_modalities_refuses_three(mistake, monkeypatch):
    class Pair(Strategy):
        name = "pair"
        max_modalities = 2

    monkeypatch.setattr("test_mistakes.Pair", Pair, raising=False)
    table = {**registry.METHODS, "pair": "test_mistakes:Pair"}
    monkeypatch.setattr(registry, "methods", Catalogue("method", table, "balancebench_udi.methods"))
    said = mistake("--methods", "joint,pair", *THREE)
    assert re.search(r"pair takes at most 2 modalities, found 3 \(m0, m1, m2\): choose another method or dataset", said)


def test_three_real_modalities_and_film(mistake, data_root):
    said = mistake("--methods", "joint", "--dataset", "mosi", "--data-root", data_root, "--fusion", "film")
    assert re.search(r"fusion film takes exactly 2 modalities, found 3", said)


def test_data_that_is_damaged(mistake, data_root, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(data_root / "mnist", root / "mnist")
    labels = root / "mnist" / "train-labels-idx1-ubyte.gz"
    whole = labels.read_bytes()
    arguments = ("--methods", "joint", "--dataset", "cgmnist", "--data-root", root)
    labels.write_bytes(whole[: len(whole) // 2])
    assert re.search(
        r"train-labels-idx1-ubyte\.gz must be a readable file, found: .*download it again", mistake(*arguments)
    )
    labels.write_bytes(gzip.compress(gzip.decompress(whole)[:1000]))
    assert re.search(r"must hold \[60000\] bytes after its header, found 992; download", mistake(*arguments))
    labels.unlink()
    assert re.search(r"found no train-labels-idx1-ubyte under .*; copy them there or fetch", mistake(*arguments))


@pytest.mark.parametrize("where", ["out", "out/claims"])
def test_a_file_where_a_folder_should_be(cli, tmp_path, where):
    blocked = tmp_path / where
    blocked.parent.mkdir(exist_ok=True)
    blocked.write_text("mine\n")
    said = sentence(cli("--methods", "joint", *QUICK, "--epochs", "1", "--out", tmp_path / "out"))
    assert re.search(r"could not be written because a file lies where a folder should be: choose another --out", said)
    assert blocked.read_text() == "mine\n"
    assert list(content(tmp_path)) == [where]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_a_sentence_and_keeps_what_is_finished(cli, tmp_path, monkeypatch):
    out = tmp_path / "out"
    arguments = ("--methods", "joint", "--dataset", "digits", "--protocol", "quick", "--epochs", "1", "--out", out)
    assert cli(*arguments, "--seeds", "0").code == 0
    before = content(out / "records")

    def full(_: int) -> None:
        os.write(os.open("/dev/full", os.O_WRONLY), b"x")  # the kernel's own ENOSPC

    monkeypatch.setattr(os, "fsync", full)
    called = cli(*arguments, "--seeds", "0-1")
    assert called.code == 2
    last = called.err.strip().splitlines()[-1]
    assert re.search(
        r"^error: .* could not be written because the disk is full: choose another --out or make room", last
    )
    assert "Traceback" not in called.err
    assert content(out / "records") == before


DAMAGED = ("", "{", "[]", "{}", "null", '{"key": 1, "spec": {}, "result": {}}', "\x00\x01")


def test_a_damaged_record(cli, tmp_path):
    out = tmp_path / "out"
    arguments = ("--methods", "joint", *QUICK, "--epochs", "1", "--out", out)
    assert cli(*arguments).code == 0
    (own,) = out.glob("records/*/*/*.json")
    other = own.with_name("000000000000.json")
    for path in (own, other):
        own.rename(path)
        for text in (*DAMAGED, path.read_text()[:-100]):
            path.write_text(text)
            before = content(out)
            said = sentence(cli(*arguments))
            assert re.search(rf"{path} must (be|hold) .*: delete it to train again", said), text
            assert content(out) == before


def test_a_record_under_another_name(cli, tmp_path):
    out = tmp_path / "out"
    arguments = ("--methods", "joint", "--dataset", "digits", "--protocol", "quick", "--epochs", "1", "--out", out)
    assert cli(*arguments, "--seeds", "0-1").code == 0
    first, second = sorted((out / "records" / "digits" / "joint").glob("*.json"))
    second.write_text(first.read_text())
    key = json.loads(first.read_text())["key"]
    said = sentence(cli(*arguments, "--seeds", "0-1"))
    assert re.search(rf"{second} must hold the record {second.stem}, found {key}: delete it", said)


PROTOCOLS = {
    "no YAML": (b"run: {epochs: 1", r"must be YAML, found a mistake"),
    "no text": (b"\xff\xfe\x00ru", r"must be YAML"),
    "a list": (b"- run\n- optimizer\n", r"must hold names with values, found \['run'"),
    "unknown section": (b"version: 1\noptimiser: {lr: 1}\n", r"no section 'optimiser'; did you mean 'optimizer'"),
    "unknown option": (b"run: {epoch: 1}\n", r"run has no option 'epoch'; did you mean 'epochs'"),
    "bad value": (b"optimizer: {lr: -1}\n", r"optimizer\.lr must be > 0, found -1\.0"),
    "version in words": (b"version: one\n", r"version"),
    "a number for a section": (b"run: 5\n", r"run"),
    "a list for a section": (b"methods: [joint]\n", r"methods"),
    "a number for a method": (b"methods: {joint: 5}\n", r"joint"),
    "a name for an encoder": (b"encoders: {gray: mlp}\n", r"gray"),
    "a number for published": (b"published: {digits: 5}\n", r"published"),
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_damaged_protocol(mistake, tmp_path, name):
    text, expected = PROTOCOLS[name]
    path = tmp_path / "mine.yaml"
    path.write_bytes(text)
    said = mistake("--methods", "joint", "--dataset", "digits", "--seeds", "0", "--protocol", path, "--epochs", "1")
    assert re.search(expected, said)


def test_a_protocol_that_names_an_unknown_option_of_a_method(mistake, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("methods: {ogm: {alpa: 1}}\n")
    said = mistake("--methods", "ogm", "--dataset", "digits", "--seeds", "0", "--protocol", path)
    assert re.search(r"ogm has no option 'alpa'; did you mean 'alpha'", said)
