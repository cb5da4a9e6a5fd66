"""A power cut at every moment of training, judging, exporting and predicting, replayed.

Each verb runs once under strace; every folder that a cut could have left (`power_cut.Disk.states`)
is built and opened. Nothing may open as something that it is not: a finished run is the run, a
table is whole, a bundle answers as the old or the new one. What cannot be opened is refused with a
`RecameError`; what a finished program promised stays, whatever the disk dropped.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

import recame
from recame.errors import RecameError
from recame.export.export import export
from recame.runs.folder import RunFolder

sys.path.insert(0, str(Path(__file__).parent))
from power_cut import Call, Disk, State, record, snapshot

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace: apt install strace"),
]

#: States from which a verb is called again, spread over all that differ.
RESUMED = 12


class Replay:
    """A recorded verb, and what its states turn out to be."""

    def __init__(
        self,
        room: Path,
        verb: Callable[..., list[str]],
        environment: dict[str, str],
        tell: Callable[[str], None],
    ) -> None:
        self.room, self.verb, self.environment = room, verb, environment
        self.refusal, self._tell = "", tell

    def record(self, *words: object) -> None:
        """Run the verb; its words name paths below the room or outside of it."""
        self._words, self.before = words, snapshot(self.room)
        self.calls: list[Call] = record(
            self.verb(*words), self.room, env=self.environment, capture_output=True
        )
        self.after = snapshot(self.room)
        disk = Disk(self.room, self.before)
        for call in self.calls:
            disk.take(call)
        assert disk.files() == self.after, "the recording is not understood"

    def states(self) -> list[State]:
        """Each folder that a cut could have left, once."""
        return list(Disk(self.room, self.before).states(self.calls))

    def check(self, opened: Callable[[Path, State], str], promised: str) -> list[tuple[State, str]]:
        """Open each state; `opened` says what it is, in the end what was `promised`."""
        found = [(state, self._open(opened, state)) for state in self.states()]
        outcomes = Counter(what for _, what in found)
        self._tell(
            f"{self._words[0]}: {len(self.calls)} calls, {len(found)} states: {dict(outcomes)}"
        )
        for state in Disk(self.room, self.before).final_states(self.calls):
            outcome = self._open(opened, state)
            assert outcome == promised, f"lost at the end: {state.kind}: {outcome} {self.refusal}"
        return found

    def _open(self, opened: Callable[[Path, State], str], state: State) -> str:
        where = f"after call {state.after} of {len(self.calls)}: {state.kind}"
        state.build(self.room)
        try:
            outcome = opened(self.room, state)
        except RecameError as error:
            outcome = f"refused: {type(error).__name__}"
            self.refusal = str(error)
        except Exception as error:
            raise AssertionError(f"{where}: {error!r}") from error
        assert not outcome.startswith("WRONG"), f"{where}: {outcome}"
        return outcome


@pytest.fixture
def replay(
    room: Path,
    verb: Callable[..., list[str]],
    environment: dict[str, str],
    tell: Callable[[str], None],
) -> Replay:
    return Replay(room, verb, environment, tell)


def spread(states: Sequence[State]) -> list[State]:
    """A few of many, the first and the last among them."""
    places = np.linspace(0, len(states) - 1, min(RESUMED, len(states))).astype(int)
    return [states[place] for place in np.unique(places)]


def weights(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


def test_training(replay: Replay, defects: Path, tiny_words: list[str]) -> None:
    room = replay.room
    # A checkpoint is written beside where temporary files lie, then moved.
    (room / "tmp").mkdir()
    replay.environment = replay.environment | {"TMPDIR": str(room / "tmp")}
    replay.record("train", defects, "--out", room / "run", *tiny_words)
    expected = snapshot(room / "run")
    answers = recame.load(room / "run").predict(defects / "hole")

    def opened(room: Path, state: State) -> str:
        if not (room / "run" / "run.json").exists():
            return "no run"
        folder = RunFolder.open(room / "run")
        folder.load_config()
        if not folder.finished:
            return "unfinished"
        found = recame.load(folder.path).predict(defects / "hole")
        same = all(
            np.array_equal(one.probabilities, other.probabilities)
            for one, other in zip(found, answers, strict=True)
        )
        for name in ("metrics.json", "history.csv", "config.yaml", "manifest.csv"):
            same &= (folder.path / name).read_bytes() == expected[name]
        return "finished" if same else "WRONG: finished as another run"

    found = replay.check(opened, "finished")
    unfinished = [state for state, what in found if what == "unfinished"]
    for state in spread(unfinished):
        run = state.build(room) / "run"
        recame.train(defects, out=run, resume=True)
        assert weights(run) == expected["model.safetensors"], f"{state.after}: {state.kind}"


def test_judging(replay: Replay, trained: Path) -> None:
    run = Path(shutil.copytree(trained, replay.room / "run"))
    shutil.rmtree(run / "evaluation")
    before = json.loads((run / "metrics.json").read_text())
    before.pop("test")
    (run / "metrics.json").write_text(json.dumps(before))
    replay.record("evaluate", run)
    expected = json.loads((run / "metrics.json").read_text())
    table = (run / "evaluation" / "test" / "predictions.parquet").read_bytes()

    def opened(room: Path, state: State) -> str:
        metrics = json.loads((room / "run" / "metrics.json").read_bytes())
        kept = room / "run" / "evaluation" / "test" / "predictions.parquet"
        if kept.exists() and kept.read_bytes() != table:
            return "WRONG: another table of predictions"
        if metrics == expected:
            return "judged" if kept.exists() else "WRONG: figures without predictions"
        return "not judged" if metrics == before else "WRONG: other figures"

    found = replay.check(opened, "judged")
    for state in spread([state for state, what in found if what == "not judged"]):
        run = state.build(replay.room) / "run"
        recame.evaluate(run)
        assert json.loads((run / "metrics.json").read_bytes()) == expected


@pytest.mark.parametrize("model", ["run", "bundle"])
def test_predicting(model: str, replay: Replay, trained: Path, defects: Path) -> None:
    path = trained
    if model == "bundle":
        path = replay.room.parent / "bundle"
        export(trained, out=path)
    out = replay.room / "table.csv"
    replay.record("predict", path, defects, "-o", out)
    expected = out.read_bytes()

    def opened(room: Path, state: State) -> str:
        if not out.exists():
            return "no table"
        return "table" if out.read_bytes() == expected else "WRONG: another table"

    found = replay.check(opened, "table")
    for state in spread([state for state, what in found if what == "no table"]):
        state.build(replay.room)
        recame.predict(path, defects, out=out)
        assert out.read_bytes() == expected, f"{state.after}: {state.kind}"
        assert [path.name for path in replay.room.iterdir()] == [out.name]


@pytest.mark.parametrize("old", [False, True], ids=["new", "in place of another"])
def test_exporting(
    old: bool,
    replay: Replay,
    trained: Path,
    defects: Path,
    tiny_config: Callable[..., recame.Config],
) -> None:
    bundle, asked = replay.room / "bundle", [str(path) for path in sorted(defects.rglob("*5.png"))]
    answers = {}
    if old:
        other = recame.train(defects, tiny_config(run__seed=9), out=replay.room.parent / "other")
        export(other.path, out=bundle)
        answers["old bundle"] = recame.load(bundle).predict(asked)
    replay.record("export", trained, "--out", bundle, *(["--force"] if old else []))
    answers["new bundle"] = recame.load(bundle).predict(asked)

    def opened(room: Path, state: State) -> str:
        if not bundle.exists() and not old:
            return "no bundle"
        found = recame.load(bundle).predict(asked)
        for name, expected in answers.items():
            if all(
                np.array_equal(one.probabilities, other.probabilities)
                for one, other in zip(found, expected, strict=True)
            ):
                return name
        return "WRONG: a bundle of neither run"

    found = replay.check(opened, "new bundle")
    if old:
        assert {what for _, what in found} == {"old bundle", "new bundle"}
