"""How large a YAML text is once it is read, found before: anchors can make gigabytes of a few lines."""

from __future__ import annotations

import yaml

MAX_VALUES = 10_000
MAX_DEPTH = 50


def size_problem(text: str) -> str:
    """Say what is too large in a YAML text; empty where nothing is, or where its mistakes are for the reader to tell.

    Each use of an anchor counts as all that the anchor holds.
    """
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and how many values there were before
    count = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                if any(anchor == event.anchor for anchor, _ in open_nodes):
                    return f"the anchor &{event.anchor} holds itself"
                count += sizes.get(event.anchor or "", 1)
            elif isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append((event.anchor, count))
                count += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, before = open_nodes.pop()
                sizes |= {anchor: count - before} if anchor is not None else {}
            elif isinstance(event, yaml.ScalarEvent):
                count += 1
            if len(open_nodes) > MAX_DEPTH:
                return f"it is nested more than {MAX_DEPTH} levels deep"
            if count > MAX_VALUES:
                return f"it holds more than {MAX_VALUES:,} values, anchors counted as often as they are used"
    except yaml.YAMLError:
        pass
    return ""
