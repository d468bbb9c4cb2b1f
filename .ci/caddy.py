"""Provide a Caddy for tests behind a proxy: an installed one, or the system's package."""

import shutil
import sys

from system import install, may_install


def main() -> None:
    if shutil.which("caddy"):
        return
    if not may_install():
        sys.exit("caddy not found: install your system's Caddy package")
    install("caddy")


if __name__ == "__main__":
    main()
