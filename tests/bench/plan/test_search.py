"""A search: its draws, its refusals, and from its trials to the plan that reads what it chose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from rich.console import Console

from recame.bench.command import Request, open_bench, write_results
from recame.bench.plan.knobs import Knob, drawn
from recame.bench.plan.method import Method, load_method, method_names
from recame.bench.plan.plan import Bench, load_plan, plan_methods
from recame.bench.plan.search import Search, expand_trials
from recame.bench.plan.tuned import (
    Tuned,
    at_its_best,
    found_by_search,
    read_tuned,
    write_tuned,
)
from recame.bench.queue.job import run_job
from recame.config import Config
from recame.errors import ConfigError

QUIET = Console(quiet=True)
LR = Knob(keys=("finetune.lr", "finetune.head_lr"), low=5e-4, high=4e-3, log=True)
MIXUP = Knob(keys=("augment.mixup",), choices=(0, 0.2, 0.4))
PLAIN = Method("plain", "plain", "here", knobs={"mixup": MIXUP})
OTHER = Method("other", "other", "here", settings={"objective.tau": 2.0})
SEARCH = Search(trials=4, knobs={"lr": LR})
CHIPS: dict[str, Any] = {
    "builder": "ic_defect_synth_100",
    "data_seed": "block",
    "options": {
        "num_images": 105,
        "num_classes": 3,
        "num_products": 3,
        "imbalance": 8,
        "size": 32,
        "val_per_class": 5,
        "test_per_class": 10,
    },
}
SETTINGS: dict[str, Any] = {
    "data.size": 32,
    "model.backbone": "test_resnet",
    "model.pretrained": False,
    "augment.symmetry": "flips",
    "finetune.epochs": 1,
    "finetune.batch_size": 16,
    "evaluation.views": 1,
    "evaluation.bootstrap": 20,
    "run.accelerator": "cpu",
}


def write_plan(folder: Path, name: str = "hunt", **changes: Any) -> Path:
    (folder / "own.yaml").write_text(
        "title: Own\nsource: this project\n"
        "knobs:\n  mixup: {keys: [augment.mixup], low: 0, high: 1}\n"
    )
    values: dict[str, Any] = {
        "title": name,
        "seeds": [3],
        "data": {"chips": {**CHIPS, "splits": ["val"]}},
        "methods": ["own.yaml"],
        "settings": SETTINGS,
        "search": {"trials": 2, "knobs": {"lr": LR.model_dump(mode="json", exclude_none=True)}},
    }
    values = {key: value for key, value in (values | changes).items() if value is not None}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def test_draws_fill_a_range_evenly_and_repeat() -> None:
    knobs = {"lr": LR, "mixup": MIXUP}
    trials = drawn(knobs, 7, 0, "ride")
    assert trials == drawn(knobs, 7, 0, "ride")
    assert trials != drawn(knobs, 7, 1, "ride")
    assert trials != drawn(knobs, 7, 0, "ncl")
    assert all(trial["finetune.lr"] == trial["finetune.head_lr"] for trial in trials)
    rates = np.log([trial["finetune.lr"] for trial in trials])
    parts = np.floor(7 * (rates - np.log(5e-4)) / np.log(8)).astype(int)
    assert sorted(parts) == list(range(7))
    # Another knob moves none of this one's draws.
    assert [t["augment.mixup"] for t in trials] == [
        t["augment.mixup"] for t in drawn({"mixup": MIXUP}, 7, 0, "ride")
    ]
    assert {trial["augment.mixup"] for trial in trials} == {0, 0.2, 0.4}


@pytest.mark.parametrize(
    ("knob", "message"),
    [
        ({"low": 1, "high": 2, "choices": [1, 2]}, "give one of the two"),
        ({"low": 1}, "give one of the two"),
        ({"low": 2, "high": 1}, "low=2.0 is not below high=1.0"),
        ({"low": 0, "high": 1, "log": True}, r"low=0.0 is not below high=1.0, above 0 with log"),
    ],
)
def test_a_knob_is_a_range_or_choices(knob: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Knob(keys=("finetune.lr",), **knob)


def test_trials_begin_with_the_method_itself_and_share_what_all_have() -> None:
    trials = expand_trials(SEARCH, {"plain": PLAIN, "other": OTHER})
    assert list(trials) == [f"{name}@{n}" for name in ("plain", "other") for n in range(4)]
    assert trials["other@0"].settings == {"objective.tau": 2.0}
    for n in range(1, 4):
        ours, theirs = (trials[f"{name}@{n}"].settings or {} for name in ("plain", "other"))
        assert ours["finetune.lr"] == theirs["finetune.lr"]
        assert theirs["objective.tau"] == 2.0
        assert "augment.mixup" in ours
        assert "augment.mixup" not in theirs


def test_two_knobs_of_one_setting_are_refused() -> None:
    search = Search(trials=3, knobs={"blend": MIXUP})
    with pytest.raises(ConfigError, match=r"knobs blend and mixup both set augment\.mixup"):
        expand_trials(search, {"plain": PLAIN})
    with pytest.raises(ConfigError, match=r"search\.metric='luck' is unknown"):
        expand_trials(Search(metric="luck"), {"plain": PLAIN})


@pytest.mark.parametrize("name", method_names())
def test_every_method_s_knobs_hold_settings(name: str) -> None:
    method = load_method(name, Path())
    for trial in expand_trials(Search(trials=5), {name: method}).values():
        assert trial.configure(Config()).run.seed == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"chips": CHIPS}}, r"evaluated on test, .*give it `splits: \[val\]`"),
        ({"equal": "time", "pace": "own"}, "`equal: time` contradicts this"),
        ({"tuned": "tuned.yaml"}, "tuned=.* cannot be read"),
        (
            {"data": {"chips": {**CHIPS, "splits": ["val"], "settings": {"finetune.lr": 0.1}}}},
            "set finetune.lr, so a knob of own would change nothing there",
        ),
    ],
)
def test_what_would_be_no_fair_search_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    plan = write_plan(tmp_path, **changes)
    with pytest.raises(ConfigError, match=message):
        plan_methods(load_plan(plan), tmp_path)


def scores(better: dict[str, float]) -> pd.DataFrame:
    """Two sets, two seeds; a trial's score is what `better` says, and a bit for the seed."""
    return pd.DataFrame(
        [
            {
                "data": data,
                "method": trial,
                "seed": seed,
                "split": "val",
                "balanced_accuracy": better.get(f"{data}/{trial}", 0.5) + seed / 100,
            }
            for data in ("a", "b")
            for trial in (f"{name}@{n}" for name in ("plain", "other") for n in range(4))
            for seed in (0, 1)
        ]
    )


