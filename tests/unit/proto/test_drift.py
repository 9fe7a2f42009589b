"""The checked-in stubs are what the pinned generator makes of the .proto files."""

import os
import subprocess
import sys
from pathlib import Path

PROTO = Path(__file__).parents[3] / "proto"
FIX = "run `python proto/generate.py` in the development environment and commit the result"


def test_stubs_are_up_to_date(tmp_path: Path) -> None:
    bin_folder = str(Path(sys.executable).parent)  # protoc-gen-mypy lies beside the interpreter
    environment = {**os.environ, "PATH": bin_folder + os.pathsep + os.environ.get("PATH", "")}
    subprocess.run(
        [sys.executable, str(PROTO / "generate.py"), "--output", str(tmp_path)],
        check=True,
        env=environment,
    )
    fresh = {path.name: path.read_text() for path in (tmp_path / "memkv_proto").iterdir()}
    kept = {path.name: path.read_text() for path in (PROTO / "memkv_proto").glob("*_pb2*.py*")}
    assert sorted(fresh) == sorted(kept), FIX
    changed = [name for name in fresh if fresh[name] != kept[name]]
    assert not changed, f"{changed} differ: {FIX}"
