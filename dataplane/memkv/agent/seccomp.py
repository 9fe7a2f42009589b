"""Installs the seccomp profile of data-plane pods where kubelet looks for it.

It is what container runtimes forbid by default, with io_uring allowed: containerd 2 and Docker 25
refuse it, and without it a node reads its drives by pread, at nearly twice the CPU.
"""

from importlib.resources import files
from pathlib import Path

from memkv.metadata.files import write_durably

PROFILE = "memkv/data-plane.json"
"""As a pod's `seccompProfile.localhostProfile` names it."""


def profile() -> bytes:
    """Return the profile."""
    return (files("memkv.agent") / "data-plane.json").read_bytes()


def install(folder: Path) -> None:
    """Write the profile below kubelet's folder of seccomp profiles where it is another. OSError."""
    path = folder / PROFILE
    content = profile()
    try:
        if path.read_bytes() == content:
            return
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, content)
    path.chmod(0o644)
