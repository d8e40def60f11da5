"""balancebench_udi: a benchmark toolkit for multimodal imbalance learning.

A third-party method imports from here and nowhere else::

    from balancebench_udi import Batch, Options, Output, Phase, Strategy, option
"""

from balancebench_udi.config import Options, option
from balancebench_udi.errors import RunFailed, UserError
from balancebench_udi.strategy import Batch, Output, Phase, Strategy, Task, View

__version__ = "0.1.0"
__all__ = ["Batch", "Options", "Output", "Phase", "RunFailed", "Strategy", "Task", "UserError", "View", "option"]
