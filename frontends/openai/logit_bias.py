"""`logit_bias` in OpenAI's format, whose keys are token ids as strings."""

import re

from llmserve import InvalidRequest

_TOKEN_ID = re.compile(r"-?[0-9]{1,18}")
# Maximum number of invalid keys in an error, and maximum length of each.
MAX_NAMED, MAX_LENGTH = 8, 64


def biases_of(given: dict[str, float] | None) -> dict[int, float] | None:
    """Return the biases by token id. Raises InvalidRequest, which names the invalid keys."""
    if given is None:
        return None
    wrong = [key for key in given if _TOKEN_ID.fullmatch(key) is None]
    if wrong:
        names = ", ".join(repr(key[:MAX_LENGTH]) for key in wrong[:MAX_NAMED])
        raise InvalidRequest(f"the keys of logit_bias must be token ids, but {len(wrong)} of them are not: {names}", "logit_bias")
    return {int(key): bias for key, bias in given.items()}
