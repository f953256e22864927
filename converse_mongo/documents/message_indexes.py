"""Indexes of messages, each with what it is for."""

from pymongo import DESCENDING, IndexModel

from converse_mongo.domain.types import MessageStatus
from converse_mongo.domain.validation import EPOCH
from converse_mongo.driver.servers import FIRST_MARK

MESSAGE_INDEXES = [
    # Order, listing, resuming; begins with the shard key, as sharded collections require.
    IndexModel(["conversation_id", "position"], name="conversation_position", unique=True),
    # Streaming messages of a conversation, for its watchers.
    IndexModel(["conversation_id", "status", "position"], name="conversation_status"),
    # Saves in a conversation, for its watchers: one covered query.
    IndexModel(
        ["conversation_id", "save_mark", "_id", "revision", "position", "role"],
        name="conversation_saves_role",
        partialFilterExpression={"save_mark": {"$gt": FIRST_MARK}},
    ),
    # Streaming messages that may become orphans, for recovery: none that waits in a queue
    # or for people. No append changes it.
    IndexModel(
        ["status", "_id", "lease.duration"],
        name="streaming_leased",
        partialFilterExpression={
            "status": MessageStatus.STREAMING.value,
            "lease.duration": {"$gte": 0},
        },
    ),
    # What workers have to look at, the best first. Only a claim takes a key out of it; no
    # append and no end changes it.
    IndexModel(
        ["work.queue", ("work.priority", DESCENDING), "work.due", "_id"],
        name="work_due",
        partialFilterExpression={"work.due": {"$gt": EPOCH}},
    ),
    # Queued messages by state: the best of a key that is blocked, and their number.
    IndexModel(
        [
            *("work.state", "work.queue", "work.key"),
            *(("work.priority", DESCENDING), "work.ticket"),
        ],
        name="work_state",
        partialFilterExpression={"work.state": {"$gt": ""}},
    ),
    # Messages to merge, for the sweeper. Not sparse: every message has an _id.
    IndexModel(
        ["compact_at", "_id"],
        name="compact_at_by_id",
        partialFilterExpression={"compact_at": {"$gt": EPOCH}},
    ),
]
