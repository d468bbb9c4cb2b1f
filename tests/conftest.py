"""Async tests of the core run on asyncio and trio, on a virtual clock, without the user's cache."""

import os
import subprocess

import hypothesis
import pytest
import trio.testing

from benchmarks.stand_ins.virtual_clock import VirtualLoop

# A shared machine is slow at times, which must not fail a test.
hypothesis.settings.register_profile("quick", deadline=None, max_examples=100)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@pytest.fixture(scope="session", autouse=True)
def nothing_from_outside(tmp_path_factory):
    """Give each test a new cache, without the developer's LLMSERVE_* variables."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("LLMSERVE_")]:
            patch.delenv(name)
        patch.setenv("LLMSERVE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    if request.param == "trio":
        return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}
    return "asyncio", {"loop_factory": VirtualLoop}


@pytest.fixture
def call(monkeypatch, capsys):
    """Return a function that runs a command's `main` in this process, like `subprocess.run`.

    An interpreter for each of many wrong arguments costs a second.
    """

    def call(main, *arguments):
        monkeypatch.setattr("sys.argv", ["command", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code or 0
        assert isinstance(code, int)
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return call
