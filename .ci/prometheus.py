"""Provide a Prometheus for tests that scrape: an installed one, or the system's package."""

import shutil
import sys

from system import install, may_install


def main() -> None:
    if shutil.which("prometheus") and shutil.which("promtool"):
        return
    if not may_install():
        sys.exit("prometheus or promtool not found: install your system's Prometheus package")
    install("prometheus")


if __name__ == "__main__":
    main()
