"""See to an nginx for the tests that put one before a server: the machine's own, or the system's package where we may install it."""

import os
import shutil
import sys

from system import install, may_install

# Where Debian has it, which is not on every user's PATH.
SBIN = "/usr/sbin"


def main() -> None:
    if shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:{SBIN}"):
        return
    if not may_install():
        sys.exit("there is no nginx: install your system's package of it")
    install("nginx")


if __name__ == "__main__":
    main()
