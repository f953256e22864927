"""Store: the only package that writes conversations and messages.

Every write can be repeated safely: its filter matches only while its assumptions hold, and it
recognizes what an earlier try did by an id that it chose. So calls that fail on the network are
retried for ``retry_timeout`` seconds.
"""

from converse_mongo.store.collections import Collections, Options, WriteQueue
from converse_mongo.store.ends import EndedMessage, Known
from converse_mongo.store.store import Store
from converse_mongo.store.transaction import Transaction, context_apart, open_transaction, store_now

__all__ = [
    "Collections",
    "EndedMessage",
    "Known",
    "Options",
    "Store",
    "Transaction",
    "WriteQueue",
    "context_apart",
    "open_transaction",
    "store_now",
]
