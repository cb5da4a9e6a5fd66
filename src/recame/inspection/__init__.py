"""What a set of images is like, before any training."""

from recame.inspection.command import inspect_set
from recame.inspection.examine import Inspection, Structure, examine_set
from recame.inspection.findings import Finding, make_findings
from recame.inspection.issues import Hygiene
from recame.inspection.printing import print_inspection
from recame.inspection.saving import inspection_dict, save_inspection

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
