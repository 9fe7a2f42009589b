"""Generate the stubs that lie beside the .proto files.

`python proto/generate.py` writes them in place; `--output DIR` writes elsewhere, which is how the
drift test compares. The generator's version is pinned in pyproject.toml, because generated code
refuses to load with a runtime older than itself.
"""

import argparse
import sys
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
PACKAGE = "memkv_proto"


def generate(output: Path) -> None:
    """Write the stubs of every .proto file under `output`/memkv_proto."""
    sources = sorted(str(path) for path in (ROOT / PACKAGE).glob("*.proto"))
    include = Path(grpc_tools.__file__).parent / "_proto"
    arguments = [
        "protoc",
        f"-I{ROOT}",
        f"-I{include}",
        f"--python_out={output}",
        f"--grpc_python_out={output}",
        f"--mypy_out=quiet:{output}",
        f"--mypy_grpc_out=quiet:{output}",
        *sources,
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed; its message above names the line")


def main() -> None:
    """Parse the command line and generate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT, help="folder that gets memkv_proto/")
    generate(parser.parse_args().output)


if __name__ == "__main__":
    sys.exit(main())
