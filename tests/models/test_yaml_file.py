"""YAML as data: what it may hold, and what is refused before a value is made of it."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from napari_medai.core.errors import ModelError
from napari_medai.models.yaml_file import check_values, read_yaml

LIMITS: dict[str, int] = {"most_values": 50, "deepest": 4}
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(-1e9, 1e9) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)


@given(PLAIN)
def test_what_was_written_is_read(value: Any) -> None:
    assert read_yaml(yaml.safe_dump(value), "x", most_values=1000, deepest=50) == value


def test_aliases_dates_and_keys_that_stand_twice_where_they_are_allowed() -> None:
    text = "a: &a [1, 1:30]\nb: *a\n2: 2026-11-22\n2: '<<'\n"
    assert read_yaml(text, "x", **LIMITS, aliases=True, twice=True) == {"a": [1, 90], "b": [1, 90], 2: "<<"}
    assert read_yaml("when: 2026-11-22", "x", **LIMITS) == {"when": datetime.date(2026, 11, 22)}


def test_exactly_as_many_and_as_deep_as_is_allowed() -> None:
    assert read_yaml("[[[[]]]]", "x", **LIMITS) == [[[[]]]]
    with pytest.raises(ModelError, match="x, line 1: too deep a nesting; write the values out"):
        read_yaml("[[[[[]]]]]", "x", **LIMITS)
    check_values([1] * 49, "x", **LIMITS)
    with pytest.raises(ModelError, match="x has more than 50 values"):
        check_values([1] * 50, "x", **LIMITS)
    with pytest.raises(ModelError, match="nested more than 4 deep"):
        check_values([[[[[1]]]]], "x", **LIMITS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [1]\nb: {<<: *a}\n", "line 2: the merge key <<"),
        ("a: &a [*a]\n", "more than 50 values|nested more than"),
        ("a: &a [0, 0, 0, 0, 0, 0, 0]\nb: [*a, *a, *a, *a, *a, *a, *a]\n", "more than 50 values"),
        ("x: 1\na: " + "1:" * 60 + "1", "line 2: a number of 121 digits"),
        ("a: !!int ''", "line 1: the tag 'tag:yaml.org,2002:int'"),
        ("a: !own {b: 1}", "line 1: the tag '!own'"),
        ("a: !!set {b}", "line 1: the tag"),
        ("a: 2026-99-99", "x is not YAML that is read here: month must be in 1..12"),
        ("a: " + "9" * 90 + "\n--- \nb: 1", "x is not YAML that is read here: expected a single document"),
        ("? [1, 2]\n: 3\n", "x is not YAML that is read here"),
    ],
)
def test_what_is_more_than_values_is_refused_in_words(text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_yaml(text, "x", **LIMITS, aliases=True, twice=True)
