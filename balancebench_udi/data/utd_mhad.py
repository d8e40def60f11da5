"""UTD-MHAD: 27 human actions seen by a wearable inertial sensor and as a skeleton tracked in Kinect's depth images."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from balancebench_udi.config import Options, option
from balancebench_udi.data.archive import read_archive
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
from balancebench_udi.data.groups import Groups
from balancebench_udi.data.mat import read_mat
from balancebench_udi.errors import UserError

ACTIONS = (
    "swipe left",
    "swipe right",
    "wave",
    "clap",
    "throw",
    "arm cross",
    "basketball shoot",
    "draw x",
    "draw circle clockwise",
    "draw circle counter clockwise",
    "draw triangle",
    "bowling",
    "boxing",
    "baseball swing",
    "tennis swing",
    "arm curl",
    "tennis serve",
    "push",
    "knock",
    "catch",
    "pickup and throw",
    "jog",
    "walk",
    "sit to stand",
    "stand to sit",
    "lunge",
    "squat",
)
"""a1 to a27, in that order."""
TRAIN_SUBJECTS = (1, 3, 5, 7)
TEST_SUBJECTS = (2, 4, 6, 8)
_REMOVED = {(8, 1, 4), (23, 6, 4), (27, 8, 4)}
SEQUENCES = tuple(key for key in product(range(1, 28), range(1, 9), range(1, 5)) if key not in _REMOVED)
"""(action, subject, trial) of the 861 sequences: 27 x 8 x 4 without the three its authors removed as corrupted."""
WIDTH = {"inertial": 6, "skeleton": 60}
_VARIABLE = {"inertial": "d_iner", "skeleton": "d_skel"}
_HIP_CENTRE = 3
_FOLDER = "utd_mhad"
_ARCHIVES = (".zip", ".tar")


@dataclass(frozen=True)
class UTDMHADOptions(Options):
    """Options of :class:`UTDMHAD`."""

    length: int = option(64, "time steps that every sequence is resampled to; see the class", source="ours", at_least=2)
    centre: bool = option(
        True, "subtract the hip centre from all joints of a frame, whose own 3 channels become 0", source="ours"
    )
    val: str = option(
        "subject",
        "validation: subject holds out the train subject val_subject, stratified a share of every action of all four",
        source="ours",
        choices=("subject", "stratified"),
    )
    val_subject: int = option(7, "train subject held out; read with val=subject", source="ours", choices=TRAIN_SUBJECTS)
    val_share: float = option(
        0.1,
        "share of every action's training sequences held out; read with val=stratified",
        source="ours",
        above=0,
        at_most=0.5,
    )
    val_seed: int = option(0, "seed of the holdout; read with val=stratified", source="ours", at_least=0)


class UTDMHAD(Dataset):
    """UTD-MHAD, 861 sequences, 27 actions: ``inertial [length, 6]`` and ``skeleton [length, 60]``.

    Inertial: acceleration (g) and angular velocity (degrees a second) along three axes each, of the right wrist or, in
    actions 22-27, the right thigh. Skeleton: x, y, z (m) of 20 joints, joint after joint in the published order,
    centred on joint 4, the hip centre. The published cross-subject split: subjects 1, 3, 5, 7 train (431), 2, 4, 6, 8
    test (430).

    A sequence is stretched to ``length`` steps by linear interpolation in time, first and last step kept. Skeletons
    have 41-125 (median 67) frames, inertial sequences 107-326 (median 177) steps: 64 keeps the skeleton at about its
    own rate. Every channel is standardised by its mean and standard deviation over all steps of the remaining training
    sequences; a constant one becomes 0.

    The test subjects are unseen in training. Validation therefore holds a whole train subject out by default (108
    sequences; 107 for subject 1): a stratified share keeps every person in training and is far too easy. A logistic
    regression on inertial, skeleton and both reaches 0.87, 0.93, 0.98 on a stratified tenth and 0.65, 0.82, 0.90 on
    subject 7, with 0.73, 0.79, 0.84-0.85 on test either way. ``val=stratified`` leaves all four subjects to train on
    and should choose nothing.

    Reference: C. Chen, R. Jafari, N. Kehtarnavaz, UTD-MHAD: A Multimodal Dataset for Human Action Recognition Utilizing
    a Depth Camera and a Wearable Inertial Sensor, ICIP 2015.
    """

    name = "utd_mhad"
    reference = "Chen, Jafari and Kehtarnavaz, UTD-MHAD, ICIP 2015"
    needs = (
        f"{_FOLDER}/ with the folders Inertial/ and Skeleton/ of UTD-MHAD's .mat files, or archives (.zip or "
        ".tar) of these names (www.utdallas.edu/~kehtar/UTD-MHAD.html)"
    )
    Options = UTDMHADOptions

    def load(self, root: Path | None) -> Bundle:
        """Read, resample, centre and standardise the sequences.

        Raises:
            UserError: absent, damaged or incomplete files.
        """
        folder = inside(require_root(self, root), _FOLDER, *(f"Inertial{end}" for end in ("", *_ARCHIVES)))
        o = self.options
        files = {m: _read_files(folder, m) for m in WIDTH}
        action, subject, _ = np.array(SEQUENCES).T
        target = torch.from_numpy(action - 1).long()

        train = np.flatnonzero(np.isin(subject, TRAIN_SUBJECTS))
        if o.val == "subject":
            held = subject[train] == o.val_subject
            kept_rows, held_rows = train[~held], train[held]
        else:
            kept, chosen = stratified_holdout(target[train], o.val_share, o.val_seed)
            kept_rows, held_rows = train[kept], train[chosen]
        rows = {"train": kept_rows, "val": held_rows, "test": np.flatnonzero(np.isin(subject, TEST_SUBJECTS))}

        inputs: dict[str, dict[str, torch.Tensor]] = {part: {} for part in rows}
        for m in WIDTH:
            values = np.stack([_sequence(files[m][key], m, key, o.length, o.centre) for key in SEQUENCES])
            fit = values[rows["train"]]
            mean, scale = mean_and_scale(fit)
            for part, chosen_rows in rows.items():
                inputs[part][m] = torch.from_numpy(((values[chosen_rows] - mean) * scale).astype(np.float32))
        return Bundle(
            modalities={m: Modality("sequence", (o.length, width), "temporal", Affine()) for m, width in WIDTH.items()},
            classes=ACTIONS,
            fingerprint=fingerprint(
                {"dataset": self.name, "version": self.version, "options": o.as_dict()},
                *(files[m][key] for m in WIDTH for key in SEQUENCES),
            ),
            facts={
                "generated": False,
                "counts": {part: len(chosen_rows) for part, chosen_rows in rows.items()},
                "subjects": {part: np.unique(subject[chosen_rows]).tolist() for part, chosen_rows in rows.items()},
            },
            groups=Groups.of("subject", subject[rows["test"]]),
            **{part: Split(inputs[part], target[chosen_rows]) for part, chosen_rows in rows.items()},
        )


def resample(values: np.ndarray, length: int) -> np.ndarray:
    """``values [T, D]`` stretched to ``[length, D]`` by linear interpolation in time, both ends kept."""
    steps = torch.from_numpy(np.ascontiguousarray(values.T))[None]
    return F.interpolate(steps, length, mode="linear", align_corners=True)[0].T.numpy()


def _sequence(data: bytes, m: str, key: tuple[int, int, int], length: int, centre: bool) -> np.ndarray:
    """float64 ``[length, WIDTH[m]]``."""
    path, name = _file_name(m, key), _VARIABLE[m]
    values = read_mat(data, path, [name])[name].astype(np.float64)
    if m == "inertial":
        fits, expected = values.ndim == 2 and values.shape[1] == 6, "T x 6"
    else:
        fits, expected = values.ndim == 3 and values.shape[:2] == (20, 3), "20 x 3 x T"
    if not fits or values.size == 0:
        raise UserError(f"{name} in {path} must be {expected}, found {values.shape}; fetch it again")
    if m == "skeleton":
        if centre:
            values = values - values[_HIP_CENTRE]
        values = values.transpose(2, 0, 1).reshape(-1, WIDTH[m])
    return resample(values, length)


def _file_name(m: str, key: tuple[int, int, int]) -> str:
    action, subject, trial = key
    return f"a{action}_s{subject}_t{trial}_{m}.mat"


def _read_files(folder: Path, m: str) -> dict[tuple[int, int, int], bytes]:
    """(action, subject, trial) -> bytes of the 861 files of modality ``m``, from the folder or the archive."""
    unpacked = folder / m.capitalize()
    archive = next((p for end in _ARCHIVES if (p := folder / f"{m.capitalize()}{end}").is_file()), None)
    if unpacked.is_dir():
        source = unpacked
        found = {p.name: p.read_bytes() for p in unpacked.glob("*.mat")}
    elif archive is not None:
        source = archive
        found = read_archive(archive, ".mat")
    else:
        raise UserError(f"utd_mhad needs {UTDMHAD.needs}; {folder} holds no {unpacked.name}/")
    names = {key: _file_name(m, key) for key in SEQUENCES}
    if missing := [name for name in names.values() if name not in found]:
        raise UserError(
            f"{source} must hold all {len(names)} {m} sequences of UTD-MHAD, found {len(names) - len(missing)} and no "
            f"{missing[0]}; fetch it again"
        )
    return {key: found[name] for key, name in names.items()}
