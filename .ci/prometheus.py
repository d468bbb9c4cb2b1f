"""See to a Prometheus for the tests that scrape: the machine's own, or the system's package where we may install it."""

import os
import shutil
import subprocess
import sys


def main() -> None:
    if shutil.which("prometheus") and shutil.which("promtool"):
        return
    if not shutil.which("apt-get") or os.geteuid() != 0:
        sys.exit("there is no prometheus and no promtool: install your system's package of Prometheus")
    print("installing prometheus", flush=True)
    subprocess.run(["apt-get", "update", "-qq"], check=True)
    subprocess.run(["apt-get", "install", "-qq", "-y", "--no-install-recommends", "prometheus"], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
