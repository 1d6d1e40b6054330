"""Compiles the contract: proto/ becomes knhk_sidecar/api/pb, and buf judges what protoc understood.

Everything comes from installed packages: protoc and the gRPC plugin from grpcio-tools, the type stubs from
mypy-protobuf, the googleapis protos from googleapis-common-protos, buf from buf-bin. buf reads the descriptors that
protoc made, so it needs no network. The same packages give the same bytes, which is what `--check` relies on.

Layout: protoc would import `knhk.sidecar.v1.types_pb2` from the top of the path; the modules live in
`knhk_sidecar.api.pb.v1` instead and their imports are rewritten, while the descriptors keep the names that the wire,
reflection and other languages see (`knhk/sidecar/v1/types.proto`). `pb/__init__.py` gathers all names in one flat
namespace.
"""

from __future__ import annotations

import argparse
import filecmp
import io
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import google.api.annotations_pb2 as annotations_pb2
import grpc_tools
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
PACKAGE = "knhk.sidecar.v1"
PACKAGE_PATH = PACKAGE.replace(".", "/")
OUTPUT = ROOT / "knhk_sidecar" / "api" / "pb"
MODULES = "knhk_sidecar.api.pb.v1"
GOOGLEAPIS = Path(annotations_pb2.__file__).parents[2]
WELL_KNOWN = Path(grpc_tools.__file__).parent / "_proto"
RELEASE_TAGS = "v[0-9]*"
LINE_MAX = 118
TOOLS = Path(sys.executable).parent  # of this environment, whether or not it is on PATH


class ContractError(Exception):
    """The contract cannot be compiled, or a check of it failed. The message is complete."""


def main(arguments: list[str]) -> int:
    """0 when everything fits, 1 when something does not, 2 on wrong usage."""
    parser = argparse.ArgumentParser(prog="scripts/proto", description="Compile the contract and check it.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the committed code differs")
    parser.add_argument("--against", metavar="REF", help="revision to compare with; default: the latest release tag")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="contract-") as scratch:
            _work(Path(scratch), check=options.check, against=options.against)
    except ContractError as error:
        print(f"scripts/proto: {error}", file=sys.stderr)
        return 1
    return 0


def _work(scratch: Path, *, check: bool, against: str | None) -> None:
    image = _image(PROTO, scratch / "contract.binpb")
    _buf("lint", str(image))
    _compare_with_release(scratch, image, against)
    fresh = scratch / "pb"
    _generate(scratch / "raw", fresh, image)
    if check:
        differing = _differences(fresh, OUTPUT)
        if differing:
            raise ContractError(f"generated code is out of date, run scripts/proto: {', '.join(differing)}")
        print(f"contract: lint clean, {_size(image)}, generated code up to date")
        return
    changed = _install(fresh, OUTPUT)
    print(f"contract: lint clean, {_size(image)}, {changed} files changed in {OUTPUT.relative_to(ROOT)}")


# ------------------------------------------------------------------------------------------------------ protoc and buf


def _protoc(root: Path, *arguments: str) -> None:
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.proto"))
    if not files:
        raise ContractError(f"no .proto files below {root}")
    if protoc.main(["protoc", f"-I{root}", f"-I{GOOGLEAPIS}", f"-I{WELL_KNOWN}", *arguments, *files]) != 0:
        raise ContractError("protoc refused the contract; its messages are above")


def _image(root: Path, path: Path) -> Path:
    _protoc(root, "--include_imports", "--include_source_info", f"--descriptor_set_out={path}")
    return path


def _buf(command: str, *arguments: str) -> None:
    # `--path`: the imports of the image are other people's and judged by other rules.
    call = [str(TOOLS / "buf"), command, *arguments, "--config", str(ROOT / "buf.yaml"), "--path", PACKAGE_PATH]
    if subprocess.run(call, check=False).returncode != 0:
        raise ContractError(f"buf {command} found the above")


