"""What is read out of plans, in the shapes of MongoDB's manual."""

from typing import Any

import pytest

from tests.plans import faults, to_explain

IXSCAN = {"stage": "IXSCAN", "indexName": "conversation_position", "isMultiKey": False}
FETCH = {"stage": "FETCH", "inputStage": IXSCAN}
COVERED = {"stage": "PROJECTION_COVERED", "inputStage": IXSCAN}
SCAN = {"stage": "COLLSCAN", "direction": "forward"}
COVERED_QUERY = {
    "find": "messages",
    "filter": {"conversation_id": 1},
    "projection": {"_id": 0, "position": 1},
}
WHOLE_QUERY = {"find": "messages", "filter": {"conversation_id": 1}}


def classic(plan: Any, examined: int = 0) -> dict[str, Any]:
    return {
        "explainVersion": "1",
        "queryPlanner": {"winningPlan": plan, "rejectedPlans": [SCAN]},
        "executionStats": {"totalDocsExamined": examined},
    }


def slot_based(plan: Any, examined: int = 0) -> dict[str, Any]:
    winning = {"queryPlan": plan, "slotBasedPlan": {"stages": "[1] scan s1"}}
    return {**classic(winning, examined), "explainVersion": "2"}


def sharded(plan: Any, examined: int = 0) -> dict[str, Any]:
    shards = [
        {"shardName": "a", "winningPlan": {"stage": "SHARDING_FILTER", "inputStage": COVERED}},
        {"shardName": "b", "winningPlan": {"stage": "SHARDING_FILTER", "inputStage": plan}},
    ]
    return classic({"stage": "SHARD_MERGE", "shards": shards}, examined)


SHAPES = pytest.mark.parametrize("shape", [classic, slot_based, sharded])


@SHAPES
def test_plan__that_is_well(shape: Any) -> None:
    assert faults(COVERED_QUERY, shape(COVERED)) == []
    assert faults(WHOLE_QUERY, shape(FETCH, 7)) == []
    merged = {"stage": "SORT_MERGE", "inputStages": [IXSCAN, IXSCAN]}
    assert faults(WHOLE_QUERY, shape({"stage": "FETCH", "inputStage": merged}, 7)) == []


@SHAPES
def test_plan__that_scans(shape: Any) -> None:
    assert faults(WHOLE_QUERY, shape(SCAN, 7)) == ["scans the collection"]
    one_of_two = {"stage": "SUBPLAN", "inputStage": {"stage": "OR", "inputStages": [IXSCAN, SCAN]}}
    assert faults(WHOLE_QUERY, shape(one_of_two, 7)) == ["scans the collection"]


@SHAPES
def test_plan__that_sorts_in_memory(shape: Any) -> None:
    assert faults(WHOLE_QUERY, shape({"stage": "SORT", "inputStage": FETCH}, 7)) == [
        "sorts in memory"
    ]


@SHAPES
def test_plan__that_fetches_what_an_index_covers(shape: Any) -> None:
    simple = {"stage": "PROJECTION_SIMPLE", "inputStage": FETCH}
    assert faults(COVERED_QUERY, shape(simple, 7)) == ["fetches documents that an index covers"]
    assert faults(COVERED_QUERY, shape(COVERED, 7)) == ["examines documents that an index covers"]


def test_plan__of_one_document_by_its_id() -> None:
    query = {"find": "conversations", "filter": {"_id": 1}, "projection": {"next_position": 1}}
    for stage in ("IDHACK", "EXPRESS_IXSCAN"):
        assert faults(query, classic({"stage": stage}, 1)) == []


def test_plan__of_a_write_and_an_aggregation() -> None:
    update = {"update": "messages", "updates": [{"q": {"content": "x"}, "u": {}}]}
    assert faults(update, classic({"stage": "UPDATE", "inputStage": SCAN})) == [
        "scans the collection"
    ]
    pipeline = {"aggregate": "messages", "pipeline": []}
    cursor = {"$cursor": {"queryPlanner": {"winningPlan": SCAN}}}
    assert faults(pipeline, {"stages": [cursor, {"$sort": {"sortKey": {"x": 1}}}]}) == [
        "scans the collection",
        "sorts in memory",
    ]


def test_explained__is_what_plans_a_query() -> None:
    session = {"lsid": {}, "$db": "x", "txnNumber": 1, "writeConcern": {}, "readConcern": {}}
    assert list(to_explain("find", {**WHOLE_QUERY, **session})) == [WHOLE_QUERY]
    first, second = {"q": {"_id": 1}, "u": {}}, {"q": {"_id": 2}, "u": {}}
    assert list(to_explain("update", {"update": "messages", "updates": [first, second]})) == [
        {"update": "messages", "updates": [first]},
        {"update": "messages", "updates": [second]},
    ]
    assert not list(to_explain("insert", {"insert": "messages", "documents": []}))
    watch = {"aggregate": 1, "pipeline": [{"$changeStream": {}}, {"$match": {}}]}
    assert not list(to_explain("aggregate", watch))
