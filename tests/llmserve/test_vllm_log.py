"""Whether vLLM's log is quiet, by what the environment and the program say."""

import logging
import os

import pytest

from llmserve.engines.vllm_log import CHOICES, LEVEL, is_chosen, quiet


@pytest.fixture(autouse=True)
def nothing_is_chosen(monkeypatch):
    for name in CHOICES:
        monkeypatch.delenv(name, raising=False)
    level = logging.getLogger("vllm").level
    logging.getLogger("vllm").setLevel(logging.NOTSET)
    is_chosen.cache_clear()
    yield
    logging.getLogger("vllm").setLevel(level)
    is_chosen.cache_clear()


def test_errors_by_default_and_only_during_a_start():
    before = dict(os.environ)
    for _ in range(2):
        with quiet():
            assert os.environ[LEVEL] == "ERROR"
            # As vLLM does when it is imported: the next start is quiet all the same.
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
