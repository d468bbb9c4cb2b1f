"""See to a Prometheus for the tests that scrape: the machine's own, or the system's package where we may install it."""

import shutil
import sys

from system import install, may_install


def main() -> None:
    if shutil.which("prometheus") and shutil.which("promtool"):
        return
    if not may_install():
        sys.exit("there is no prometheus and no promtool: install your system's package of Prometheus")
    install("prometheus")


if __name__ == "__main__":
    main()
