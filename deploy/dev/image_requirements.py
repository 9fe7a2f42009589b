"""Prints what the image installs, from pyproject.toml: one requirement a line.

    image_requirements.py build    what the native module is built with
    image_requirements.py run      what every role of MemKV imports

lock.sh pins them in requirements-image-build.txt and requirements-image-run.txt beside it, with the
sums of the files. Python 3.11's standard library is enough.
"""

import sys
import tomllib
from pathlib import Path

# scikit-build-core would fetch these by itself, in whatever version is the newest.
BUILD_TOOLS = ["cmake", "ninja"]


def requirements(which: str) -> list[str]:
    """Return the requirements; ValueError for an unknown word."""
    document = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
    if which == "build":
        return [*document["build-system"]["requires"], *BUILD_TOOLS]
    if which == "run":
        project = document["project"]
        return [*project["dependencies"], *project["optional-dependencies"]["operator"]]
    raise ValueError(f"unknown word {which!r} (known: build, run)")


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1])))
