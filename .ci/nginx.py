"""Provide an nginx for tests behind a proxy: an installed one, or the system's package."""

import os
import shutil
import sys

from system import install, may_install

# Debian's folder for nginx, which is not on every user's PATH.
SBIN = "/usr/sbin"


def main() -> None:
    if shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:{SBIN}"):
        return
    if not may_install():
        sys.exit("nginx not found: install your system's nginx package")
    install("nginx")


if __name__ == "__main__":
    main()
