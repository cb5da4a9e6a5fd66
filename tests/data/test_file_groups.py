from __future__ import annotations

import pandas as pd

from recame.data.file_groups import group_of_each


def test_a_row_without_a_group_stands_alone() -> None:
    table = pd.DataFrame({"image": list("abcd"), "lot": ["x", None, "x", None]})
    found = group_of_each(table, "lot")
    assert found is not None
    assert found[0] == found[2] == "x"
    assert len(set(found)) == 3
    assert group_of_each(table, None) is None


def test_boxes_of_one_file_belong_together() -> None:
    boxes = [f"a.png#xywh={n},0,9,9" for n in range(2)]
    found = group_of_each(pd.DataFrame({"image": [*boxes, "b.png"]}), None)
    assert found is not None
    assert found[0] == found[1] != found[2]
