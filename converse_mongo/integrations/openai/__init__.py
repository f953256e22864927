"""OpenAI: its Responses, its Chat Completions, and servers that are compatible with them."""

from converse_mongo.integrations.histories import load_values
from converse_mongo.integrations.openai.chat import openai_chat
from converse_mongo.integrations.openai.prompts import (
    messages_for_openai,
    messages_for_openai_chat,
)
from converse_mongo.integrations.openai.responses import (
    UnfinishedResponse,
    openai_responses,
    unfinished_response,
)

__all__ = [
    "UnfinishedResponse",
    "load_values",
    "messages_for_openai",
    "messages_for_openai_chat",
    "openai_chat",
    "openai_responses",
    "unfinished_response",
]
