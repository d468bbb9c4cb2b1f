"""See to what makes network namespaces, which are the hosts of the tests that need several: iproute2, and the rights to use it."""

import os
import shutil
import sys

from system import install, may_install


def main() -> None:
    if os.geteuid() != 0:
        sys.exit("the tests with several hosts make network namespaces, which only root may: run them as root, or in a container")
    if shutil.which("ip"):
        return
    if not may_install():
        sys.exit("there is no ip: install your system's package of iproute2")
    install("iproute2")


if __name__ == "__main__":
    main()
