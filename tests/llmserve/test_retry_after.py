"""One table says when a refused client may come back."""

import ast
import pathlib

import pytest

from frontends.openai.errors import HTTPFailure, describe
from llmserve.admission import Refusal
from llmserve.admission.retry_after import RETRY_AFTER
from llmserve.state import State, unavailable

ROOT = pathlib.Path(__file__).parents[2]
# The wait of a queue or of a tenant's own tokens is computed, each time.
COMPUTED = {"would_wait_too_long", "waited_too_long", "displaced", "prompt_too_slow", "deadline_too_short", "tenant_tokens"}


def test_every_reason_is_in_the_table_or_computed():
    assert COMPUTED.isdisjoint(RETRY_AFTER)
    assert set(Refusal) <= COMPUTED | set(RETRY_AFTER)
    assert all(0 < seconds <= 60 for seconds in RETRY_AFTER.values())


def test_no_other_place_has_a_number():
    """A number after `retry_after=` would be a second table."""
    for path in [*(ROOT / "llmserve").rglob("*.py"), *(ROOT / "frontends").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "retry_after":
                assert not isinstance(node.value, ast.Constant) or node.value.value is None, f"{path}:{node.value.lineno}"


@pytest.mark.parametrize("state", [State.STARTING, State.DRAINING, State.RESTARTING, State.STOPPED])
def test_a_state_s_refusal_has_its_time(state):
    error = unavailable(state)
    assert error.retry_after == RETRY_AFTER[error.reason]


@pytest.mark.parametrize("code", ["too_many_connections", "receiving_too_much", "idempotency_conflict"])
def test_a_failure_of_http_has_its_time_as_a_header(code):
    assert describe(HTTPFailure(503, "later", code))[2] == {"Retry-After": f"{RETRY_AFTER[code]:.0f}"}
    assert describe(HTTPFailure(404, "no", "not_found"))[2] == {}
