"""What a user reads who asks decisions of what can tell nothing, or little: a sentence each."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from recame.errors import ConfigError
from recame.files import read_json
from recame.label_space import LabelSpace
from recame.reports.tuning import _with_normal
from recame.runs.folder import RunFolder

Recame = Callable[..., tuple[int, str, str]]

COUNTS = {"ok": 150, "scratch": 120, "dent": 120, "hole": 120}
#: Nothing is called unknown, which spares the look at what trained.
KNOWN = "unknown_false_alarm: off"


@pytest.fixture(scope="module")
def fresh(write_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of the four classes, which the run has not seen."""
    return write_images(tmp_path_factory.mktemp("answers") / "fresh", COUNTS, seed=7)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def tune(recame: Recame, run: Path, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """`recame tune` with limits as YAML: the exit code, and all that is printed, in one line."""

    def call(calibration: Path, limits: str = KNOWN, normal: str | None = "ok") -> tuple[int, str]:
        path = tmp_path / "limits.yaml"
        path.write_text(limits)
        words = () if normal is None else ("--normal", normal)
        asked = ("--calibration", calibration, "--limits", path)
        code, out, err = recame("tune", run, *asked, *words)
        if code:
            assert out == ""
            assert len(err.strip().splitlines()) == 1
            assert "policy" not in read_json(run / "decisions.json")
        return code, " ".join((err if code else out).split())

    return call


def some(fresh: Path, folder: Path, **counts: int) -> Path:
    """The first images of some classes."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for path in sorted((fresh / name).iterdir())[:count]:
            shutil.copy(path, folder / name)
    return folder


def test_no_normal_class(tune: Callable[..., tuple[int, str]], run: Path, fresh: Path) -> None:
    told = (
        f"error: {run} does not say which class is normal; name it (ok looks "
        f"like it): recame tune {run} --normal ok"
    )
    assert tune(fresh, normal=None) == (2, told)


def test_no_class_is_proposed_that_may_be_a_defect() -> None:
    space = LabelSpace(("crack", "dent"), (9, 9))
    with pytest.raises(ConfigError, match=r"--normal CLASS\. If every class is a defect") as told:
        _with_normal(space, None, Path("runs/first"))
    assert "--normal crack" not in str(told.value)


@pytest.mark.parametrize(("number", "images"), [(150, "150 images"), (1, "1 image")])
def test_no_defects_in_the_calibration(
    tune: Callable[..., tuple[int, str]], fresh: Path, tmp_path: Path, number: int, images: str
) -> None:
    told = (
        f"error: The calibration holds {images} of ok and no defect, so it is not known how "
        "often a defect would be released. Give labelled images of the defects too."
    )
    assert tune(some(fresh, tmp_path / "good", ok=number)) == (2, told)


def test_one_image_in_the_calibration(
    tune: Callable[..., tuple[int, str]], run: Path, fresh: Path, tmp_path: Path
) -> None:
    code, told = tune(some(fresh, tmp_path / "one", dent=1))
    assert code == 0
    assert "Fitted to 1 labelled image of " in told
    assert (
        "No limit is promised for escapes of dent: it has too few images (0 of 1 image in the "
        "calibration)." in told
    )
    assert (
        "No image is released, since no escape limit is promised: a limit of 2% for one class "
        "takes 173 images of it, none of them released." in told
    )
    assert (
        "No image of ok, scratch, hole is in the calibration: it is not known how often one is "
        "released or called something else." in told
    )
    assert "0.0% pass, 100.0% are classified automatically, 0.0% go to a person" in told
    assert (run / "decisions.html").exists()


def test_eight_images(
    recame: Recame, tune: Callable[..., tuple[int, str]], run: Path, fresh: Path, tmp_path: Path
) -> None:
    code, told = tune(some(fresh, tmp_path / "eight", ok=2, scratch=2, dent=2, hole=2), "{}")
    assert code == 0
    for name in ("scratch", "dent", "hole"):
        assert (
            f"No limit is promised for escapes of {name}: it has too few images (0 of 2 images in "
            "the calibration)." in told
        )
    assert "No image is released, since no escape limit is promised: a limit of 2% for one" in told
    assert "Of 2 normal images 100.0% are not released (34% to 100%)." in told
    recame("predict", run, fresh / "ok", "--out", tmp_path / "out.csv")
    assert "release" not in set(pd.read_csv(tmp_path / "out.csv")["action"])
    left, _, err = recame("verify", run, some(fresh, tmp_path / "others", ok=3, hole=3))
    assert (left, err) == (
        2,
        f"error: {run} makes no promise that could be verified: its images were too few.\n",
    )


NOTHING = "Nothing was loosened. Label more images, ask for escape: smallest, or give these classes"


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        (
            "escape: 0",
            (
                "error: Limits that these images cannot promise: scratch 0.00% (120 images: no "
                "number promises 0; these promise at most 3.8%); dent 0.00% (120 images: no "
                "number promises 0; these promise at most 3.8%); hole 0.00% (120 images: no "
                f"number promises 0; these promise at most 3.8%). {NOTHING} limits that their "
                "images promise."
            ),
        ),
        (
            "escape: {dent: 0.001}",
            (
                "error: Limits that these images cannot promise: dent 0.10% (120 images: it takes "
                f"4,590; these promise at most 3.8%). {NOTHING} limits that their images promise."
            ),
        ),
        ("escape: 1.5", "error: limits.yaml: escape is 1.5; it must be a number from 0 to 1."),
        (
            "confidence: 1",
            "error: limits.yaml: confidence is 1; it must be a number from 0.5 to 1.",
        ),
        (
            "unknown_false_alarm: 0",
            (
                "error: unknown_false_alarm 0.00% overall: no number of images promises 0, and "
                "a limit above 50% is worth nothing. Give a share between them, smallest, or off: "
                "then no image is called unknown."
            ),
        ),
    ],
)
def test_a_limit_of_0_and_other_impossible_ones_are_refused(
    tune: Callable[..., tuple[int, str]], fresh: Path, tmp_path: Path, limits: str, told: str
) -> None:
    unknown = "" if "unknown" in limits else f"\n{KNOWN}"
    code, found = tune(fresh, f"{limits}{unknown}")
    assert (code, found.replace(f"{tmp_path}/", "")) == (2, told)


def test_limits_that_can_only_be_missed_are_said_to_be_missed(
    tune: Callable[..., tuple[int, str]], fresh: Path, tmp_path: Path
) -> None:
    few = some(fresh, tmp_path / "few", **dict.fromkeys(COUNTS, 4))  # so that nothing is released
    code, told = tune(few, f"purity: 1\noverkill: 0\nreview: {{share: 0}}\n{KNOWN}")
    assert code == 0
    assert "No limit is promised for the purity of dent: no number of images shows a purity" in told
    assert (
        "Overkill: 100.0% of 4 normal images are not released (51.0% to 100.0%); the limit is "
        "0.0%. No escape limit was loosened for it." in told
    )
    assert (
        "Review: 100.0% of the images of the line go to a person; the limit is 0.0%. No limit "
        "was loosened for it" in told
    )


def test_a_class_unseen_in_the_calibration(
    tune: Callable[..., tuple[int, str]], fresh: Path, tmp_path: Path
) -> None:
    without = some(fresh, tmp_path / "without", ok=150, scratch=120, dent=120)
    code, told = tune(without, f"escape: 0.05\n{KNOWN}")
    assert (code, told) == (
        2,
        (
            "error: Limits that these images cannot promise: hole 5.00% (0 images: it takes 90; "
            f"these promise nothing). {NOTHING} limits that their images promise."
        ),
    )
    code, told = tune(without)
    assert code == 0
    assert (
        "No limit is promised for escapes of hole: it has too few images (0 of 0 images in the "
        "calibration)." in told
    )
    assert (
        "No image of hole is in the calibration: it is not known how often one is released or "
        "called something else." in told
    )


def test_no_group_column(tune: Callable[..., tuple[int, str]], fresh: Path) -> None:
    assert tune(fresh, f"group: board\n{KNOWN}") == (
        2,
        (
            f"error: {fresh} has no column 'board' to group images by; it has label. "
            "Add the column, or name another one (group in the limits): images of one board or "
            "lot are not independent."
        ),
    )
    assert (
        "No column says which images belong together (one board, wafer or lot): images are taken "
        "as independent. If they are not, the promises are too optimistic: name the column as "
        "group." in tune(fresh)[1]
    )


def test_scores_that_are_no_numbers(
    tune: Callable[..., tuple[int, str]], fresh: Path, tmp_path: Path
) -> None:
    mixed = some(fresh, tmp_path / "mixed", **COUNTS)
    broken = mixed / "hole" / "000.png"
    broken.write_bytes(b"no image")
    code, told = tune(mixed)
    assert code == 0
    assert f"1 image cannot be read, and counts as sent to a person: {broken}" in told
    assert "1 image of the calibration has no finite score; such images go to a person." in told


def test_no_product_column(
    recame: Recame,
    tune: Callable[..., tuple[int, str]],
    run: Path,
    fresh: Path,
    tmp_path: Path,
) -> None:
    """A run whose decisions tell new products, and images that do not name theirs."""
    manifest = pd.read_csv(run / "manifest.csv")
    RunFolder(run).save_manifest(manifest.assign(product=["A", "B"] * (len(manifest) // 2)))
    assert tune(fresh)[0] == 0
    paths = [str(path) for path in sorted(fresh.rglob("*.png"))[::20]]
    lot = pd.DataFrame({"image": paths, "label": [Path(path).parent.name for path in paths]})
    lot.to_csv(tmp_path / "lot.csv", index=False)
    told = (
        "warning: The decisions recognise new products by the column 'product', but the table of "
        "images has no such column: an image of a product that training has not seen is decided "
        "like any other. Add the column.\n"
    )
    code, _, err = recame("predict", run, tmp_path / "lot.csv", "--out", tmp_path / "out.csv")
    assert (code, err) == (0, told)
    code, _, err = recame("evaluate", run, tmp_path / "lot.csv", "--no-report")
    assert (code, err) == (0, told)
    lot.assign(product="A").to_csv(tmp_path / "lot.csv", index=False)
    assert recame("evaluate", run, tmp_path / "lot.csv", "--no-report")[2] == ""


def test_a_calibration_of_reviewed_images(
    recame: Recame, tune: Callable[..., tuple[int, str]], run: Path, fresh: Path, tmp_path: Path
) -> None:
    """What people saw for their score, with their labels, as a lot's table has them."""
    assert recame("predict", run, fresh, "--out", tmp_path / "lot.csv")[0] == 0
    lot = pd.read_csv(tmp_path / "lot.csv")
    lot["label"] = [Path(name).parent.name for name in lot["image"]]
    lot.assign(action="review", reason="below_release").to_csv(tmp_path / "lot.csv", index=False)
    told = (
        f"error: {tmp_path / 'lot.csv'} holds 510 images, all sent to people because of "
        "their score, so nothing is known about released images. Promises need images that were "
        "drawn whatever their score (audit in the limits of recame tune)."
    )
    assert tune(tmp_path / "lot.csv") == (2, told)
