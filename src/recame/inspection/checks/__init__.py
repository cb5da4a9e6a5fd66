"""The checks of a data set, one file each."""

from recame.inspection.check import Check
from recame.inspection.checks.classes import Classes
from recame.inspection.checks.corrections import Corrections
from recame.inspection.checks.duplicates import Duplicates
from recame.inspection.checks.files import Files
from recame.inspection.checks.groups import Groups
from recame.inspection.checks.label_errors import LabelErrors
from recame.inspection.checks.products import Products
from recame.inspection.checks.promises import Promises
from recame.inspection.checks.resolution import Resolution
from recame.inspection.checks.structure import Structure

#: The order in which checks run, and in which findings of the same level are listed.
CHECKS: tuple[type[Check], ...] = (
    Corrections,
    Files,
    Duplicates,
    LabelErrors,
    Groups,
    Classes,
    Products,
    Structure,
    Resolution,
    Promises,
)
