"""The figure of features: where t-SNE puts the samples of each class, a panel a variant."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from balancebench_udi.errors import UserError
from balancebench_udi.report.figures.classes import shortened
from balancebench_udi.report.figures.style import Drawing, canvas, literal, looks, styled

PERPLEXITY = 30.0
"""Of t-SNE; scikit-learn's default. A third of the samples where there are fewer than 91."""
COMPONENTS = 50
"""Dimensions that a principal component analysis leaves before t-SNE; van der Maaten and Hinton, JMLR 9, 2008."""
FEWEST = 7
"""Samples that a panel needs."""


def tsne(panels: Mapping[str, tuple[Any, Any]], classes: Sequence[str], title: str) -> Drawing:
    """t-SNE maps of features, one panel a variant, points by class: :func:`coordinates`, then :func:`draw`."""
    return draw(coordinates(panels), classes, title)


def coordinates(panels: Mapping[str, tuple[Any, Any]]) -> pd.DataFrame:
    """Where t-SNE puts every sample, each panel by itself; equal features give equal places on one machine.

    Features are reduced to 50 dimensions by PCA, then mapped by scikit-learn's t-SNE: PCA initialisation, seed 0,
    perplexity 30, in one thread, because sums in several are not the same twice. Van der Maaten and Hinton,
    *Visualizing data using t-SNE*, JMLR 9, 2008, https://jmlr.org/papers/v9/vandermaaten08a.html.

    Args:
        panels: name -> features ``[N, D]`` and class indices ``[N]``, arrays or tensors on the CPU.

    Returns:
        Columns ``panel``, ``x``, ``y`` (three decimals) and ``target``, a row a sample, in the order given; a csv of it
        can be read back and drawn.

    Raises:
        UserError: no panel, fewer than 7 samples, features and targets of different length, features that are no
            matrix or not finite.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if not panels:
        raise UserError("a map of features needs at least one panel, found none: pass the features of a run")
    tables = []
    for name, (given, target) in panels.items():
        features, target = np.asarray(given, dtype=np.float64), np.asarray(target)
        _check(name, features, target)
        with threadpool_limits(1):
            small = min(COMPONENTS, *features.shape)
            if small < features.shape[1]:
                features = PCA(small, svd_solver="full").fit_transform(features)
            perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
            found = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(features)
        places = found.astype(np.float64).round(3) + 0.0  # no negative zeros in a csv
        tables.append(pd.DataFrame({"panel": name, "x": places[:, 0], "y": places[:, 1], "target": target}))
    return pd.concat(tables, ignore_index=True)


def draw(coordinates: pd.DataFrame, classes: Sequence[str], title: str) -> Drawing:
    """Draw :func:`coordinates`: one panel a variant, colour and marker by class, one legend.

    Above each panel stands how many points have a nearest neighbour of their own class in the map.

    Args:
        coordinates: columns ``panel``, ``x``, ``y``, ``target``.
        classes: names by index.
        title: dataset and protocol.

    Raises:
        UserError: a column is lacking, or a target is no index of ``classes``.
    """
    lacking = [name for name in ("panel", "x", "y", "target") if name not in coordinates.columns]
    if lacking:
        raise UserError(f"coordinates must have the columns panel, x, y and target, found no {', '.join(lacking)}")
    known = coordinates["target"].isin(range(len(classes)))
    if not known.all():
        found = coordinates["target"][~known].iloc[0]
        raise UserError(f"targets must be indices of the {len(classes)} classes, found {found}: pass all names")
    present = sorted(coordinates["target"].unique())
    look = looks([classes[i] for i in range(len(classes))])
    parts = dict(list(coordinates.groupby("panel", sort=False)))
    told = []
    columns = min(len(parts), 3 if len(parts) != 4 else 2)
    rows = math.ceil(len(parts) / columns)
    legend = math.ceil(len(present) / 5)
    with styled():
        figure, panels = canvas(6.8, 0.35 + rows * (6.6 / columns + 0.3) + 0.19 * legend, rows, columns)
        figure.suptitle(title, fontsize=11, parse_math=False)
        for axes in panels[len(parts) :]:
            axes.set_visible(False)
        for axes, (name, part) in zip(panels, parts.items(), strict=False):
            for index in present:
                mine = part[part["target"] == index]
                kind = {**look[classes[index]], "linestyle": "", "markersize": 4, "alpha": 0.8}
                axes.plot(
                    mine["x"], mine["y"], markeredgecolor="0.2", markeredgewidth=0.3, label=classes[index], **kind
                )
            same = 100 * _same(part)
            axes.set_title(f"{name}\nneighbour of its class: {same:.1f} %", fontsize=9, parse_math=False)
            axes.set(xticks=[], yticks=[])
            axes.set_box_aspect(1)
            axes.spines[:].set_visible(True)
            axes.spines[:].set_color("0.7")
            told.append(f"{same:.1f} % in {name} ({len(part)} samples)")
        handles = panels[0].get_lines()
        for handle, name in zip(handles, shortened([classes[index] for index in present]), strict=True):
            handle.set_label(name)
        figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=8, frameon=False, markerscale=1.4)
        literal(figure)
        figure.draw_without_rendering()  # square panels leave the title its room in a second layout only
    return Drawing(
        figure,
        f"t-SNE maps of features by class, {title}. Samples whose nearest neighbour in the map is of their own class: "
        f"{'; '.join(told)}.",
        f"t-SNE (scikit-learn; PCA initialisation, seed 0) of features, {title}: one point a sample, colour and marker "
        "its class, every panel mapped by itself; axes have no unit, and distances between far groups mean little. "
        "In percent: samples whose nearest neighbour in the map is of their own class. The networks were kept or "
        "trained for this figure; of runs recorded on another processor they may be as far from those of the records "
        "as another seed's.",
    )


def _check(name: str, features: np.ndarray, target: np.ndarray) -> None:
    if features.ndim != 2 or features.shape[1] < 2:
        raise UserError(f"features of {name} must be a matrix of at least two columns, found shape {features.shape}")
    if target.shape != features.shape[:1]:
        raise UserError(f"{name} must have one target a sample, found {target.shape} for {len(features)} samples")
    if len(features) < FEWEST:
        raise UserError(f"{name} must have at least {FEWEST} samples to be mapped, found {len(features)}: take more")
    if not np.isfinite(features).all():
        raise UserError(f"features of {name} must be finite, found NaN or infinity: the run has diverged")


def _same(part: pd.DataFrame) -> float:
    """Share of the points whose nearest neighbour has the same class, in [0, 1]."""
    from sklearn.neighbors import NearestNeighbors

    nearest = NearestNeighbors(n_neighbors=1).fit(part[["x", "y"]].to_numpy()).kneighbors(return_distance=False)
    target = part["target"].to_numpy()
    return float((target[nearest[:, 0]] == target).mean())
