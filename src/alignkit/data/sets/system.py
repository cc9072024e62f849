"""`data.system`: a system message for the rows that have none; after the split, which does not depend on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from alignkit.data.sets.items import Item, SourcedItem
from alignkit.data.sets.ledger import Ledger
from alignkit.errors import DataError

GIVEN = "rows given data.system"


def give_system_to_sets(
    items: Mapping[str, list[SourcedItem[Item]]], words: str | None, ledger: Ledger
) -> dict[str, list[SourcedItem[Item]]]:
    """Give the rows of every set a system message; see `give_system`.

    Raises:
        DataError: no row is without one.
    """
    given = {name: give_system(of_set, words, ledger) for name, of_set in items.items()}
    if words is not None and GIVEN not in ledger.notes and any(items.values()):
        raise DataError("data.system has no effect: every row has a system message, or is plain text; leave it out")
    return given


def give_system(items: list[SourcedItem[Item]], words: str | None, ledger: Ledger) -> list[SourcedItem[Item]]:
    """Give each row without a system message this one, if there is one; the ledger counts such rows."""
    if words is None:
        return items
    given = [replace(item, item=item.item.with_system(words)) for item in items]
    changed = [new.item != old.item and not old.is_copy for new, old in zip(given, items, strict=True)]
    ledger.notes.update([GIVEN] * sum(changed))
    return given
