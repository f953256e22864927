"""An agent of OpenAI's: what goes back is what the agent itself would send."""

from typing import TYPE_CHECKING

import pytest
from openai import AsyncOpenAI
from pydantic_ai import Agent

from converse_mongo.integrations.pydantic_ai import messages_for_pydantic_ai, pydantic_ai_events
from tests.integrations import openai_events
from tests.integrations.playing import Player, assistant, collect, playing, reduced, user
from tests.integrations.test_pydantic_ai_events import by_events

if TYPE_CHECKING:
    from pydantic_ai.models import openai as models
    from pydantic_ai.providers import openai as providers
else:
    # It needs a newer SDK than the translator of OpenAI.
    models = pytest.importorskip("pydantic_ai.models.openai", exc_type=ImportError)
    providers = pytest.importorskip("pydantic_ai.providers.openai", exc_type=ImportError)


async def test_provider__is_sent_what_the_agent_itself_would_send() -> None:
    thought = openai_events.reasoning("Hm.", encrypted="secret")
    called = openai_events.function_call('{"q": "x"}', "search")
    answer = openai_events.message(openai_events.said("Three."))
    streams = [openai_events.stream(thought, called), openai_events.stream(answer)]
    player = Player([*streams, streams[1], streams[1]])
    async with (
        playing(player) as url,
        AsyncOpenAI(base_url=url, api_key="sk-test", max_retries=0) as sdk,
    ):
        model = models.OpenAIResponsesModel(
            "gpt-5-mini", provider=providers.OpenAIProvider(openai_client=sdk)
        )
        agent = Agent(model, instructions="Be short.")

        @agent.tool_plain
        def search(q: str) -> dict[str, str]:
            return {"found": q}

        contents, messages = await by_events(agent)
        ours = messages_for_pydantic_ai([user("Hi"), assistant(*reduced(contents)), user("And?")])
        for given in (
            {"user_prompt": "And?", "message_history": messages},
            {"message_history": ours},
        ):
            async with agent.run_stream_events(**given) as events:
                await collect(pydantic_ai_events(events))
    theirs, own = player.asked[-2:]
    assert own["input"] == theirs["input"]
    assert "secret" in str(own["input"])
