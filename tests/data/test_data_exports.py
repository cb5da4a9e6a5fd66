import recame.data


def test_every_public_name_is_found_and_listed():
    assert sorted(recame.data._HOME) == sorted(recame.data.__all__)
    found = {name: getattr(recame.data, name) for name in recame.data.__all__}
    assert found["Augment"].__module__ == "recame.data.transforms"
    assert dir(recame.data) == sorted(recame.data.__all__)
    assert not hasattr(recame.data, "nothing")
