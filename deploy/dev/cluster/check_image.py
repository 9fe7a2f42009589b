"""What is in the image, asked from inside it by `image.sh check`: the standard library alone.

image.sh adds a line that calls `main` with what requirements-image-run.txt says.
"""

import importlib
import os
import re
import subprocess
from importlib.metadata import distributions
from pathlib import Path

USER = 65532
RDMA_PACKAGES = ("python3-pyverbs", "libibverbs1", "ibverbs-providers")


def debian_packages() -> dict[str, str]:
    """Return the version of each package."""
    words = ["dpkg-query", "-W", "-f", "${Package} ${Version}\\n"]
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    return dict(line.split() for line in lines)


def pinned_in(requirements: str) -> dict[str, str]:
    """Return the versions that a file of requirements pins."""
    return dict(re.findall(r"^([\w-]+)==([\w.]+)", requirements, re.MULTILINE))


def faults(requirements: str) -> list[str]:
    """Return what is wrong, in sentences."""
    found = []
    if (os.getuid(), os.getgid()) != (USER, USER):
        found.append(f"it runs as {os.getuid()}:{os.getgid()} and not as {USER}")
    packages = debian_packages()
    if len({packages.get(name, "missing") for name in RDMA_PACKAGES}) != 1:
        versions = {name: packages.get(name, "missing") for name in RDMA_PACKAGES}
        found.append(f"pyverbs and rdma-core differ: {versions}")
    found += [
        f"Debian's {name} has no copyright file"
        for name in packages
        if not Path(f"/usr/share/doc/{name}/copyright").exists()
    ]
    installed = {
        re.sub(r"[-_.]+", "-", one.metadata["Name"]).lower(): one
        for one in distributions(path=[str(Path(p)) for p in Path("/opt/memkv/lib").glob("*/*")])
    }
    for name, version in pinned_in(requirements).items():
        if name in installed and installed[name].version != version:
            found.append(f"{name} is {installed[name].version} and not {version}")
    found += [
        f"Python's {name} says nothing of its licence"
        for name, one in installed.items()
        if not any("licen" in str(file).lower() for file in one.files or ())
        and not {"License", "License-Expression", "Classifier"} & set(one.metadata)
    ]
    for name in ("memkv", "grpcio", "cryptography", "kopf", "kubernetes", "prometheus-client"):
        if name not in installed:
            found.append(f"Python's {name} is missing")
    return found


def main(requirements: str) -> None:
    """End with what is wrong."""
    for module in ("memkv._hotpath", "memkv_operator.main", "pyverbs.device"):
        importlib.import_module(module)
    if found := faults(requirements):
        raise SystemExit("\n".join(found))
