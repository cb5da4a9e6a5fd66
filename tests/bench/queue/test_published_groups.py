from __future__ import annotations

from recame.bench.queue.published_groups import published_groups
from recame.datasets.registry import PUBLISHED_GROUPS


def test_groups_are_those_of_the_literature() -> None:
    counts = {"a": (500, 0.9), "b": (101, 0.7), "c": (100, 0.6), "d": (20, 0.2), "e": (19, 0.1)}
    rows = [{"class": n, "train_images": c, "recall": r} for n, (c, r) in counts.items()]
    found = {
        name: figures["value"] for name, figures in published_groups(rows, PUBLISHED_GROUPS).items()
    }
    assert found == {
        "head_recall": None,
        "many_recall": 0.8,
        "medium_recall": 0.4,
        "few_recall": 0.1,
    }
    rows[4]["recall"] = None  # no image of it in the split
    assert published_groups(rows, PUBLISHED_GROUPS)["few_recall"]["value"] is None
