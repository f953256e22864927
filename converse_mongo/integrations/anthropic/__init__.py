"""Anthropic: its Messages."""

from converse_mongo.integrations.anthropic.messages import anthropic_messages
from converse_mongo.integrations.anthropic.prompts import (
    messages_for_anthropic,
    system_for_anthropic,
)
from converse_mongo.integrations.histories import load_values

__all__ = ["anthropic_messages", "load_values", "messages_for_anthropic", "system_for_anthropic"]
