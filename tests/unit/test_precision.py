"""``precision: auto`` is what the device computes in, and is recorded as that."""

import pytest
import torch

from balancebench_udi.protocol import Protocol, RunOptions
from balancebench_udi.runner import has_bf16, resolve_precision
from benchmarks.run import main, make_plan, parser

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
UNITS = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")


@pytest.fixture
def cpu(monkeypatch):
    """``cpu("amx_bf16", ...)``: a CPU that has these units."""

    def has(*units):
        able = {"architecture": "x86_64", "avx512_f": True, "amx_tile": True, **dict.fromkeys(UNITS, False)}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {**able, **dict.fromkeys(units, True)})

    return has


def protocol(precision):
    return Protocol("test", 3, "about", RunOptions(precision=precision, epochs=7))


@pytest.mark.parametrize("unit", UNITS)
def test_a_cpu_with_a_unit_for_bf16(cpu, unit):
    cpu(unit)
    assert has_bf16(CPU)
    assert resolve_precision(protocol("auto"), CPU) == protocol("bf16")


def test_a_cpu_without(cpu, monkeypatch):
    cpu()
    assert not has_bf16(CPU)
    assert resolve_precision(protocol("auto"), CPU) == protocol("fp32")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "riscv"})  # knows of none
    assert not has_bf16(CPU)


@pytest.mark.parametrize(("capability", "able"), [((7, 5), False), ((8, 0), True), ((8, 9), True), ((10, 0), True)])
def test_a_gpu_from_ampere_on(cpu, monkeypatch, capability, able):
    cpu(*(() if able else UNITS))  # the CPU says the opposite: it must not be asked
    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: asked.append(device) or capability)
    assert has_bf16(CUDA) is able
    assert resolve_precision(protocol("auto"), CUDA) == protocol("bf16" if able else "fp32")
    assert asked == [CUDA, CUDA]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_named_precision_stays(cpu, precision):
    cpu(*(UNITS if precision == "fp32" else ()))
    given = protocol(precision)
    assert resolve_precision(given, CPU) is given


@pytest.mark.parametrize(("units", "expected"), [((), "fp32"), (("avx512_bf16",), "bf16")])
def test_it_is_recorded_as_what_it_was(cpu, tmp_path, monkeypatch, units, expected):
    """The same run whether auto chose its precision or the user named it, and another than that of the other."""
    monkeypatch.chdir(tmp_path)
    cpu(*units)

    def planned(precision):
        words = ["--methods", "joint,udi", "--dataset", "digits", "--seeds", "0", "--device", "cpu", "--epochs", "3"]
        return [job.spec for job in make_plan(parser().parse_args([*words, "--precision", precision]))[0]]

    other = {"fp32": "bf16", "bf16": "fp32"}[expected]
    auto, named = planned("auto"), planned(expected)
    assert [spec.precision for spec in auto] == [expected, expected]
    assert [spec.as_dict()["precision"] for spec in auto] == [expected, expected]
    assert [spec.key for spec in auto] == [spec.key for spec in named]
    assert not {spec.key for spec in auto} & {spec.key for spec in planned(other)}


@pytest.mark.parametrize(("units", "expected"), [((), "fp32"), (("amx_bf16",), "bf16")])
def test_the_plan_names_it(cpu, tmp_path, monkeypatch, capsys, units, expected):
    """The preset laptop leaves the choice to the machine."""
    monkeypatch.chdir(tmp_path)
    cpu(*units)
    words = ["--methods", "joint", "--dataset", "digits", "--seeds", "0", "--device", "cpu", "--out", "out"]
    assert main([*words, "--protocol", "laptop", "--dry-run"]) == 0
    assert f"under laptop v1: 20 epochs, {expected}, on cpu" in capsys.readouterr().out
