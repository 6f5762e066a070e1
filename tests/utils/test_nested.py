"""Nested mappings by dotted keys."""

from tinyllm.utils.nested import flatten, has_key, value_at

NODE = {"a": {"b": 1, "c": {"d": [{"e": 2}], "f": None}}, "g": {}}


def test_lists_and_empty_mappings_are_leaves() -> None:
    assert dict(flatten(NODE)) == {"a.b": 1, "a.c.d": [{"e": 2}], "a.c.f": None, "g": {}}
    assert dict(flatten(3, "x")) == {"x": 3}


def test_a_leaf_is_found_by_its_dotted_key() -> None:
    assert all(value_at(NODE, key) == value and has_key(NODE, key) for key, value in flatten(NODE))
    assert value_at(NODE, "") is NODE


def test_a_null_value_is_not_a_missing_key() -> None:
    assert value_at(NODE, "a.c.f") is None and has_key(NODE, "a.c.f")
    assert value_at(NODE, "a.c.x") is None and not has_key(NODE, "a.c.x")
    assert value_at(NODE, "a.b.x") is None and not has_key(NODE, "a.b.x")
