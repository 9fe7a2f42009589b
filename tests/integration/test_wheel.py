"""What `pip install memkv` puts on a machine: the wheel is built, unpacked and imported alone."""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = "import sys, scikit_build_core.build as build; print(build.build_wheel(sys.argv[1]))"

# Without `site` the editable install of this tree is out of reach: only the wheel can be imported.
USE = """
import sys
sys.path[:0] = sys.argv[1:]
import memkv, memkv_operator, memkv_proto, memkv._hotpath
from memkv.demo.trace import read_trace
print(memkv.__file__, memkv._hotpath.__file__, next(read_trace()).input_tokens, sep="\\n")
"""


def run(*arguments: str | Path) -> list[str]:
    result = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.splitlines()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    return folder / run("-c", BUILD, folder)[-1]


def test_wheel_holds_data_types_and_licence(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        "memkv/demo/data/conversation_trace.jsonl.gz",
        "memkv/demo/data/README.md",
        "memkv/_hotpath.pyi",
        "memkv/py.typed",
        "memkv_operator/py.typed",
        "memkv_proto/py.typed",
    ):
        assert name in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.endswith((".c", ".pyx", ".pxi", ".pyc"))]


def test_wheel_works_alone(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    package, native, tokens = run("-I", "-S", "-c", USE, tmp_path, sysconfig.get_path("purelib"))
    assert Path(package).is_relative_to(tmp_path)
    assert Path(native).is_relative_to(tmp_path)
    assert tokens == "6758"
