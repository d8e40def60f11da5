"""Datasets: reading, checking and splitting; see :mod:`balancebench_udi.data.base`."""
