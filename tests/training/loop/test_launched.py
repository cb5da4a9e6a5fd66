from __future__ import annotations

import pytest

from recame.config import Config
from recame.errors import ConfigError
from recame.training.loop.launched import as_launched, refuse_several
from recame.training.loop.processes import RANK_VARIABLES


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")
    for name in (*RANK_VARIABLES, *names, "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)


def torchrun(monkeypatch: pytest.MonkeyPatch, world: int, local: int, nodes: int) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", str(world))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
    monkeypatch.setenv("GROUP_WORLD_SIZE", str(nodes))


def places(devices: object = 1, num_nodes: int = 1) -> Config:
    return Config().updated({"run.devices": devices, "run.num_nodes": num_nodes})


@pytest.mark.parametrize("asked", [(1, 1), ("auto", 1), (3, 1), (1, 2), (3, 2)])
def test_torchrun_decides(asked: tuple[object, int], monkeypatch: pytest.MonkeyPatch) -> None:
    torchrun(monkeypatch, 6, 3, 2)
    run = as_launched(places(*asked)).run
    assert (run.devices, run.num_nodes) == (3, 2)


@pytest.mark.parametrize("asked", [(2, 1), (6, 1), (3, 3)])
def test_a_contradiction_is_refused(
    asked: tuple[object, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    torchrun(monkeypatch, 6, 3, 2)
    told = rf"run\.devices={asked[0]} and run\.num_nodes={asked[1]}, but torchrun started 3 proc"
    with pytest.raises(ConfigError, match=told):
        as_launched(places(*asked))


def test_nodes_must_be_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    torchrun(monkeypatch, 5, 3, 2)
    with pytest.raises(ConfigError, match="5 processes on 2 nodes, 3 of them on this one"):
        as_launched(places())


@pytest.mark.parametrize(("before", "how"), [((1, 1), "recame"), ((2, 2), "torchrun --nnodes 2")])
def test_a_run_is_resumed_by_as_many(
    before: tuple[int, int], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torchrun(monkeypatch, 3, 3, 1)
    with pytest.raises(ConfigError, match=rf"started 3 in all: .* with as many: {how}"):
        as_launched(places(*before), resumed=True)
    # Spread otherwise they see the same images.
    assert as_launched(places(1, 3), resumed=True).run.devices == 3


def test_without_torchrun_the_settings_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    assert as_launched(places(2)) == places(2)
    with pytest.raises(ConfigError, match=r"run\.num_nodes=2, but .* on its own"):
        as_launched(places(1, 2))
    monkeypatch.setenv("NODE_RANK", "0")  # another program numbers the nodes
    assert as_launched(places(1, 2)) == places(1, 2)


def test_what_one_process_does_is_not_started_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_several("recame distill")
    torchrun(monkeypatch, 1, 1, 1)
    refuse_several("recame distill")
    torchrun(monkeypatch, 2, 2, 1)
    with pytest.raises(ConfigError, match="recame distill is the work of one process"):
        refuse_several("recame distill")
