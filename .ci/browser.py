"""Provide a Chromium for tests: an installed one, the system's package, or playwright's."""

import subprocess
import sys

from system import install, may_install

from reports.pictures import find_browser


def main() -> None:
    if find_browser():
        return
    if may_install():
        install("chromium")
    else:
        subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=True)


if __name__ == "__main__":
    main()
