"""Models that several tests need."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_models import save_random_llama, save_random_opt

from llmpq.cache_dir import CACHE_VARIABLE

ROOT = Path(__file__).parent.parent
DATA = Path(__file__).parent / "data"
SMOLLM2 = ROOT / "build" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def pytest_configure() -> None:
    """Processes that tests start can be interrupted, also where the tests run in the background of a shell."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests cache is theirs, and they ask no Hub but their own: what they find does not hang on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("huggingface")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="session")
def smollm2() -> str:
    """SmolLM2-135M-Instruct as a GGUF file; fetched if it is not there yet."""
    if not SMOLLM2.is_file():
        fetch = [sys.executable, ROOT / "examples" / "fetch_smollm2.py"]
        done = subprocess.run(fetch, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"SmolLM2 cannot be fetched: {done.stderr.strip().splitlines()[-1]}")
    return str(SMOLLM2)


@pytest.fixture(scope="session")
def stories260k() -> str:
    """A trained Llama of 260,032 parameters."""
    return str(DATA / "stories260K")


@pytest.fixture(scope="session")
def opt_bytes() -> str:
    """A trained OPT of 1.69 M parameters over bytes."""
    return str(DATA / "opt-bytes")


@pytest.fixture(scope="session")
def bloom_bytes() -> str:
    """A trained BLOOM of 1.62 M parameters over bytes."""
    return str(DATA / "bloom-bytes")


@pytest.fixture(scope="session")
def wikitext_head() -> Path:
    """The beginning of WikiText-2's raw test text."""
    return DATA / "wikitext" / "wiki.test.head.raw"


@pytest.fixture(scope="session")
def random_opt(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small OPT with random weights."""
    return str(save_random_opt(tmp_path_factory.mktemp("random-opt")))


@pytest.fixture(scope="session")
def random_llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small Llama with random weights, grouped queries and a tied head."""
    return str(save_random_llama(tmp_path_factory.mktemp("random-llama"), is_tied=True))


@pytest.fixture(scope="session")
def random_llama_untied(tmp_path_factory: pytest.TempPathFactory) -> str:
    """As random_llama, with a head of its own."""
    return str(save_random_llama(tmp_path_factory.mktemp("random-llama-untied"), is_tied=False))
