"""What a set of images is like, before any training."""

from recame.evaluation.inspection.command import inspect_set
from recame.evaluation.inspection.findings import Finding, make_findings
from recame.evaluation.inspection.hygiene import Hygiene
from recame.evaluation.inspection.inspection import (
    Inspection,
    Structure,
    examine_set,
)
from recame.evaluation.inspection.printing import print_inspection
from recame.evaluation.inspection.saving import inspection_dict, save_inspection

__all__ = [
    "Finding",
    "Hygiene",
    "Inspection",
    "Structure",
    "examine_set",
    "inspect_set",
    "inspection_dict",
    "make_findings",
    "print_inspection",
    "save_inspection",
]
