"""What the scripts of this folder have in common: parsing, errors, folders, the device, short texts."""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from balancebench_udi.errors import UserError, near_misses
from balancebench_udi.store import Store

HERE = Path(__file__).resolve().parent
PROTOCOLS = HERE / "protocols"
PUBLISHED = HERE / "published.yaml"
ALONE = ("unimodal", "ensemble")
"""The methods that train every modality alone, in order of preference."""
LONGEST_SHOWN = 200
"""Characters of a path that a sentence shows."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Of mallopt, in glibc's malloc.h."""
LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""Read by torch at its first tensor: large ones then begin at a page and ask for large pages."""
os.environ.setdefault(LARGE_PAGES, "1")  # here: a module may make a tensor when it is imported


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one sentence, like every other."""

    def error(self, message: str) -> Any:
        raise UserError(f"{message}; see --help")


def guarded(
    run: Callable[[argparse.Namespace], int],
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    hint: str,
) -> int:
    """Run a command line; returns the exit status: that of ``run``, 2 after a mistake, 130 after a Ctrl-C.

    It is 141 where the reader of the output has gone, as with ``| head``: the status a shell gives such a program.

    Args:
        run: does what the parsed command line asks for.
        arguments: None reads ``sys.argv``.
        hint: what an interrupted user should know, such as "nothing was written".
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files are bytes, not always of an encoding
    try:
        status = run(parser.parse_args(arguments))
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ninterrupted; {hint}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still in the buffer
        print("stopped: nobody reads the output any more", file=sys.stderr)
        return 141
    except OSError as error:
        if error.filename is None:
            raise
        shown = str(error.filename)
        shown = shown if len(shown) <= LONGEST_SHOWN else f"{shown[:LONGEST_SHOWN]}..."
        print(f"error: {shown} must be readable or writable, found: {error.strerror}; name another", file=sys.stderr)
        return 2


def words(text: str, flag: str) -> list[str]:
    """``"a, b,a"`` as ``["a", "b"]``.

    Raises:
        UserError: no word; ``flag`` is named.
    """
    found = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not found:
        raise UserError(f"{flag} needs at least one value, found {text!r}")
    return found


def folder_name(text: str) -> str:
    """What ``--name`` gave, if it names one folder and none above it.

    Raises:
        UserError: it does not.
    """
    if Path(text).name != text or text in ("", ".."):
        raise UserError(f"--name must be a plain folder name, found {text!r}")
    return text


def parse_settings(texts: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, str]]:
    """``["ogm.alpha=0.5"]`` as ``{"ogm": {"alpha": "0.5"}}``.

    Raises:
        UserError: not of that form, or a name that takes no part in this call.
    """
    known = [*names, "optimizer", "schedule"]
    settings: dict[str, dict[str, str]] = {}
    for text in texts:
        path, equals, value = text.partition("=")
        owner, dot, option = path.rpartition(".")
        if not (equals and dot and owner and option):
            raise UserError(f"--set takes NAME.OPTION=VALUE, such as optimizer.lr=0.01, found {text!r}")
        if owner not in known and not owner.startswith("encoder."):
            raise UserError(f"--set {text}: {owner!r} takes no part in this call{near_misses(owner, known)}")
        settings.setdefault(owner, {})[option] = value
    return settings


def choose_device(name: str) -> torch.device:
    """``auto`` is the GPU where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda needs a GPU that torch can use, found none: use --device cpu or auto")
    device = torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True  # the same run must end with the same bytes
    return device


def manage_memory(spare: bool) -> bool:
    """Say what becomes of memory that is free again, for the rest of this process, as far as the C library can be told.

    Args:
        spare: give blocks of 2 MB and more back to the system at once, which takes little memory; else keep all of them
            for the next tensors until the epoch ends. By itself the C library gives back those above 32 MB: a network's
            largest activations, whose pages the system then has to clear again in every step. Large pages save some of
            that where memory is spared, and gaps between blocks where it is kept.

    Returns:
        whether the C library is one that can be told so.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    wanted = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1}  # -1: never
    if spare:  # 65536 and 64 MB are what glibc has, or comes to, by itself; they would not be the same once one is set
        wanted = {M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: 2**21, M_TRIM_THRESHOLD: 2**26}
    return mallopt is not None and all(mallopt(which, value) for which, value in wanted.items())


def manage_memory_for(precision: str, device: torch.device, spare: bool | None = None) -> bool:
    """:func:`manage_memory` as asked; where nothing is said, memory is spared in fp32, and on a GPU left as it is.

    Returns:
        False where the C library cannot be told so.
    """
    if device.type != "cpu" and not spare:
        return True
    return manage_memory(precision == "fp32" if spare is None else spare)


def data_root(given: Path | None) -> Path | None:
    """``--data-root``, else ``$BALANCEBENCH_DATA``, else :func:`default_data` where it exists."""
    named = given or os.environ.get("BALANCEBENCH_DATA")
    if named:
        return Path(named).expanduser()
    return default_data() if default_data().is_dir() else None


def default_data() -> Path:
    """``data`` in the checkout that this file belongs to, else in the working directory."""
    return HERE.parent / "data" if (HERE.parent / "setup.cfg").exists() else Path("data")


def default_out() -> Path:
    """``results`` in the checkout that this file belongs to, else in the working directory."""
    return HERE.parent / "results" if (HERE.parent / "setup.cfg").exists() else Path("results")


def recorded(out: Path | None) -> Store:
    """The results folder ``--out``, else :func:`default_out`, for what only reads it.

    Raises:
        UserError: it has no records.
    """
    store = Store(out if out is not None else default_out())
    if not (store.root / "records").is_dir():
        raise UserError(
            f"--out must be a folder with the records of runs, found no folder {store.root / 'records'}: "
            "train with benchmarks/run.py, or name another --out"
        )
    return store


def duration(seconds: float) -> str:
    """``95`` as ``1 min 35 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def short(path: Path) -> str:
    """Relative to the working directory where it lies below it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
