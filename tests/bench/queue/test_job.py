from __future__ import annotations

from pathlib import Path

import pytest

from recame.bench.queue.job import is_trained, student_changes
from recame.config import Config
from recame.errors import ConfigError
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