def searched(frame: pd.DataFrame) -> Tuned:
    methods = {"plain": PLAIN, "other": OTHER}
    return found_by_search("hunt", SEARCH, frame, methods, ["a", "b"], [0, 1], {"data.size": 64})


def test_the_best_of_each_set_is_chosen_and_equals_leave_the_method_as_it_is(
    tmp_path: Path,
) -> None:
    frame = scores({"a/plain@2": 0.7, "b/plain@3": 0.6, "b/other@1": 0.4})
    found = searched(frame)
    assert found.methods["plain"].chosen == {"a": 2, "b": 3}
    assert found.methods["plain"].overall == 2
    assert found.methods["other"].chosen == {"a": 0, "b": 0}
    assert found.methods["plain"].trials[2].scores == {"a": 0.705, "b": 0.505}
    assert found.methods["plain"].trials[0].settings == {}
    write_tuned(tmp_path / "tuned.yaml", found)
    assert read_tuned(tmp_path / "tuned.yaml") == found
    lacking = searched(frame.drop(index=frame.index[frame["method"] == "other@3"][:1]))
    assert list(lacking.methods) == ["plain"]


def test_a_tuned_method_is_set_on_each_data_set_as_was_chosen() -> None:
    found = searched(scores({"a/plain@2": 0.7, "b/plain@3": 0.6}))
    best = at_its_best(PLAIN, found, {"a": "a", "b": "b", "new": "new", "b_long": "b"})
    trials = found.methods["plain"].trials
    assert best.on("a").settings == trials[2].settings
    assert best.on("b").settings == trials[3].settings
    assert best.on("new").settings == trials[2].settings
    assert best.on("b_long").settings == trials[3].settings  # the same images, longer
    assert best.sha256 != PLAIN.sha256
    assert "tuned: the best of 4 settings on `val` of hunt; a: finetune.lr=" in best.deviations[-1]


def test_what_was_not_tried_or_has_changed_is_refused() -> None:
    found = searched(scores({}))
    with pytest.raises(ConfigError, match="late is not one of those that hunt has tried"):
        at_its_best(Method("late", "late", "here"), found, {"a": "a"})
    changed = Method("other", "other", "here", settings={"objective.tau": 1.0})
    with pytest.raises(ConfigError, match="other is not what hunt has tried"):
        at_its_best(changed, found, {"a": "a"})


def test_another_protocol_is_told() -> None:
    found = searched(scores({}))
    assert found.other_protocol({"data.size": 64, "run.accelerator": "gpu"}) == []
    assert found.other_protocol({"data.size": 32, "model.stages": 5}) == [
        "data.size",
        "model.stages",
    ]


def test_from_a_search_to_the_plan_that_reads_it(tmp_path: Path) -> None:
    request = Request(write_plan(tmp_path), tmp_path / "hunt", {})
    bench = open_bench(request, QUIET)
    assert [job.key for job in bench.jobs()] == ["chips/own@0/seed3", "chips/own@1/seed3"]
    for job in bench.jobs():
        run_job(bench, job)
    files = {path.name: path for path in write_results(bench, request)}
    tuned = read_tuned(files["tuned.yaml"])
    assert tuned.seeds == (3,)
    rates = [trial.settings.get("finetune.lr") for trial in tuned.methods["own"].trials]
    assert rates[0] is None
    assert 5e-4 <= rates[1] <= 4e-3
    own = pd.read_csv(files["results.csv"]).set_index("method")["balanced_accuracy"]
    assert tuned.methods["own"].trials[1].scores == {"chips": pytest.approx(own["own@1"], abs=1e-6)}
    assert "A search: each method at 2 settings" in files["table.md"].read_text()

    second = write_plan(
        tmp_path,
        "judge",
        seeds=[4],
        data={"chips": CHIPS},
        search=None,
        tuned="hunt/tuned.yaml",
        methods=["own.yaml", {"method": "cross_entropy", "tuned": False}],
    )
    judge: Bench = open_bench(Request(second, tmp_path / "judge", {}), QUIET)
    number = tuned.methods["own"].chosen["chips"]
    wanted = rates[number] if number else 2e-3
    assert judge.config("chips", "own", 4).finetune.lr == wanted
    assert judge.config("chips", "cross_entropy", 4).finetune.lr == 2e-3
    changed = {**SETTINGS, "finetune.epochs": 2}
    other = write_plan(
        tmp_path,
        "other",
        data={"chips": CHIPS},
        search=None,
        tuned="hunt/tuned.yaml",
        settings=changed,
    )
    with pytest.raises(ConfigError, match=r"under other settings of all methods \(finetune\.epo"):
        plan_methods(load_plan(other), tmp_path)
