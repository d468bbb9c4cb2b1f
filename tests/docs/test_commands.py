"""Every command in the README and in docs runs, or says why not."""

import re
import shutil

import pytest
from support.pages import blocks

RUN = [block for block in blocks("sh") if not block.reason]
SERVER = re.compile(r"(llmserve (serve|socket)|python -m frontends\.(aiohttp|socket)_app)\b(?! keys)")


@pytest.mark.parametrize("block", RUN, ids=lambda block: block.name)
def test_a_command_runs(shell, here, block):
    if "curl" in block.text and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    lines = block.text.replace("\\\n", " ").splitlines()
    servers = [line for line in lines if SERVER.match(line)]
    others = [line for line in lines if line not in servers]
    # The simulated model has fewer tokens than the bundled one.
    others = [f"{line} --vocabulary 256" if line.startswith("llmserve bench") else line for line in others]
    shell.run("bash", "-ec", here("\n".join(others)))
    for server in servers:
        # Another server may have the page's port.
        with shell.serving(re.sub(r"(127\.0\.0\.1:|--port )\d+", r"\g<1>0", server)):
            pass


def test_commands_that_do_not_run_say_why():
    assert len(RUN) >= 10
    for block in blocks("sh"):
        assert not block.reason or re.search(r"needs|installs|takes", block.reason), block.name
