"""The table of contents: every method and dataset by name, and where its class lives. Nothing is imported here.

To add a method: one file in ``baselines/`` and one line below. A package outside this repository declares an entry
point in the group ``balancebench_udi.methods`` (or ``balancebench_udi.datasets``) instead, in the same string form.
"""

from importlib.util import find_spec
from pathlib import Path

from balancebench_udi.catalogue import Catalogue

METHODS = {
    "joint": "baselines.joint:Joint",
    "uniform": "baselines.joint:Uniform",
    "unimodal": "baselines.unimodal:Unimodal",
    "ensemble": "baselines.unimodal:Ensemble",
    "ogm": "baselines.ogm:OGM",
    "ogm_ge": "baselines.ogm:OGMGE",
    "agm": "baselines.agm:AGM",
    "pmr": "baselines.pmr:PMR",
    "mmpareto": "baselines.mmpareto:MMPareto",
    "udi": "balancebench_udi.udi:UDI",
}

DATASETS = {
    "manifest": "balancebench_udi.data.manifest:Manifest",
    "digits": "balancebench_udi.data.digits:Digits",
    "synthetic": "balancebench_udi.data.synthetic:Synthetic",
    "cgmnist": "balancebench_udi.data.cgmnist:CGMNIST",
    "avdigits": "balancebench_udi.data.avdigits:AVDigits",
    "mosi": "balancebench_udi.data.mosi:MOSI",
    "utd_mhad": "balancebench_udi.data.utd_mhad:UTDMHAD",
    "handwritten": "balancebench_udi.data.handwritten:Handwritten",
    "cremad": "balancebench_udi.data.cremad:CREMAD",
    "kinetics_sounds": "balancebench_udi.data.kinetics_sounds:KineticsSounds",
    "vggsound": "balancebench_udi.data.vggsound:VGGSound",
    "ave": "balancebench_udi.data.ave:AVE",
    "ucf101": "balancebench_udi.data.ucf101:UCF101",
    "food101": "balancebench_udi.data.food101:Food101",
    "mosei": "balancebench_udi.data.mosei:MOSEI",
    "mosi_sequences": "balancebench_udi.data.mosei:MOSISequences",
}


def _check_neighbours() -> None:
    """``baselines`` is a generic name: refuse one that belongs to somebody else."""
    found = find_spec("baselines")
    here = Path(__file__).resolve().parent
    where = Path(found.origin).resolve().parent if found is not None and found.origin else None
    if where != here / "baselines":
        raise ImportError(
            f"the package 'baselines' must lie beside {Path(__file__).resolve()}, found {where}: "
            "another package of that name shadows it; run from this checkout or remove the other one from sys.path"
        )


_check_neighbours()
methods = Catalogue("method", METHODS, "balancebench_udi.methods", "balancebench_udi.strategy:Strategy")
datasets = Catalogue("dataset", DATASETS, "balancebench_udi.datasets", "balancebench_udi.data.base:Dataset")
