"""Packages of the system that the tests need, on Debian with root."""

import os
import shutil
import subprocess


def may_install() -> bool:
    return shutil.which("apt-get") is not None and os.geteuid() == 0


def install(package: str) -> None:
    print(f"installing {package}", flush=True)
    subprocess.run(["apt-get", "update", "-qq"], check=True)
    subprocess.run(["apt-get", "install", "-qq", "-y", "--no-install-recommends", package], check=True, stdout=subprocess.DEVNULL)
