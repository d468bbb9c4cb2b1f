"""Every command in the README and in docs runs, or says why not."""

import re
import shutil

import pytest
from support.pages import blocks

RUN = [block for block in blocks("sh") if not block.reason]
SERVER = re.compile(r"(llmserve (serve|socket)|python -m frontends\.(aiohttp|socket)_app)\b(?! keys)")


@pytest.mark.parametrize("page", dict.fromkeys(block.page for block in RUN))
def test_the_commands_of_a_page_run_in_their_order(shell, here, page):
    """A later command may read what an earlier one wrote."""
    for block in RUN:
        if block.page == page:
            try:
                run(shell, here, block.text)
            except AssertionError as error:
                error.add_note(block.name)
                raise


def run(shell, here, text):
    if "curl" in text and shutil.which("curl") is None:
        return
    lines = text.replace("\\\n", " ").splitlines()
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
