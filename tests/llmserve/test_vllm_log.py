"""Whether vLLM's log is limited to errors, by the environment and the program's settings."""

import logging
import os

import pytest

from llmserve.engines.vllm import log
from llmserve.engines.vllm.log import CHOICES, LEVEL, WARNINGS, quiet


@pytest.fixture(autouse=True)
def nothing_is_chosen(monkeypatch):
    for name in (*CHOICES, WARNINGS):
        monkeypatch.delenv(name, raising=False)
    level = logging.getLogger("vllm").level
    logging.getLogger("vllm").setLevel(logging.NOTSET)
    log._has_level.cache_clear()
    yield
    logging.getLogger("vllm").setLevel(level)
    log._has_level.cache_clear()


def test_errors_by_default_and_only_during_a_start():
    before = dict(os.environ)
    for _ in range(2):
        with quiet():
            assert os.environ[LEVEL] == "ERROR"
            # As vLLM's import does; the next start is quiet anyway.
            logging.getLogger("vllm").setLevel(logging.ERROR)
        assert dict(os.environ) == before


@pytest.mark.parametrize(("name", "value"), list(zip(CHOICES, ("INFO", "0", "/log.json"), strict=True)))
def test_the_environment_is_a_choice(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with quiet():
        assert dict(os.environ) == before
    assert dict(os.environ) == before


def test_a_level_of_the_programs_own_is_a_choice():
    logging.getLogger("vllm").setLevel(logging.DEBUG)
    with quiet():
        assert LEVEL not in os.environ


def test_a_choice_after_the_first_start_counts_and_is_kept(monkeypatch):
    with quiet():
        pass
    monkeypatch.setenv(LEVEL, "DEBUG")
    with quiet():
        assert os.environ[LEVEL] == "DEBUG"
    assert os.environ[LEVEL] == "DEBUG"


def test_a_choice_during_a_start_is_kept(monkeypatch):
    with quiet():
        monkeypatch.setenv(LEVEL, "DEBUG")
    assert os.environ[LEVEL] == "DEBUG"


@pytest.mark.parametrize("first_to_end", [0, 1])
def test_starts_that_overlap_are_all_quiet_and_leave_nothing(first_to_end):
    before = dict(os.environ)
    starts = [quiet(), quiet()]
    for start in starts:
        start.__enter__()
    starts.pop(first_to_end).__exit__(None, None, None)
    assert os.environ[LEVEL] == "ERROR"
    starts.pop().__exit__(None, None, None)
    assert dict(os.environ) == before
