"""Loading: a message by its key, ended first if nobody writes it any more."""

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from beanie.odm.utils.parsing import parse_obj

from converse_mongo.documents.messages import Message
from converse_mongo.domain.headers import MessageHeader
from converse_mongo.store.message_loads import load_stored

M = TypeVar("M", bound=Message)


async def load_message(model: type[M], key: Mapping[str, Any]) -> M:
    """Loads a message; ends it first if its writer is presumed dead.

    Raises:
        MessageNotFoundError: The message does not exist.
        StoreUnavailableError: MongoDB did not answer.
    """
    store = model.store()
    stored = await load_stored(store, key)
    state = MessageHeader.from_stored(stored)
    if not state.status.is_final:
        settled = await store.leases.settle_if_expired(state)
        if settled.status.is_final:
            return await load_message(model, key)
    return cast(M, parse_obj(model, stored))
