"""See to what makes network namespaces, which are the hosts of the tests that need several: iproute2, and the rights to use it."""

import os
import shutil
import subprocess
import sys


def main() -> None:
    if os.geteuid() != 0:
        sys.exit("the tests with several hosts make network namespaces, which only root may: run them as root, or in a container")
    if not shutil.which("ip") and shutil.which("apt-get"):
        print("installing iproute2", flush=True)
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(["apt-get", "install", "-qq", "-y", "--no-install-recommends", "iproute2"], check=True, stdout=subprocess.DEVNULL)
    if not shutil.which("ip"):
        sys.exit("there is no ip: install your system's package of iproute2")


if __name__ == "__main__":
    main()
