"""Checks of a data set before training; `checks/` has a file for each."""

from recame.inspection.check import Check, Inspection, SetFinding
from recame.inspection.examine import inspect_set
from recame.inspection.printing import print_inspection
from recame.inspection.saving import inspection_dict, inspection_dir, save_inspection

__all__ = [
    "Check",
    "Inspection",
    "SetFinding",
    "inspect_set",
    "inspection_dict",
    "inspection_dir",
    "print_inspection",
    "save_inspection",
]
