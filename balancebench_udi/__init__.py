"""balancebench_udi: a benchmark toolkit for multimodal imbalance learning.

A third-party method imports from here and nowhere else::

    from balancebench_udi import Batch, Options, Output, Phase, Strategy, option
"""

from balancebench_udi._version import __version__
from balancebench_udi.config import Options, check_window, option
from balancebench_udi.errors import RunFailed, UserError
from balancebench_udi.strategy import Batch, Output, Phase, Strategy, Task, View

__all__ = [
    "Batch",
    "Options",
    "Output",
    "Phase",
    "RunFailed",
    "Strategy",
    "Task",
    "UserError",
    "View",
    "check_window",
    "option",
    "__version__",
]
