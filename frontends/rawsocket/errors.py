"""Conversion between llmserve's errors and error frames."""

from frontends.openai.errors import public_message
from frontends.rawsocket.frames import Error
from llmserve import errors

# The attributes in which the error classes keep their constructor's arguments.
DETAILS = ("param", "retry_after", "reason", "seconds", "prompt_tokens", "limit")
KINDS = {kind.__name__: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.LLMServeError)}
MAX_MESSAGE = 512


def to_frame(stream_id: int, error: errors.LLMServeError) -> Error:
    kind = next(base.__name__ for base in type(error).__mro__ if base.__name__ in KINDS)
    details = {name: getattr(error, name) for name in DETAILS if hasattr(error, name)}
    return Error(stream_id, kind, public_message(error)[:MAX_MESSAGE], details)


def to_exception(frame: Error) -> errors.LLMServeError:
    """Return an error of the frame's class with its attributes; EngineError for unknown classes."""
    kind = KINDS.get(frame.kind, errors.EngineError)
    # The constructor would rebuild the message from parts that a frame does not have.
    error = kind.__new__(kind, frame.message)
    error.args = (frame.message,)
    for name in DETAILS:
        if name in frame.details:
            setattr(error, name, frame.details[name])
    return error
