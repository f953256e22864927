"""Change tracking: what a save writes of a copy."""

import copy
from typing import Any

from converse_mongo.documents.tracking import ChangeTracker

LOADED: dict[str, Any] = {"title": "Files", "count": 1, "metadata": {"a": 1, "list": [1]}}


def tracker_of(fields: dict[str, Any]) -> ChangeTracker:
    tracker = ChangeTracker()
    tracker.remember(fields)
    return tracker


def test_changed__is_nothing_after_a_load() -> None:
    assert tracker_of(LOADED).changed(copy.deepcopy(LOADED)) == []


def test_changed__names_what_was_assigned_or_added() -> None:
    fields = LOADED | {"title": "Folders", "rating": None}
    assert tracker_of(LOADED).changed(fields) == ["title", "rating"]


def test_changed__notices_what_was_changed_inside_of_a_value() -> None:
    fields = copy.deepcopy(LOADED)
    tracker = tracker_of(fields)
    fields["metadata"]["list"].append(2)
    assert tracker.changed(fields) == ["metadata"]


def test_changed__is_nothing_once_it_was_saved() -> None:
    fields = LOADED | {"title": "Folders"}
    tracker = tracker_of(LOADED)
    tracker.remember(fields)
    assert tracker.changed(fields) == []


def test_changes__of_a_mapping_are_its_keys() -> None:
    fields = LOADED | {"metadata": {"a": 1, "list": [2], "b.c": 3}}
    changes = tracker_of(
        LOADED | {"metadata": {"a": 1, "list": [1], "gone": 1, "$gone": 1}}
    ).changes(fields, fields, {"metadata": "metadata"}, {"metadata"})
    assert changes.assign == {"metadata.list": [2]}
    assert changes.remove == ["metadata.gone"]
    assert changes.unaddressable == {"metadata": ({"b.c": 3}, ["$gone"])}


def test_changes__of_another_field_are_as_bson_has_it() -> None:
    fields = LOADED | {"count": 2}
    changes = tracker_of(LOADED).changes(fields, {"n": "two"}, {"count": "n"}, {"metadata"})
    assert changes
    assert (changes.assign, changes.remove, changes.unaddressable) == ({"n": "two"}, [], {})


def test_changes__are_none_of_no_fields() -> None:
    assert not tracker_of(LOADED).changes(LOADED, LOADED, {}, {"metadata"})


def test_copy__forgets_nothing_and_is_told_apart() -> None:
    tracker = tracker_of(LOADED)
    copied = copy.copy(tracker)
    copied.remembered["title"] = "Folders"
    assert tracker.changed(LOADED) == []
    assert copied.changed(LOADED) == ["title"]
