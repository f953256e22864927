"""Pydantic AI: its agents write messages, and read conversations."""

from converse_mongo.integrations.histories import load_values
from converse_mongo.integrations.pydantic_ai.events import pydantic_ai_events, pydantic_ai_run
from converse_mongo.integrations.pydantic_ai.prompts import messages_for_pydantic_ai
from converse_mongo.integrations.pydantic_ai.responding import pydantic_ai_respond

__all__ = [
    "load_values",
    "messages_for_pydantic_ai",
    "pydantic_ai_events",
    "pydantic_ai_respond",
    "pydantic_ai_run",
]