def _compare_with_release(scratch: Path, image: Path, against: str | None) -> None:
    reference = against or _latest_release()
    if reference is None:
        return  # nothing has been released, so nothing can break
    archive = subprocess.run(["git", "archive", reference, "proto"], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode != 0:
        raise ContractError(f"cannot read proto/ at {reference}: {archive.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(scratch / "released", filter="data")
    _buf("breaking", str(image), "--against", str(_image(scratch / "released" / "proto", scratch / "released.binpb")))
    print(f"contract: compatible with {reference}")


def _latest_release() -> str | None:
    call = ["git", "describe", "--tags", "--abbrev=0", "--match", RELEASE_TAGS]
    found = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else None


# ------------------------------------------------------------------------------------------------------- generated code


def _generate(raw: Path, fresh: Path, image: Path) -> None:
    raw.mkdir()
    _protoc(
        PROTO,
        f"--plugin=protoc-gen-mypy={TOOLS / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={TOOLS / 'protoc-gen-mypy_grpc'}",
        f"--python_out={raw}",
        f"--grpc_python_out={raw}",
        f"--mypy_out=quiet:{raw}",
        f"--mypy_grpc_out=quiet:{raw}",
    )
    files = _own_files(image)
    (fresh / "v1").mkdir(parents=True)
    (fresh / "v1" / "__init__.py").write_text(f'"""The generated modules of {PACKAGE}, as protoc wrote them."""\n')
    for file in files:
        stem = Path(file.name).stem
        # protoc also writes a gRPC module for a file without services; it says nothing, so it is left out.
        kinds = ("_pb2", "_pb2_grpc") if file.service else ("_pb2",)
        for name in (f"{stem}{kind}{suffix}" for kind in kinds for suffix in (".py", ".pyi")):
            text = (raw / PACKAGE_PATH / name).read_text()
            (fresh / "v1" / name).write_text(_relocated(text))
    (fresh / "__init__.py").write_text(_namespace(files))


def _own_files(image: Path) -> list[FileDescriptorProto]:
    described = FileDescriptorSet.FromString(image.read_bytes())
    return sorted((file for file in described.file if file.package == PACKAGE), key=lambda file: file.name)


def _relocated(text: str) -> str:
    text = re.sub(rf"^from {re.escape(PACKAGE)} import ", f"from {MODULES} import ", text, flags=re.MULTILINE)
    # The Python name of the module that messages say they are from, which pickling and error texts use.
    return re.sub(rf"'{re.escape(PACKAGE)}\.(\w+_pb2)'", rf"'{MODULES}.\1'", text)


def _namespace(files: list[FileDescriptorProto]) -> str:
    """The text of pb/__init__.py: every message, enum, enum value, stub and servicer under its own name."""
    imports: list[str] = []
    typed: list[str] = []
    exported: list[str] = []
    for file in files:
        stem = Path(file.name).stem
        names = [message.name for message in file.message_type]
        for enum in file.enum_type:
            names += [enum.name, *(value.name for value in enum.value)]
        imports.append(_import(f"{MODULES}.{stem}_pb2", names))
        exported += names
        for service in file.service:
            runtime = [f"{service.name}Stub", f"{service.name}Servicer", f"add_{service.name}Servicer_to_server"]
            imports.append(_import(f"{MODULES}.{stem}_pb2_grpc", runtime))
            typed.append(_import(f"{MODULES}.{stem}_pb2_grpc", [f"{service.name}AsyncStub"], indent="    "))
            exported += runtime
    repeated = sorted({name for name in exported if exported.count(name) > 1})
    if repeated:
        raise ContractError(f"names that two files share cannot stand in one namespace: {', '.join(repeated)}")
    stems = [Path(file.name).stem for file in files]
    aliases = {f"{stem}_pb2": f"_{stem}" for stem in stems}
    modules = _import(MODULES, list(aliases), aliases=aliases)
    descriptors = "".join(f"    _{stem}.DESCRIPTOR,\n" for stem in stems)
    everything = "".join(f'    "{name}",\n' for name in ["FILES", "SERVICES", *exported])
    return (
        f'"""The contract {PACKAGE} in one flat namespace. Generated by scripts/proto; do not edit.\n\n'
        "`pb.RunCaseRequest`, `pb.CASE_STATE_RUNNING`, `pb.CaseServiceStub`, `pb.add_CaseServiceServicer_to_server`.\n"
        "For annotations only, `pb.CaseServiceAsyncStub` is the type of a stub over a grpc.aio channel.\n"
        '"""\n\n'
        "from __future__ import annotations\n\n"
        "from typing import TYPE_CHECKING, Final\n\n"
        "from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor\n\n"
        f"{modules}{''.join(imports)}\n"
        f"if TYPE_CHECKING:\n{''.join(typed)}\n"
        f"FILES: Final[tuple[FileDescriptor, ...]] = (\n{descriptors})\n"
        '"""Every file of the contract."""\n\n'
        "SERVICES: Final[tuple[ServiceDescriptor, ...]] = tuple(\n"
        "    service for file in FILES for service in file.services_by_name.values()\n)\n"
        '"""Every service of the contract, with its methods and their google.api.http routes."""\n\n'
        f"__all__ = [\n{everything}]\n"
    )


def _import(module: str, names: list[str], *, indent: str = "", aliases: dict[str, str] | None = None) -> str:
    clauses = [f"{name} as {(aliases or {}).get(name, name)}" for name in names]
    line = f"{indent}from {module} import {', '.join(clauses)}"
    if len(line) <= LINE_MAX:
        return f"{line}\n"
    body = "".join(f"{indent}    {clause},\n" for clause in clauses)
    return f"{indent}from {module} import (\n{body}{indent})\n"


def _install(fresh: Path, committed: Path) -> int:
    """Makes `committed` equal to `fresh`, touching only what differs; how many files that were."""
    differing = _differences(fresh, committed)
    for name in differing:
        if (fresh / name).exists():
            (committed / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(fresh / name, committed / name)
        else:
            (committed / name).unlink()
    return len(differing)


def _differences(fresh: Path, committed: Path) -> list[str]:
    wanted = _texts(fresh)
    present = _texts(committed)
    changed = {name for name in wanted & present if not filecmp.cmp(fresh / name, committed / name, shallow=False)}
    return sorted(changed | (wanted ^ present))


def _texts(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.py*") if path.suffix in {".py", ".pyi"}}


def _size(image: Path) -> str:
    services = [service for file in _own_files(image) for service in file.service]
    return f"{len(services)} services with {sum(len(service.method) for service in services)} methods"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
