"""What `import llmpq` offers, and what it costs."""

import subprocess
import sys

import pytest

import llmpq


def test_all_is_sorted_and_complete() -> None:
    """Every public name is listed, can be had, and comes from the module that defines it."""
    assert llmpq.__all__ == sorted(llmpq.__all__)
    assert set(llmpq.__all__) == {"__version__", *llmpq._MODULE_OF}
    for name, module in llmpq._MODULE_OF.items():
        assert getattr(llmpq, name).__module__ == module


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    """The lazy lookup fails as any module does."""
    with pytest.raises(AttributeError, match="no attribute 'Klient'"):
        _ = llmpq.Klient


def test_importing_the_package_loads_nothing_heavy() -> None:
    """Services import llmpq; neither gRPC nor pydantic nor torch comes with it."""
    code = "import sys, llmpq; print(sorted({'grpc', 'pydantic', 'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_client_does_not_need_torch() -> None:
    """A client on a machine without a model stays light."""
    code = "import sys; from llmpq import Client; import llmpq.cli; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
