"""Decide on each part by the images that its cameras write into a folder, and tell the line.

    python examples/line.py BUNDLE INCOMING DONE --cameras 2

`b104_top.png` and `b104_side.png` are images of the part b104: its name ends at the last `_`. When
all its images are there, the part gets the action of its gravest image, so it is released only if
all of them are. Then the images move to DONE/ACTION/. After a stop, the program goes on with what
still lies in INCOMING; it may tell a part twice.

Cameras write under another ending (`b104_top.tmp`) and rename the file once it is whole. Put the
call to your PLC (OPC UA, Modbus, a database) into `tell`. The line must hold every part of which it
hears nothing.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import recame

#: The gravest first: a defect that is sure, what a person has to look at, a good part.
GRAVEST = ("automatic", "unreadable", "unknown", "review", "release")


def tell(part: str, action: str, why: str) -> None:
    """Replace this line by the call to your PLC."""
    print(f"{part}: {action} ({why})", flush=True)


def decide(
    model: recame.Predictor,
    incoming: Path,
    done: Path,
    cameras: int,
    wait_s: float,
    tell: Callable[[str, str, str], None] = tell,
) -> int:
    """Decide on all parts whose images are there, or have not come in `wait_s`; -> how many."""
    parts = defaultdict(list)
    for path in sorted(incoming.glob("*.png")):
        parts[path.stem.rpartition("_")[0] or path.stem].append(path)
    decided = 0
    for part, images in parts.items():
        if len(images) >= cameras:
            found = min(model.predict(images), key=lambda image: GRAVEST.index(image.action))
            action, why = found.action, found.note or found.label or found.reason
        elif time.time() - min(path.stat().st_mtime for path in images) > wait_s:
            action, why = "review", f"{len(images)} of {cameras} images came"
        else:
            continue
        tell(part, action, why)
        (done / action).mkdir(parents=True, exist_ok=True)
        for path in images:
            path.replace(done / action / path.name)
        decided += 1
    return decided


def main() -> None:
    """Watch a folder until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("incoming", type=Path)
    parser.add_argument("done", type=Path, help="on the same disk")
    parser.add_argument("--cameras", type=int, default=1, help="images of a part")
    parser.add_argument("--wait", type=float, default=5.0, help="seconds for a part's last image")
    given = parser.parse_args()
    model = recame.load(given.bundle)
    if model.describe()["policy"] is None:
        parser.error(
            f"{given.bundle} has no decisions, so nothing says what may be released: run "
            "`recame tune` first (docs/howto/limits.md)."
        )
    while True:
        if not decide(model, given.incoming, given.done, given.cameras, given.wait):
            time.sleep(0.01)


if __name__ == "__main__":
    main()
