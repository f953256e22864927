"""Protected fields: those that only the library writes, also in a class of the application."""

from typing import Any

import pytest

from converse_mongo import ConfigurationError, Conversation, Message


def test_fields__of_a_message_are_protected_but_for_those_of_the_application() -> None:
    assert Message.model_fields.keys() - Message._protected.keys() == {
        *("content", "metadata", "updated_at", "revision_id"),
    }


def test_fields__of_a_conversation_are_protected_but_for_those_of_the_application() -> None:
    assert Conversation.model_fields.keys() - Conversation._protected.keys() == {
        *("title", "owner", "metadata", "context", "updated_at", "revision_id"),
    }


def test_field__that_a_subclass_declares_anew_stays_protected() -> None:
    class Note(Message):
        role: Any = "user"
        rating: int = 0

    assert Note._protected == Message._protected


def test_field__of_the_library_cannot_be_declared() -> None:
    with pytest.raises(ConfigurationError, match="end_id"):

        class _Note(Message):
            end_id: str = ""
