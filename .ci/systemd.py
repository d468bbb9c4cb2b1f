"""Provide `systemd-analyze`, which checks units: an installed one, or the system's package."""

import shutil
import sys

from system import install, may_install


def main() -> None:
    if shutil.which("systemd-analyze"):
        return
    if not may_install():
        sys.exit("systemd-analyze not found: install your system's systemd package")
    install("systemd")


if __name__ == "__main__":
    main()
