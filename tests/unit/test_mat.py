"""MATLAB files: what is asked for comes back as it was stored, anything else is one sentence."""

import io

import numpy as np
import pytest
from scipy.io import savemat

from balancebench_udi.data.mat import read_mat
from balancebench_udi.errors import UserError


def saved(compressed=False, **variables):
    file = io.BytesIO()
    savemat(file, variables, do_compression=compressed)
    return file.getvalue()


@pytest.mark.parametrize("compressed", [False, True])
def test_values_and_types_are_those_stored(compressed):
    stored = {"a": np.arange(6.0).reshape(2, 3), "b": np.array([[1, 255]], dtype=np.uint8), "c": np.eye(2)}
    found = read_mat(saved(compressed, **stored), "some.mat", ["b", "a"])
    assert list(found) == ["b", "a"]
    for name, values in found.items():
        assert values.dtype == stored[name].dtype
        assert np.array_equal(values, stored[name])


@pytest.mark.parametrize("value", [np.nan, np.inf, "x"])
def test_only_finite_numbers(value):
    values = np.array([["x"]]) if value == "x" else np.array([[1.0, value]])
    with pytest.raises(UserError, match=r"x in some\.mat must hold finite numbers only"):
        read_mat(saved(x=values), "some.mat", ["x"])


def test_absent_variable():
    with pytest.raises(UserError, match=r"^some\.mat must hold the variable y, it does not; fetch it again$"):
        read_mat(saved(x=np.eye(2)), "some.mat", ["x", "y"])


@pytest.mark.parametrize("compressed", [False, True])
def test_cut_short_anywhere_is_one_sentence(compressed):
    data = saved(compressed, x=np.random.default_rng(0).normal(size=(9, 6)))
    for size in range(0, len(data), len(data) // 20):
        with pytest.raises(UserError, match=r"^some\.mat must "):
            read_mat(data[:size], "some.mat", ["x"])
