#!/usr/bin/env python
"""Draw the features of a modality with t-SNE, one panel a variant of a method.

    python benchmarks/embedding.py --dataset cgmnist --protocol small --modality colour \\
        --panel "with complementarity: udi" --panel "without: udi weights=static alpha_con=0.5 alpha_com=0"

Trains the runs whose networks were not kept (``run.py --keep-weights``), reads the test split, and writes the figure
and the places of its points: ``tsne.svg``, ``tsne.png``, ``tsne.csv``. In the folder that is the default,
``figures/DATASET-PROTOCOL``, ``report.py`` finds it for its page.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if str(HERE.parent) not in sys.path:  # a plain checkout, called from anywhere
    sys.path.insert(0, str(HERE.parent))

from benchmarks.start import begin

if __name__ == "__main__":
    begin()

import torch

from balancebench_udi.errors import UserError, near_misses
from balancebench_udi.places import check_folders
from balancebench_udi.report.figures import embedding
from balancebench_udi.runner import Job, run_all
from balancebench_udi.store import Store
from balancebench_udi.strategy import evaluating
from balancebench_udi.text import guard_frame
from balancebench_udi.trainer import Trainer
from benchmarks import run as training
from benchmarks.command import Parser, fitting, folder_name, guarded, short

SAMPLES = 1000
"""Most points of a panel."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(prog="embedding.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--dataset", required=True, help="name of the dataset")
    p.add_argument("--protocol", default="default", help="name of a preset in benchmarks/protocols, or a YAML file")
    p.add_argument("--modality", required=True, help="whose features are drawn")
    p.add_argument(
        "--panel",
        action="append",
        required=True,
        metavar="TITLE: METHOD [OPTION=VALUE ...]",
        help="one variant of a method; repeatable",
    )
    p.add_argument("--set", action="append", default=[], metavar="NAME.OPTION=VALUE", help="as for run.py, of all")
    p.add_argument("--seed", default="0", help="seed of the runs (default: 0)")
    p.add_argument("--select", default="best_val", choices=("last", "best_val"), help="which epoch is read")
    p.add_argument("--samples", type=int, default=SAMPLES, metavar="N", help=f"points of a panel (default: {SAMPLES})")
    p.add_argument("--data-root", help="folder with the datasets (default: $BALANCEBENCH_DATA, else data/)")
    p.add_argument("--out", help="results folder (default: results in this checkout, else in this folder)")
    p.add_argument("--name", help="folder of the figure (default: dataset and protocol)")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status, as ``run.py`` does."""
    return guarded(run, parser(), arguments, "the same command goes on from the last checkpoint")


def run(given: argparse.Namespace) -> int:
    """Train what is missing, map the features, draw."""
    if given.samples < embedding.FEWEST:
        raise UserError(f"--samples must be at least {embedding.FEWEST}, found {given.samples}")
    name = fitting(f"{given.dataset}-{Path(given.protocol).stem}") if given.name is None else folder_name(given.name)
    panels: dict[str, tuple[Any, Any]] = {}
    keys = {}
    for text in given.panel:
        title, words = parse_panel(text)
        if title in panels:
            raise UserError(f"every panel must have a title of its own, found {title!r} twice")
        jobs, store, device, _ = training.make_plan(namespace(given, words))
        if len(jobs) != 1:
            raise UserError(f"a panel must name one method and --seed one seed, found {len(jobs)} runs in {text!r}")
        known = jobs[0].bundle.modalities
        if given.modality not in known:
            raise UserError(f"{given.dataset} has no modality {given.modality!r}{near_misses(given.modality, known)}")
        check_folders([store.root / "figures" / name])
        training.check_places(store, jobs)
        outcome = run_all(jobs, store, device)
        if jobs[0] not in outcome.done:
            return training.report_rest(outcome) or 1
        panels[title] = features(jobs[0], store, device, given)
        keys[title] = jobs[0].spec.key
    classes, heading = jobs[0].bundle.classes, f"{given.dataset}, protocol {jobs[0].spec.protocol}: {given.modality}"
    places = embedding.coordinates(panels)
    places = places.assign(modality=given.modality, key=places["panel"].map(keys))
    folder = store.root / "figures" / name
    paths = embedding.draw(places, classes, heading).save(folder, "tsne")
    paths.append(folder / "tsne.csv")
    store.replace(paths[-1], lambda handle: handle.write(guard_frame(places).to_csv(index=False).encode()))
    print("written: " + ", ".join(map(short, paths)))
    return 0


def parse_panel(text: str) -> tuple[str, list[str]]:
    """``"with: udi a=1 b=2"`` as ``("with", ["udi", "a=1", "b=2"])``."""
    title, colon, rest = text.partition(":")
    words = rest.split()
    if not (colon and title.strip() and words) or any("=" not in word for word in words[1:]):
        raise UserError(f"--panel takes TITLE: METHOD [OPTION=VALUE ...], found {text!r}")
    return title.strip(), words


def namespace(given: argparse.Namespace, words: Sequence[str]) -> argparse.Namespace:
    """The command line of ``run.py`` for one panel."""
    method, *options = words
    call = ["--methods", method, "--dataset", given.dataset, "--protocol", given.protocol, "--seeds", given.seed]
    call += ["--keep-weights", *(f"--set={text}" for text in given.set), *(f"--set={method}.{o}" for o in options)]
    for flag in ("data_root", "out"):
        if getattr(given, flag) is not None:
            call += [f"--{flag.replace('_', '-')}", getattr(given, flag)]
    return training.parser().parse_args(call)


def features(job: Job, store: Store, device: torch.device, given: argparse.Namespace) -> tuple[Any, Any]:
    """Features ``[N, D]`` of the modality and classes ``[N]``, of evenly spaced test samples."""
    trainer = Trainer(job.spec, job.bundle, job.method, job.options, device)
    kept = store.load_weights(job.spec).get(given.select, {})
    try:
        trainer.restore(kept)
    except UserError as error:
        raise UserError(f"{store.weights_path(job.spec)}: {error}; delete it to train again") from None
    size = trainer.loader.size("test")
    index = torch.arange(0, size, max(1, size // given.samples))[: given.samples]
    with evaluating(trainer.strategy):
        found = [
            trainer.strategy.model.encode(batch.inputs)[given.modality].cpu()
            for batch in trainer.loader.ordered("test", [given.modality], index)
        ]
    return torch.cat(found), trainer.loader.target("test").cpu()[index]


if __name__ == "__main__":
    sys.exit(main())
