from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from recame.bench.command import Request, open_bench
from recame.bench.plan.factorial import Factorial, expand
from recame.bench.plan.method import Method
from recame.bench.plan.plan import Bench, load_plan, plan_methods
from recame.errors import ConfigError

BASE = Method("bare", "Bare", "Nobody, 2020", settings={"objective.tau": 0.5})
SETTINGS: dict[str, dict[str, Any]] = {
    "attention": {"model.attention": "regional"},
    "hard": {"objective.hard_weight": 1},
    "experts": {"model.num_experts": 2, "objective.tau": [1, 2]},
    "mixup": {"augment.mixup": 0.4},
    "smooth": {"finetune.ema_decay": 0.9},
}
NESTED = {"settings": {"objective.distillation_weight": 0.6}, "within": "experts"}


def factorial(*names: str, **words: Any) -> Factorial:
    factors: dict[str, Any] = {name: {"settings": SETTINGS[name]} for name in names}
    factors |= words.pop("more", {})
    return Factorial.model_validate({"base": "bare", "factors": factors, **words})


def test_all_combinations_in_the_order_of_yates() -> None:
    plan = factorial("attention", "hard")
    assert plan.cells() == {
        "bare": (),
        "attention": ("attention",),
        "hard": ("hard",),
        "attention+hard": ("attention", "hard"),
    }
    assert plan.matrix().tolist() == [
        [-0.5, -0.5, 0.25],
        [0.5, -0.5, -0.25],
        [-0.5, 0.5, -0.25],
        [0.5, 0.5, 0.25],
    ]
    assert [term.name for term in plan.terms()] == ["attention", "hard", "attention:hard"]
    assert plan.resolution is None


def test_methods_are_the_base_with_the_settings_of_what_is_on() -> None:
    methods = expand(factorial("attention", "experts"), BASE)
    assert list(methods) == ["bare", "attention", "experts", "attention+experts"]
    assert methods["bare"] is BASE
    both = methods["attention+experts"]
    assert both.settings == {
        "objective.tau": [1, 2],
        "model.attention": "regional",
        "model.num_experts": 2,
    }
    assert list(both.settings) == ["objective.tau", "model.attention", "model.num_experts"]
    assert (both.name, both.title, both.group, both.source) == (
        "attention+experts",
        "attention + experts",
        "ablation",
        "Nobody, 2020",
    )
    assert methods["attention"].settings == {
        "objective.tau": 0.5,
        "model.attention": "regional",
    }


def test_a_nested_factor_exists_where_the_other_is_on() -> None:
    plan = factorial("attention", "experts", more={"distilled": NESTED})
    assert plan.crossed == ("attention", "experts")
    assert list(plan.cells()) == [
        "bare",
        "attention",
        "experts",
        "attention+experts",
        "experts+distilled",
        "attention+experts+distilled",
    ]
    terms = {term.name: term for term in plan.terms()}
    assert list(terms) == ["attention", "experts", "distilled", "attention:experts"]
    assert (terms["distilled"].kind, terms["distilled"].within) == ("nested", "experts")
    column = plan.matrix()[:, 2]
    assert column.tolist() == [0, 0, -0.5, -0.5, 0.5, 0.5]
    assert np.linalg.matrix_rank(np.column_stack([np.ones(6), plan.matrix()])) == 5


@pytest.mark.parametrize(
    ("names", "num_runs", "pairs"),
    [
        (("attention", "hard", "experts"), 4, {}),
        (
            ("attention", "hard", "experts", "mixup"),
            8,
            {
                "attention:hard": "experts:mixup",
                "attention:experts": "hard:mixup",
                "attention:mixup": "hard:experts",
            },
        ),
        (("attention", "hard", "experts", "mixup", "smooth"), 16, None),
    ],
)
def test_half_of_the_combinations(
    names: tuple[str, ...], num_runs: int, pairs: dict[str, str] | None
) -> None:
    plan = factorial(*names, fraction="1/2")
    cells = plan.cells()
    assert plan.resolution == len(names)
    assert len(cells) == num_runs
    # I = the product of all: where all are on, and where an even number is off.
    signs = np.array([[1 if name in on else -1 for name in names] for on in cells.values()])
    assert (signs.prod(axis=1) == 1).all()
    assert "+".join(names) in cells
    assert ("bare" in cells) == (len(names) % 2 == 0)
    terms = {term.name: term for term in plan.terms()}
    for name in names:
        others = tuple(other for other in names if other != name)
        assert terms[name].aliased == others
        product = np.prod([signs[:, names.index(other)] for other in others], axis=0)
        assert (product == signs[:, names.index(name)]).all()
    found = {n: ":".join(t.aliased) for n, t in terms.items() if t.kind == "interaction"}
    if pairs is None:
        assert len(found) == 10
        assert found["attention:hard"] == "experts:mixup:smooth"
    else:
        assert found == pairs
    design = np.column_stack([np.ones(num_runs), plan.matrix()])
    assert np.linalg.matrix_rank(design) == design.shape[1]


def test_half_of_the_crossed_with_all_of_the_nested() -> None:
    plan = factorial("attention", "hard", "experts", fraction="1/2", more={"distilled": NESTED})
    assert list(plan.cells()) == [
        "attention",
        "hard",
        "experts",
        "attention+hard+experts",
        "experts+distilled",
        "attention+hard+experts+distilled",
    ]


@pytest.mark.parametrize("value", ["1/2", 0.5])
def test_a_fraction_may_be_written_either_way(value: object) -> None:
    assert factorial("attention", fraction=value).fraction == "1/2"
    assert factorial("attention", fraction=1).fraction == "1"


