"""The .proto files keep the rules that `buf lint` calls STANDARD and COMMENTS.

Exceptions, on purpose: the directory does not follow the package (a folder memkv/v1 would hide
the package memkv), NodeAdmin and AgentAdmin keep their short names, and what kubelet speaks has the
names that Kubernetes gave it. Runs on the compiler's own description, and says which element breaks
a rule; then buf itself is asked.
"""

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import grpc_tools
import pytest
from google.protobuf import descriptor_pb2 as descriptor
from grpc_tools import protoc

PROTO = Path(__file__).parents[3] / "proto"
SERVICES_WITHOUT_SUFFIX = {"AgentAdmin", "NodeAdmin"}
NOT_OURS = "memkv_proto/kubelet_device_plugin.proto"
PASCAL = re.compile(r"[A-Z][A-Za-z0-9]*")
SNAKE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
UPPER_SNAKE = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")

Element = tuple[str, tuple[int, ...]]


def compiled(folder: Path) -> list[descriptor.FileDescriptorProto]:
    output = folder / "set.pb"
    include = Path(grpc_tools.__file__).parent / "_proto"
    names = [str(path) for path in sorted((PROTO / "memkv_proto").glob("*.proto"))]
    status = protoc.main(
        ["protoc", f"-I{PROTO}", f"-I{include}", "--include_source_info", f"-o{output}", *names]
    )
    assert status == 0
    return [
        file
        for file in descriptor.FileDescriptorSet.FromString(output.read_bytes()).file
        if file.name != NOT_OURS
    ]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[descriptor.FileDescriptorProto]:
    return compiled(tmp_path_factory.mktemp("proto"))


def upper_snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).upper()


def elements(file: descriptor.FileDescriptorProto) -> Iterator[Element]:
    """Everything that must have a comment, by name and path in the source."""
    for m, message in enumerate(file.message_type):
        yield message.name, (4, m)
        for f, field in enumerate(message.field):
            yield f"{message.name}.{field.name}", (4, m, 2, f)
        for o, oneof in enumerate(message.oneof_decl):
            if oneof.name.startswith("_"):  # made by the compiler, for a field that is optional
                continue
            yield f"{message.name}.{oneof.name}", (4, m, 8, o)
    for e, enum in enumerate(file.enum_type):
        yield enum.name, (5, e)
        for v, value in enumerate(enum.value):
            yield f"{enum.name}.{value.name}", (5, e, 2, v)
    for s, service in enumerate(file.service):
        yield service.name, (6, s)
        for r, method in enumerate(service.method):
            yield f"{service.name}.{method.name}", (6, s, 2, r)


def test_everything_has_a_comment(files: list[descriptor.FileDescriptorProto]) -> None:
    for file in files:
        comments = {
            tuple(location.path): location.leading_comments.strip()
            for location in file.source_code_info.location
        }
        missing = [name for name, path in elements(file) if not comments.get(path)]
        assert not missing, f"{file.name}: {missing}"


def test_files_and_package(files: list[descriptor.FileDescriptorProto]) -> None:
    for file in files:
        assert file.package == "memkv.v1"
        assert file.syntax == "proto3"
        assert SNAKE.fullmatch(Path(file.name).stem)
        assert not file.public_dependency
        text = (PROTO / file.name).read_text()
        used = [name for name in file.dependency if Path(name).stem.capitalize() not in text]
        assert not used, f"{file.name} imports {used} for nothing"


def test_enums(files: list[descriptor.FileDescriptorProto]) -> None:
    for enum in [enum for file in files for enum in file.enum_type]:
        assert PASCAL.fullmatch(enum.name)
        prefix = upper_snake(enum.name) + "_"
        assert enum.value[0].name == prefix + "UNSPECIFIED"
        assert enum.value[0].number == 0
        assert not enum.options.allow_alias
        for value in enum.value:
            assert UPPER_SNAKE.fullmatch(value.name)
            assert value.name.startswith(prefix)


def test_messages_and_fields(files: list[descriptor.FileDescriptorProto]) -> None:
    for message in [message for file in files for message in file.message_type]:
        assert PASCAL.fullmatch(message.name)
        for field in message.field:
            assert SNAKE.fullmatch(field.name), f"{message.name}.{field.name}"
            assert field.label != descriptor.FieldDescriptorProto.LABEL_REQUIRED
        for oneof in message.oneof_decl:
            assert SNAKE.fullmatch(oneof.name.removeprefix("_"))


def test_services_have_their_own_requests_and_responses(
    files: list[descriptor.FileDescriptorProto],
) -> None:
    seen: set[str] = set()
    for service in [service for file in files for service in file.service]:
        assert service.name.endswith("Service") or service.name in SERVICES_WITHOUT_SUFFIX
        for method in service.method:
            assert PASCAL.fullmatch(method.name)
            assert method.input_type == f".memkv.v1.{method.name}Request"
            assert method.output_type == f".memkv.v1.{method.name}Response"
            assert not {method.input_type, method.output_type} & seen
            seen |= {method.input_type, method.output_type}


def buf_lint(folder: Path, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sysconfig.get_path("scripts")) / "buf", "lint"], cwd=folder,
        env={**os.environ, "BUF_CACHE_DIR": str(home)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_buf_agrees(tmp_path: Path) -> None:
    done = buf_lint(PROTO, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_buf_would_say_so(tmp_path: Path) -> None:
    """What buf finds nothing in, with the rules of proto/buf.yaml, is not found by chance."""
    shutil.copy(PROTO / "buf.yaml", tmp_path)
    bad = 'syntax = "proto3";\n\npackage memkv.v1;\n\nmessage shard_map {}\n'
    (tmp_path / "memkv_proto").mkdir()
    (tmp_path / "memkv_proto" / "bad.proto").write_text(bad)
    done = buf_lint(tmp_path, tmp_path)
    assert done.returncode != 0
    assert "PascalCase" in done.stdout
    assert "comment" in done.stdout
