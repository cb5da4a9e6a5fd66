from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from recame.bench.queue.display import _recorded_seconds
from recame.bench.queue.job import (
    _judged_splits,
    _kept_phase,
    is_trained,
    student_changes,
    training_facts,
)
from recame.config import Config
from recame.errors import CheckpointError, ConfigError
from recame.files import write_json
from recame.runs.folder import RunFolder

ASKED = {"auto": Config(), 1.5: Config().updated({"objective.tau": 1.5})}


def begun(folder: Path, asked: Config) -> RunFolder:
    """A run whose tau is 1.5, as asked or as decided."""
    run = RunFolder.free(folder)
    run.begin(
        folder, "f00d", asked.updated({"objective.tau": 1.5, "run.precision": "32"}), asked=asked
    )
    return run


@pytest.mark.parametrize("then", ASKED)
@pytest.mark.parametrize("now", ASKED)
def test_the_same_value_decided_is_not_the_one_asked(
    then: object, now: object, tmp_path: Path
) -> None:
    run = begun(tmp_path / "run", ASKED[then])
    if then != now:
        with pytest.raises(ConfigError, match=f"objective.tau: {then!r} then, {now!r} now"):
            is_trained(run.path, ASKED[now])
        return
    assert not is_trained(run.path, ASKED[now])
    run.finish()
    assert is_trained(run.path, ASKED[now])


def test_a_run_of_the_version_before_knows_what_was_decided_alone(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", ASKED["auto"])
    (run.path / "asked.yaml").unlink()
    info = run.info()
    del info["settings"]
    write_json(run.path / "run.json", info)
    assert not is_trained(run.path, ASKED["auto"])
    assert not is_trained(run.path, ASKED[1.5])
    with pytest.raises(ConfigError, match=r"objective\.tau: 1\.5 then, 1\.0 now"):
        is_trained(run.path, Config().updated({"objective.tau": 1.0}))


def test_a_planned_tau_is_not_handed_to_a_student() -> None:
    teacher = ASKED["auto"].updated({"objective.tau": (1.0, 2.0), "finetune.lr": 0.1})
    changes = student_changes(Config().updated({"model.num_experts": 1}), teacher)
    assert "objective.tau" not in changes
    assert changes["finetune.lr"] == 0.1
    asked = Config().updated({"model.num_experts": 1, "objective.tau": 1.5})
    assert student_changes(asked, teacher)["objective.tau"] == 1.5


@pytest.mark.parametrize("text", ["", '{"kept": "fi', "[]", '{"kept": 3}'])
def test_a_torn_record_of_the_phases_is_refused(text: str, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert _kept_phase(run) == "last"
    write_json(tmp_path / "phases.json", {"kept": "joined"})
    assert _kept_phase(run) == "joined"
    (tmp_path / "phases.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"phases\.json .*remove .*runs this job again"):
        _kept_phase(run)


@pytest.mark.parametrize("text", ["", '{"test": {"a', "[]", '{"val": {}}'])
def test_torn_figures_are_refused(text: str, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    write_json(tmp_path / "metrics.json", {"val": {}, "test": {"a": 1}})
    assert _judged_splits(run, ("test",)) == {"test": {"a": 1}}
    (tmp_path / "metrics.json").write_text(text, encoding="utf-8")
    with pytest.raises(
        CheckpointError, match=r"metrics\.json .*remove it.*evaluates the run again"
    ):
        _judged_splits(run, ("test",))


def test_a_torn_history_makes_no_cheaper_run(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", ASKED["auto"].updated({"finetune.epoch_size": 10}))
    run.save_config(run.load_config().updated({"finetune.epochs": 2}))
    run.save_table(run.history_path, pd.DataFrame({"epoch": [1, 2], "seconds": [3.0, 4.0]}))
    assert training_facts(run.path)["train_s"] == 7.0
    lines = run.history_path.read_text("utf-8").splitlines(keepends=True)
    for kept in (0, 2):
        run.history_path.write_text("".join(lines[:kept]), encoding="utf-8")
        with pytest.raises(CheckpointError, match=r"history\.csv cannot be used"):
            training_facts(run.path)


@pytest.mark.parametrize(
    "text", ["", "[1]", "[" * 100_000, '{"train_s": NaN, "evaluate_s": 1}', '{"train_s": 1}']
)
def test_a_damaged_result_foretells_no_end(text: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(text, encoding="utf-8")
    assert _recorded_seconds(path) is None
    write_json(path, {"train_s": 2, "evaluate_s": 0.5})
    assert _recorded_seconds(path) == 2.5
