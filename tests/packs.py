"""Packs to be damaged: a small one, ways to damage it, and ways to read it."""

import json
import os

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from balancebench_udi.data.pack import INDEX, LABEL, MANIFEST, PROBLEMS, verify_pack
from balancebench_udi.data.pack.format import manifest_text
from balancebench_udi.errors import UserError
from tests.unit.test_pack import Toy, prepare

QUICK = settings(
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SMALL_FILES = (LABEL, INDEX, PROBLEMS, MANIFEST)
ARRAYS = ("wide.npy", "small.npy")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def sentence(call):
    """The sentence that ``call`` ends with; None where it just ends."""
    try:
        call()
    except UserError as error:
        text = str(error)
    else:
        return None
    assert "\n" not in text
    assert 20 < len(text) < 1500
    return text


def refused(call):
    """The sentence that ``call`` ends with."""
    text = sentence(call)
    assert text is not None, "it was not refused"
    return text


def every_way(source, root):
    """Whatever reads a pack, the source being as it was."""
    return (lambda: Toy().load(root), lambda: prepare(source, root), lambda: verify_pack(Toy(), root, quiet=True))


def flip(path, at, bit=0, restore=False):
    """Change one bit; with the time of the last change as before where ``restore``."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)
    if restore:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def reseal(folder, **changes):
    """Change fields of the manifest (None removes one), with the digest that belongs to it."""
    manifest = {**json.loads((folder / MANIFEST).read_text()), **changes}
    (folder / MANIFEST).write_text(manifest_text({n: v for n, v in manifest.items() if v is not None}))


def values(root):
    """All that a loaded pack gives to training."""
    bundle = Toy().load(root)
    bundle.verify()
    splits = {name: bundle.split(name) for name in ("train", "val", "test")}
    rows = {name: torch.arange(len(split)) for name, split in splits.items()}
    return (
        bundle.classes,
        bundle.fingerprint,
        dict(bundle.facts),
        {name: split.target.tolist() for name, split in splits.items()},
        {(n, m): s.stored(m, rows[n]).tolist() for n, s in splits.items() for m in bundle.modalities},
    )
