"""Provide zsh and fish for the tests of the command completion: installed ones, or the system's packages."""

import shutil
import sys

from system import install, may_install


def main() -> None:
    for shell in ("zsh", "fish"):
        if shutil.which(shell):
            continue
        if not may_install():
            sys.exit(f"{shell} not found: install your system's {shell} package")
        install(shell)


if __name__ == "__main__":
    main()
