"""Check for iproute2 and root, which tests with several hosts need for network namespaces."""

import os
import shutil
import sys

from system import install, may_install


def main() -> None:
    if os.geteuid() != 0:
        sys.exit("the tests with several hosts create network namespaces, which requires root: run them as root or in a container")
    if shutil.which("ip"):
        return
    if not may_install():
        sys.exit("ip not found: install your system's iproute2 package")
    install("iproute2")


if __name__ == "__main__":
    main()