@pytest.mark.parametrize(
    ("names", "words", "message"),
    [
        (
            ("experts",),
            {"more": {"tau": {"settings": {"objective.tau": 1}}}},
            r"experts sets objective\.tau=\[1, 2\] and tau sets objective\.tau=1: where both",
        ),
        (("attention", "hard"), {"fraction": "1/2"}, "fraction=1/2 of 2 crossed factors"),
        (("hard",), {"more": {"distilled": NESTED}}, "within 'experts', which is not a crossed"),
        (
            ("experts",),
            {"more": {"a": NESTED, "b": {**NESTED, "within": "a"}}},
            "b lies within 'a', which is not a crossed factor",
        ),
        (("hard",), {"more": {"a+b": {"settings": {"data.size": 32}}}}, "is called 'a\\+b'"),
        (("hard",), {"more": {"a" * 120: {"settings": {"data.size": 32}}}}, "125 characters"),
    ],
)
def test_a_wrong_factorial_is_refused(
    names: tuple[str, ...], words: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        expand(factorial(*names, **words), BASE)


def test_the_same_value_twice_is_no_contradiction() -> None:
    more = {"again": {"settings": {"objective.tau": [1, 2], "data.size": 48}}}
    assert len(expand(factorial("experts", more=more), BASE)) == 4


def write_plan(folder: Path, **changes: Any) -> Path:
    (folder / "bare.yaml").write_text("title: Bare\nsource: this project\n")
    values: dict[str, Any] = {
        "title": "parts",
        "seeds": [0],
        "data": {"defects": {}},
        "methods": ["bare.yaml", "focal"],
        "factorial": {
            "base": "bare",
            "factors": {
                name: {"settings": SETTINGS[name]} for name in ("attention", "hard", "mixup")
            },
        },
    }
    path = folder / "parts.yaml"
    path.write_text(yaml.safe_dump(values | changes, sort_keys=False))
    return path


def test_a_plan_holds_the_methods_of_its_factorial(defects: Path, tmp_path: Path) -> None:
    path = write_plan(tmp_path)
    request = Request(path, tmp_path / "out", {"defects": defects})
    bench = open_bench(request, Console(quiet=True))
    assert list(bench.methods) == [
        *("bare", "focal", "attention", "hard", "attention+hard"),
        *("mixup", "attention+mixup", "hard+mixup", "attention+hard+mixup"),
    ]
    config = bench.config("defects", "hard+mixup")
    assert (config.objective.hard_weight, config.augment.mixup) == (1, 0.4)
    assert config.model.attention == "none"
    assert bench.config("defects", "attention").model.attention == "regional"
    assert len(bench.jobs()) == 9
    assert bench.plan.endpoints == ("balanced_accuracy", "tail_recall")


def factors(**settings: dict[str, Any]) -> dict[str, Any]:
    return {"base": "bare", "factors": {name: {"settings": s} for name, s in settings.items()}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factorial": {**factors(a={"data.size": 9}), "base": "bar"}}, "base='bar' is not one of"),
        (
            {"factorial": factors(a={"augment.mixup": 0})},
            "bare and a have the same settings, so a factor changes nothing",
        ),
        ({"factorial": factors(a={"augment.mixip": 0})}, "factorial: Method a: .*augment.mixip"),
        (
            {
                "factorial": factors(a={"finetune.epochs": 3}),
                "data": {"defects": {"settings": {"finetune.epochs": 5}}},
            },
            r"settings of data set defects .*set finetune\.epochs, so the factor a would",
        ),
        ({"factorial": factors(focal={"augment.mixup": 0.2})}, "makes a method 'focal'"),
        ({"factorial": {"base": "bare", "factors": {}}}, r"factorial\.factors: .*at least 1"),
        ({"endpoints": ["recall"]}, "endpoints names 'recall', which no result has"),
        ({"endpoints": ["ece", "ece"]}, "endpoints names a metric twice"),
        ({"factorial": None, "endpoints": ["ece"]}, "has no `factorial`: leave it out"),
    ],
)
def test_a_wrong_factorial_of_a_plan_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write_plan(tmp_path, **changes)
    with pytest.raises(ConfigError, match=message):
        plan_methods(load_plan(path), tmp_path)


def test_a_custom_loss_has_none_of_our_terms(tmp_path: Path) -> None:
    own = "def make_loss(counts, num_experts, prior):\n    return None\n"
    (tmp_path / "own.py").write_text(f"title = 'Own'\nsource = 'here'\n{own}", encoding="utf-8")
    path = write_plan(
        tmp_path,
        methods=["own.py"],
        reference="own",
        factorial={**factors(a={"objective.hard_weight": 1.0}), "base": "own"},
    )
    with pytest.raises(ConfigError, match="own and a have the same settings"):
        plan_methods(load_plan(path), tmp_path)


def test_any_metric_of_a_result_may_be_an_endpoint(tmp_path: Path) -> None:
    plan = load_plan(write_plan(tmp_path, endpoints=["tail_unseen", "ece"]))
    assert plan.endpoints == ("tail_unseen", "ece")


def test_the_plan_of_the_page_holds_what_it_says(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "bench.md").read_text(encoding="utf-8")
    (block,) = (b for b in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "factorial:" in b)
    path = tmp_path / "page.yaml"
    path.write_text(block, encoding="utf-8")
    plan = load_plan(path)
    methods = plan_methods(plan, tmp_path)
    assert len(methods) == 12
    bench = Bench(tmp_path, plan, methods, {})
    experts = [bench.config("chips", name).model.num_experts for name in methods]
    assert experts.count(2) == 8
    assert bench.config("chips", "logits+experts+distilled").objective.distillation_weight == 0.6
