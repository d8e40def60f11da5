"""UCI Multiple Features: handwritten digits in six feature sets, split as in Trusted Multi-View Classification."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from balancebench_udi.config import Options, option
from balancebench_udi.data.base import (
    Affine,
    Bundle,
    Dataset,
    Modality,
    Split,
    fingerprint,
    inside,
    mean_and_scale,
    require_root,
    stratified_holdout,
)
from balancebench_udi.data.mat import read_mat
from balancebench_udi.errors import UserError

WIDTH = {"pix": 240, "fou": 76, "fac": 216, "zer": 47, "kar": 64, "mor": 6}
"""Features of each view, x1 to x6 in the file: pixel averages, Fourier coefficients, profile correlations, Zernike
moments, Karhunen-Loeve coefficients, morphological features."""
COUNT = {"train": 1600, "test": 400}
_FOLDER, _FILE = "handwritten_6views", "handwritten_6views.mat"


@dataclass(frozen=True)
class HandwrittenOptions(Options):
    """Options of :class:`Handwritten`."""

    views: tuple[str, ...] = option(
        tuple(WIDTH), "two to six of pix, fou, fac, zer, kar, mor, in the order of fusion", source="TMC, all six"
    )
    val_share: float = option(
        0.1, "share of every class's training samples held out", source="ours", above=0, at_most=0.5
    )
    val_seed: int = option(0, "seed of the validation split", source="ours", at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not set(self.views) <= set(WIDTH) or len(set(self.views)) != len(self.views) or len(self.views) < 2:
            raise UserError(
                f"views must be two to six different ones of {', '.join(WIDTH)}, found {', '.join(self.views)}"
            )


class Handwritten(Dataset):
    """2000 digits in six views: ``pix [240]``, ``fou [76]``, ``fac [216]``, ``zer [47]``, ``kar [64]``, ``mor [6]``.

    The 1600 / 400 split is that of the authors of Trusted Multi-View Classification, 160 and 40 a class; validation is
    a stratified share of the 1600. Every feature is standardised by its mean and standard deviation over the remaining
    training samples (the official code scales each split to [0, 1] by its own extremes); a constant one becomes 0.

    All views are computed from the same image and differ widely in strength: alone, a logistic regression reaches about
    0.98 on test with pix, fac and kar, 0.8 with fou and zer, 0.7 with mor. One test sample equals a training sample in
    all six views.

    Reference: R. Duin, Multiple Features, UCI Machine Learning Repository, doi:10.24432/C5HC70. Split: Z. Han,
    C. Zhang, H. Fu, J. T. Zhou, Trusted Multi-View Classification, ICLR 2021.
    """

    name = "handwritten"
    reference = "Duin, Multiple Features (UCI, doi:10.24432/C5HC70); split of Han et al., ICLR 2021"
    needs = f"{_FOLDER}/{_FILE}, the file of that name from github.com/hanmenghan/TMC"
    Options = HandwrittenOptions

    def load(self, root: Path | None) -> Bundle:
        """Read and standardise the features.

        Raises:
            UserError: an absent, damaged or incomplete file.
        """
        path = inside(require_root(self, root), _FOLDER, _FILE) / _FILE
        o: HandwrittenOptions = self.options
        if not path.is_file():
            raise UserError(f"dataset handwritten needs {path}, which is absent; it needs {self.needs}")
        data = path.read_bytes()
        variable = {m: f"x{i}" for i, m in enumerate(WIDTH, start=1)}
        found = read_mat(data, path, [f"{v}_{s}" for s in COUNT for v in (*variable.values(), "gt")])

        target = {}
        for s, n in COUNT.items():
            for m, width in WIDTH.items():
                if (shape := found[f"{variable[m]}_{s}"].shape) != (n, width):
                    raise UserError(f"{variable[m]}_{s} in {path} must be {n} x {width}, found {shape}; fetch it again")
            labels = found[f"gt_{s}"].ravel()
            if len(labels) != n or not np.isin(labels, range(1, 11)).all():
                raise UserError(f"gt_{s} in {path} must be {n} labels 1 to 10, found something else; fetch it again")
            target[s] = torch.from_numpy(labels.astype(np.int64) - 1)

        kept, held = stratified_holdout(target["train"], o.val_share, o.val_seed)
        rows = {"train": ("train", kept), "val": ("train", held), "test": ("test", torch.arange(COUNT["test"]))}
        inputs: dict[str, dict[str, torch.Tensor]] = {part: {} for part in rows}
        for m in o.views:
            values = {s: found[f"{variable[m]}_{s}"].astype(np.float64) for s in COUNT}
            fit = values["train"][kept]
            mean, scale = mean_and_scale(fit)
            for part, (s, chosen) in rows.items():
                inputs[part][m] = torch.from_numpy(((values[s][chosen] - mean) * scale).astype(np.float32))
        return Bundle(
            modalities={m: Modality("vector", (WIDTH[m],), "mlp", Affine()) for m in o.views},
            classes=tuple("0123456789"),
            fingerprint=fingerprint({"dataset": self.name, "version": self.version, "options": o.as_dict()}, data),
            facts={"generated": False, "counts": {part: len(chosen) for part, (_, chosen) in rows.items()}},
            groups=None,
            **{part: Split(inputs[part], target[s][chosen]) for part, (s, chosen) in rows.items()},
        )
