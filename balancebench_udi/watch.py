"""The curves of runs as TensorBoard events, written while the runs are trained."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from balancebench_udi.errors import UserError
from balancebench_udi.places import obstacle
from balancebench_udi.spec import RunSpec


class TensorBoard:
    """Writes every run into a folder of its own: ``<folder>/<dataset>/<protocol>/<method>-<key>-seed<k>``.

    Pass it to :func:`balancebench_udi.runner.run_all` as ``watch``. Every entry of the curves becomes scalars
    (``train/...``, ``val/...``, ``test/...``, ``gradients/...``, ``lr``) at the number of epochs done over all phases;
    the text ``phase`` names each phase at its first epoch. A run that is resumed, or trained again, writes its curves
    from the first epoch on, and what its folder held before is void for TensorBoard.

    Args:
        folder: made where it is absent.

    Raises:
        UserError: the package tensorboard is missing; while writing: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                "writing for TensorBoard needs the package tensorboard, found none: "
                "install it with pip install tensorboard"
            ) from None
        self.folder = folder
        self._open = SummaryWriter
        self._writer: Any = None

    def __call__(self, spec: RunSpec) -> Callable[[Mapping[str, Any]], None]:
        """Begin a run; what is returned takes the entries of its curves, one by one."""
        self.close()
        place = curves_of(self.folder, spec)
        with self._explained():
            writer = self._writer = self._open(str(place), purge_step=0)
        done, current = 0, None

        def watch(entry: Mapping[str, Any]) -> None:
            nonlocal done, current
            done += 1
            with self._explained():
                if entry["phase"] != current:
                    current = entry["phase"]
                    writer.add_text("phase", current, done)
                writer.add_scalar("lr", entry["lr"], done)
                for part, values in entry.items():
                    if isinstance(values, Mapping):
                        for name, value in values.items():
                            writer.add_scalar(f"{part}/{name}", value, done)
                writer.flush()  # an epoch can be looked at as soon as it is over

        return watch

    def close(self) -> None:
        """End the last run that was begun; it is on disk already."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with self._explained():
                writer.close()

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn the operating system's refusals into a sentence."""
        try:
            yield
        except OSError as error:
            raise _refused(self.folder, error.strerror) from error


def curves_of(folder: Path, spec: RunSpec) -> Path:
    """The folder of one run."""
    return folder / spec.dataset / spec.protocol / f"{spec.method}-{spec.key}-seed{spec.seed}"


def check_curves(folder: Path, specs: Iterable[RunSpec]) -> None:
    """Find out before anything is trained whether ``folder`` can take the curves of these runs.

    Raises:
        UserError: it cannot.
    """
    for spec in specs:
        if what := obstacle(curves_of(folder, spec)):
            raise _refused(folder, what)


def _refused(folder: Path, why: str | None) -> UserError:
    return UserError(
        f"{folder} must take the events for TensorBoard, found that it cannot be written ({why}): "
        "name another folder or make room; finished runs are kept"
    )


def watching(folder: Path | None) -> AbstractContextManager[TensorBoard | None]:
    """A :class:`TensorBoard` of ``folder``; where that is None, nothing watches.

    Raises:
        UserError: the package tensorboard is missing.
    """
    return nullcontext() if folder is None else TensorBoard(folder)
