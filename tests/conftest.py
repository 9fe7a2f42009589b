"""Settings of every test run.

MEMKV_HOTPATH names another build of the native module (one with sanitizers, say) to test instead
of the installed one. MEMKV_HYPOTHESIS=explore draws new examples in every run; by default they are
the same each time, so that a red run is red again.
"""

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

from hypothesis import HealthCheck, settings

NATIVE_MODULE = "memkv._hotpath"


class NativeModuleFinder:
    """Import finder that serves the native module from one given file."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"MEMKV_HOTPATH={path}: no such file; build it first")
        self._path = path

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != NATIVE_MODULE:
            return None
        file = str(self._path)
        return spec_from_file_location(name, file, loader=ExtensionFileLoader(name, file))


if "MEMKV_HOTPATH" in os.environ:
    sys.meta_path.insert(0, NativeModuleFinder(Path(os.environ["MEMKV_HOTPATH"])))

# Examples are never judged by their speed: sanitizers and busy machines are slow.
settings.register_profile(
    "default", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", settings.get_profile("default"), derandomize=False)
settings.load_profile(os.environ.get("MEMKV_HYPOTHESIS", "default"))
