"""YAML of packages, read as data: what would make a reader slow, huge or fall over is refused before a value is made.

The text is looked at as a stream of events first. Aliases can make a few lines as large as memory, and merge keys do it
while the values are made; deep nesting ends the process inside of libyaml; numbers in base sixty, which YAML 1.1 has,
take time that grows with the square of their length; and a tag asks for a type of Python's.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from napari_medai.core.errors import ModelError

# libyaml's, where PyYAML was built with it, reads ten times as fast
_EVENTS = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# No number of a description is as long; names and sentences have other letters
_LONG_NUMBER = re.compile(r"[-+0-9._:]{100,}")


def read_yaml(
    text: str, name: str, *, most_values: int, deepest: int, aliases: bool = False, twice: bool = False
) -> Any:
    """The value of a YAML text: mappings, lists, texts, numbers, dates; without tags and merge keys.

    Parameters
    ----------
    text : str
        What stands in the file.
    name : str
        Of the file, for errors.
    most_values, deepest : int
        How many values there may be, with aliases written out, and how deeply they may be nested.
    aliases : bool
        Whether a value may be named by ``&`` and repeated by ``*``.
    twice : bool
        Whether a key may stand twice in a mapping, the last one counting, and be something else than text.

    Raises
    ------
    ModelError
        It is no such YAML; the message says where.
    """
    try:
        _check_events(text, name, most_values, deepest, aliases)
        value = yaml.load(text, _EVENTS if twice else _UniqueKeys)
    except (yaml.YAMLError, ValueError, ArithmeticError, RecursionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{name} is not YAML that is read here: {reason}.") from error
    check_values(value, name, most_values, deepest)
    return value


def check_values(value: Any, name: str, most_values: int, deepest: int) -> None:
    """Refuse plain values that are too many, or nested too deeply, when what they share is written out.

    Raises
    ------
    ModelError
        They are.
    """
    count, todo = 0, [(value, 0)]
    while todo:
        item, depth = todo.pop()
        count += 1
        if count > most_values:
            raise _too_many(name, most_values)
        if depth > deepest:
            raise ModelError(f"{name} is nested more than {deepest} deep; a description is not.")
        parts = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        todo += [(part, depth + 1) for part in parts]


def _check_events(text: str, name: str, most_values: int, deepest: int, aliases: bool) -> None:
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_EVENTS)):
        if count > most_values:
            raise _too_many(name, most_values)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        what = "too deep a nesting" if depth > deepest else _refused(event, aliases)
        if what:
            raise ModelError(f"{name}, line {event.start_mark.line + 1}: {what}; write the values out.")


def _refused(event: yaml.Event, aliases: bool) -> str:
    """Why an event is not read; empty if it is."""
    if isinstance(event, yaml.AliasEvent):
        return "" if aliases else f"the alias *{event.anchor}"
    if not isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
        return ""
    if event.tag is not None:
        return f"the tag {event.tag[:80]!r}"
    if isinstance(event, yaml.ScalarEvent) and event.implicit[0]:
        if event.value == "<<":
            return "the merge key <<"
        if _LONG_NUMBER.fullmatch(event.value):
            return f"a number of {len(event.value)} digits"
    return ""


def _too_many(name: str, most_values: int) -> ModelError:
    return ModelError(f"{name} has more than {most_values} values; a description has a few hundred.")


class _UniqueKeys(yaml.SafeLoader):  # type: ignore[misc]
    """A key that stands twice is an error instead of a silent choice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if not isinstance(name, str):
                raise ValueError(f"line {key.start_mark.line + 1}: the key {name!r} is not text")
            if name in seen:
                raise ValueError(f"line {key.start_mark.line + 1}: {name!r} stands twice")
            seen.add(name)
        found: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return found
