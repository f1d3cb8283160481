"""Builds the native kernels into the package where a compiler is at hand; see quantizer/native/build.py."""

import re
import runpy
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeKernels(BuildHookInterface):
    """Adds the library to a wheel, then for this platform only; editable installs have it among the sources."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 hatchling's signature
        """Called by hatchling before it packs a wheel."""
        root = Path(self.root)
        library = runpy.run_path(str(root / "quantizer" / "native" / "build.py"))["build"]()
        if library is not None:
            build_data["artifacts"].append(str(library.relative_to(root)))
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{re.sub('[-.]', '_', sysconfig.get_platform())}"
