"""Workers in trouble: errors of others, what comes late, and workers that are faster."""

import pytest

from converse_mongo import Converse
from converse_mongo.domain import open_calls
from converse_mongo.domain.work import WorkState
from tests.integration.helpers import Between, Meanwhile
from tests.integration.test_work import (
    CALL,
    answer,
    claim,
    enqueue,
    places,
    state_of,
    store_of,
    work_of,
    write,
)


@pytest.mark.parametrize("step", ["hand_over", "suspend", "retry"])
async def test_step__is_done_though_the_next_worker_has_the_message_already(
    converse: Converse, step: str
) -> None:
    message = await enqueue(converse, key="k", limit=2)
    claimed = await claim(converse, message)
    await write(converse, claimed, "so far", CALL)
    store = store_of(converse)

    async def go_on() -> None:
        if step == "suspend":
            await answer(converse, message, open_calls.output("c1", 1))
        await claim(converse, message)

    Between(store, update_one=Meanwhile(go_on))
    jobs, mine = store.jobs, (claimed.key, claimed.lease)
    if step == "hand_over":
        await jobs.hand_over(*mine, "q", {"steps": 1})
    elif step == "suspend":
        await jobs.suspend(*mine, checkpoint={"steps": 1})
    else:
        await jobs.retry(*mine, checkpoint={"steps": 1})
    state = await state_of(converse, message)
    assert state.lease.epoch == 2
    assert (await work_of(converse, message)).state is WorkState.RUNNING
    assert (await converse.get_message(message.id)).checkpoint == {"steps": 1}
    assert await places(converse) == [message.id]  # once
