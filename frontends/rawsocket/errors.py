"""llmserve's errors as frames, and back into the same classes."""

from frontends.openai.errors import public_message
from frontends.rawsocket.frames import Error
from llmserve import errors

# Each class keeps what its constructor was given, or a part of it, under one of these names.
DETAILS = ("param", "retry_after", "reason", "seconds", "prompt_tokens", "limit")
KINDS = {kind.__name__: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.LLMServeError)}
MAX_MESSAGE = 512


def to_frame(stream_id: int, error: errors.LLMServeError) -> Error:
    kind = next(base.__name__ for base in type(error).__mro__ if base.__name__ in KINDS)
    details = {name: getattr(error, name) for name in DETAILS if hasattr(error, name)}
    return Error(stream_id, kind, public_message(error)[:MAX_MESSAGE], details)


def to_exception(frame: Error) -> errors.LLMServeError:
    """The same class with the same attributes; EngineError for one that this version does not know."""
    kind = KINDS.get(frame.kind, errors.EngineError)
    # Past the constructor, which would make the message anew from parts that a frame does not have.
    error = kind.__new__(kind, frame.message)
    error.args = (frame.message,)
    for name in DETAILS:
        if name in frame.details:
            setattr(error, name, frame.details[name])
    return error
