"""What the scripts of this folder have in common: parsing, errors, folders, the device, short texts."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import hashlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from balancebench_udi.errors import UserError, near_misses
from balancebench_udi.interruption import Stopped, listening
from balancebench_udi.places import LONGEST_NAME
from balancebench_udi.store import Store
from balancebench_udi.text import found, shortened
from benchmarks.streams import lossy

HERE = Path(__file__).resolve().parent
PROTOCOLS = HERE / "protocols"
PUBLISHED = HERE / "published.yaml"
ALONE = ("unimodal", "ensemble")
"""The methods that train every modality alone, in order of preference."""
LONGEST_SHOWN = 200
"""Characters of a value that a sentence shows."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Of mallopt, in glibc's malloc.h."""
LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""Read by torch at its first tensor: large ones then begin at a page and ask for large pages."""
os.environ.setdefault(LARGE_PAGES, "1")  # here: a module may make a tensor when it is imported


UNPRINTED = 4
"""Exit status where what a command prints could not be written, in any way but that its reader has gone (141)."""
STATUSES = """exit status: 0 done, 1 some run failed, 2 a mistake, 3 runs are missing because another process trains
them, 4 what was printed could not be written, 130 or 143 interrupted (Ctrl-C, SIGTERM), 141 nobody reads the output"""


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one sentence, like every other, and whose paths can be paths."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.register("type", Path, _path)

    def error(self, message: str) -> Any:
        raise UserError(f"{message}; see --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As the base class; it takes ``--seeds=--`` for an empty list, or breaks on it."""
        given = sys.argv[1:] if args is None else list(args)
        for text in given:
            flag, _, value = text.partition("=")
            if flag.startswith("--") and value == "--":
                self.error(f"argument {flag}: expected a value, found '--'")
        return super().parse_known_args(given, namespace)


def _path(text: str) -> Path:
    """What an option of the type ``Path`` gave, if the system can have such a path."""
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"must be text that can name a file, found {text!r}") from None
    if not text or b"\0" in encoded:
        raise argparse.ArgumentTypeError(f"must name a file or a folder, found {text!r}")
    return Path(text)


def guarded(
    run: Callable[[argparse.Namespace], int],
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    hint: str,
) -> int:
    """Run a command line; returns the exit status: that of ``run``, 2 after a mistake, 128 + its number after a signal.

    Where stdout cannot be written the work is done all the same; if it went well, the status is 141 where the reader
    has gone, as with ``| head`` (a shell gives it such a program), else 4.

    Args:
        run: does what the parsed command line asks for.
        arguments: None reads ``sys.argv``.
        hint: what an interrupted user should know, such as "nothing was written".
    """
    with lossy() as out:
        status = _status(run, parser, arguments, hint)
        sys.stdout.flush()
        if out is None or out.problem is None:
            return status
        if out.problem.errno == errno.EPIPE:
            print("stopped: nobody reads the output any more", file=sys.stderr)
            return status or 128 + signal.SIGPIPE
        print(f"error: stdout must take the output, found: {out.problem.strerror}; all else is done", file=sys.stderr)
        return status or UNPRINTED


def _status(
    run: Callable[[argparse.Namespace], int],
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    hint: str,
) -> int:
    """The status of the work itself."""
    try:
        with listening():
            return run(parser.parse_args(arguments))
    except SystemExit as end:  # of --help
        return int(end.code or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"\ninterrupted; {hint}", file=sys.stderr)
        return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)
    except OSError as error:
        if error.filename is None:
            raise
        shown = shortened(str(error.filename), LONGEST_SHOWN)
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
    if Path(text).name != text or text in ("", "..") or not text.isprintable():
        raise UserError(f"--name must be a plain folder name, found {found(text)}")
    if len(text.encode()) > LONGEST_NAME:
        raise UserError(f"--name must have at most {LONGEST_NAME} bytes, found {len(text.encode())}: shorten it")
    return text


def fitting(name: str) -> str:
    """``name`` as a folder can have it: a long one ends with six digits that stand for the whole."""
    encoded = os.fsencode(name)
    if len(encoded) <= LONGEST_NAME:
        return name
    return f"{encoded[: LONGEST_NAME - 10].decode(errors='ignore')}-{hashlib.sha256(encoded).hexdigest()[:6]}"


@contextlib.contextmanager
def fitting_in_memory() -> Iterator[None]:
    """Turn what Python and torch say of a size that no memory holds into a sentence.

    Raises:
        UserError: with their words.
    """
    try:
        yield
    except (MemoryError, OverflowError, RuntimeError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, RuntimeError) and not re.search("memory|overflow|too large|negative dim", said, re.I):
            raise
        raise UserError(f"data and networks must fit in memory, found: {said}; choose smaller options") from None


def check_jobs(count: int | None) -> None:
    """Refuse a ``--jobs`` that no machine of this size can do.

    Raises:
        UserError: that is so.
    """
    if count is not None and count < 1:
        raise UserError(f"--jobs must be at least 1, found {count}")
    most = max(16, 2 * (os.cpu_count() or 1))
    if count is not None and count > most:
        raise UserError(f"--jobs must be at most {most} on this machine, found {count}")


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
        return at_home(Path(named))
    return default_data() if default_data().is_dir() else None


def at_home(path: Path) -> Path:
    """``path`` with a leading ``~`` or ``~user`` replaced.

    Raises:
        UserError: there is no such user.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        raise UserError(f"{path} must begin with the home of a user that is here, found none: write it out") from None


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
