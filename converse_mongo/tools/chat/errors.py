"""Error messages for users."""

import openai


class AnswerError(Exception):
    """An answer failed. The text is written for users: it is stored and shown unchanged."""


def sentence_for(error: Exception) -> str:
    """Returns a message for users, never the text of the error, which may hold a key."""
    match error:
        case AnswerError():
            return str(error)
        case openai.APITimeoutError():
            return "The model took too long to answer. Try again."
        case openai.APIConnectionError():
            return "The model could not be reached. Try again."
        case openai.RateLimitError():
            return "The model is overloaded. Try again in a minute."
        case openai.AuthenticationError() | openai.PermissionDeniedError():
            return "The model rejected the credentials of this service. Contact its operator."
        case openai.NotFoundError():
            return "The model is not available. Contact the operator of this service."
        case openai.BadRequestError(code="context_length_exceeded"):
            return "This conversation is too long for the model. Start a new one."
        case openai.BadRequestError(code="content_filter" | "content_policy_violation"):
            return "The model declined to answer this."
        case openai.APIStatusError():
            return "The model could not answer. Try again."
        case openai.APIError():  # what it sends in the middle of a stream
            return "The model's answer was cut off. Try again."
    return "The answer could not be completed. Try again."
