"""RunSpec: round trip, keys, what separates runs."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import registry
from balancebench_udi.config import Options, option
from balancebench_udi.errors import UserError
from balancebench_udi.seeding import derive, generator
from balancebench_udi.spec import Optimizer, RunSpec, Schedule, canonical
from tests.helpers import make_spec, tiny_bundle

GOLDEN = RunSpec(
    protocol="gold",
    protocol_version=1,
    dataset="digits",
    dataset_version=2,
    dataset_options={"share": 0.1},
    fingerprint="0123456789ab",
    method="joint",
    method_version=3,
    method_options={"alpha": 0.5, "window": [0.0, 0.5]},
    encoders={"gray": {"name": "digit"}, "colour": {"name": "mlp", "width": 8, "depth": 2}},
    fusion="concat",
    optimizer={"name": "sgd", "lr": 0.001, "momentum": 0.9, "weight_decay": 0.0001},
    schedule={"name": "step", "at": 0.7, "factor": 0.1},
    epochs=100,
    batch_size=64,
    precision="fp32",
    seed=7,
)
OTHER = {
    "protocol": "silver",
    "protocol_version": 2,
    "dataset": "mosi",
    "dataset_version": 3,
    "dataset_options": {"share": 0.2},
    "fingerprint": "ba9876543210",
    "method": "another",
    "method_version": 4,
    "method_options": {"alpha": 0.6, "window": [0.0, 0.5]},
    "encoders": {"gray": {"name": "digit"}, "colour": {"name": "mlp", "width": 9, "depth": 2}},
    "fusion": "sum",
    "optimizer": {"name": "sgd", "lr": 0.002, "momentum": 0.9, "weight_decay": 0.0001},
    "schedule": {"name": "step", "at": 0.8, "factor": 0.1},
    "epochs": 99,
    "batch_size": 32,
    "precision": "bf16",
    "seed": 8,
    "test_each_epoch": True,
}
SHARED_BY_METHODS = {"method", "method_version", "method_options", "fusion", "protocol", "protocol_version"}


def test_keys_are_what_they_have_always_been():
    # A change here orphans every record on disk: raise a version instead.
    assert GOLDEN.key == "a8037bc6c4bc"
    assert GOLDEN.cell == "4f335ca9232f"
    assert GOLDEN.stage_key("alone/gray") == "9523f4885c2c"


def test_the_key_is_the_same_in_another_process():
    code = f"from balancebench_udi.spec import RunSpec; print(RunSpec.from_dict({GOLDEN.as_dict()!r}).key)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_environment())
    assert done.stdout.strip() == GOLDEN.key


def _environment():
    return {
        **os.environ,
        "PYTHONPATH": str(Path(registry.__file__).parent),
        "PYTHONHASHSEED": "99",
        "OMP_NUM_THREADS": "1",
    }


def test_round_trip_through_json():
    again = RunSpec.from_dict(json.loads(json.dumps(GOLDEN.as_dict())))
    assert again == GOLDEN
    assert again.key == GOLDEN.key


def test_the_order_of_options_does_not_matter():
    turned = dataclasses.replace(GOLDEN, method_options={"window": [0.0, 0.5], "alpha": 0.5})
    assert turned.key == GOLDEN.key


def test_every_field_is_in_the_list_of_this_test():
    assert set(OTHER) == {f.name for f in dataclasses.fields(RunSpec)}


@pytest.mark.parametrize("name", list(OTHER))
def test_every_field_moves_the_key(name):
    changed = dataclasses.replace(GOLDEN, **{name: OTHER[name]})
    assert changed.key != GOLDEN.key
    assert (changed.cell != GOLDEN.cell) == (name != "seed")
    assert (changed.stage_key("x") != GOLDEN.stage_key("x")) == (name not in SHARED_BY_METHODS)
    assert GOLDEN.difference(changed) == {name: (GOLDEN.as_dict()[name], OTHER[name])}
    assert changed.difference(GOLDEN) == {name: (OTHER[name], GOLDEN.as_dict()[name])}


def test_stages_are_told_apart_by_label():
    assert GOLDEN.stage_key("alone/gray") != GOLDEN.stage_key("alone/colour")
    assert GOLDEN.stage_key("") not in (GOLDEN.key, GOLDEN.cell)


def test_equal_runs_have_no_difference():
    assert GOLDEN.difference(RunSpec.from_dict(GOLDEN.as_dict())) == {}


@pytest.mark.parametrize("lr", [1, 1.0, "1"])
def test_one_number_in_three_notations_is_one_run(lr):
    bundle = tiny_bundle()
    assert make_spec(bundle, "joint", optimizer={"lr": lr}).key == make_spec(bundle, "joint", optimizer={"lr": 1.0}).key


def test_options_in_three_notations_are_one_run():
    @dataclasses.dataclass(frozen=True)
    class Some(Options):
        alpha: float = option(0.0, "a", source="ours")
        count: int = option(0, "c", source="ours")
        window: tuple[float, ...] = option((), "w", source="ours")

    keys = {
        dataclasses.replace(GOLDEN, method_options=Some.build("x", values).as_dict()).key
        for values in (
            {"alpha": 1, "count": 2, "window": (0, 1)},
            {"alpha": "1", "count": "2", "window": "0,1"},
            {"alpha": 1.0, "count": 2.0, "window": [0.0, 1.0]},
        )
    }
    assert len(keys) == 1


def test_not_a_number_cannot_enter_a_key():
    with pytest.raises(ValueError, match="JSON"):
        canonical({"x": float("nan")})


def test_canonical_is_sorted_and_tight():
    assert canonical({"b": 1, "a": [1.5, None, True]}) == '{"a":[1.5,null,true],"b":1}'


def test_optimizer_and_schedule_are_validated():
    with pytest.raises(UserError, match="lr must be > 0, found 0"):
        Optimizer(lr=0)
    with pytest.raises(UserError, match="name must be one of sgd, adamw, found adam"):
        Optimizer(name="adam")
    with pytest.raises(UserError, match=r"at must be <= 1, found 1\.5"):
        Schedule(at=1.5)


def test_named_streams_are_what_they_have_always_been():
    # Every recorded number depends on these.
    assert derive(0) == 3456079177858693020
    assert derive(7, "order", 3) == 929583480629082613


def test_named_streams_are_independent_of_each_other():
    seeds = {derive(s, *labels) for s in range(5) for labels in [(), ("a",), ("b",), ("a", 1), ("a", "1", 2)]}
    assert len(seeds) == 25
    assert all(0 <= s < 2**63 for s in seeds)
    assert generator(1, "a").initial_seed() == derive(1, "a")
