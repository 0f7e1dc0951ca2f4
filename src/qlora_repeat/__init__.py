"""A reproducibility kit for the repeatability of QLoRA fine-tuning.

    import qlora_repeat as qr

    results = qr.run("pocket@bitwise", jobs=2)
    qr.tables(results, compare="published")

Each name is loaded when it is first used, and torch when something trains.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from qlora_repeat.api.arm_comparison import ArmComparison as ArmComparison
    from qlora_repeat.api.arm_comparison import compare as compare
    from qlora_repeat.api.comparison import Diff as Diff
    from qlora_repeat.api.comparison import diff as diff
    from qlora_repeat.api.rendered import Claims as Claims
    from qlora_repeat.api.rendered import Report as Report
    from qlora_repeat.api.rendered import Tables as Tables
    from qlora_repeat.api.rendered import claims as claims
    from qlora_repeat.api.rendered import report as report
    from qlora_repeat.api.rendered import tables as tables
    from qlora_repeat.api.rendered import write_all as write_all
    from qlora_repeat.api.results import Results as Results
    from qlora_repeat.api.results import paper_results as paper_results
    from qlora_repeat.api.results import read_results as read_results
    from qlora_repeat.api.studies import collect as collect
    from qlora_repeat.api.studies import fetch as fetch
    from qlora_repeat.api.studies import load_study as load_study
    from qlora_repeat.api.studies import run as run
    from qlora_repeat.api.verification import Verification as Verification
    from qlora_repeat.api.verification import verify as verify
    from qlora_repeat.errors import BusyError as BusyError
    from qlora_repeat.errors import KitError as KitError
    from qlora_repeat.errors import MissingError as MissingError
    from qlora_repeat.errors import StageError as StageError
    from qlora_repeat.errors import StoppedError as StoppedError
    from qlora_repeat.errors import UsageError as UsageError
    from qlora_repeat.results.trial_result import TrialResult as TrialResult
    from qlora_repeat.study.trial import Trial as Trial
    from qlora_repeat.study.workspace import Workspace as Workspace

_MODULES = {
    "api.arm_comparison": ("ArmComparison", "compare"),
    "api.comparison": ("Diff", "diff"),
    "api.rendered": ("Claims", "Report", "Tables", "claims", "report", "tables", "write_all"),
    "api.results": ("Results", "paper_results", "read_results"),
    "api.studies": ("collect", "fetch", "load_study", "run"),
    "api.verification": ("Verification", "verify"),
    "errors": ("BusyError", "KitError", "MissingError", "StageError", "StoppedError", "UsageError"),
    "results.trial_result": ("TrialResult",),
    "study.trial": ("Trial",),
    "study.workspace": ("Workspace",),
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names}
__all__ = ["__version__", *_PLACES]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
