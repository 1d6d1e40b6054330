"""Server reflection, under its name of today and the one that older tools ask for.

The messages of grpc.reflection.v1 and v1alpha are the same on the wire, so one service answers both.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from types import SimpleNamespace
from typing import Final

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from knhk_workflow import CallMeta

SERVICE: Final = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
NAME_OF_TODAY: Final = "grpc.reflection.v1.ServerReflection"


class Reflection:
    """Tells which services are here and how their messages look."""

    def __init__(self, services: Iterable[str]) -> None:
        """`services` are full proto names."""
        pool = descriptor_pool.Default()
        known = SimpleNamespace(
            FindFileByName=pool.FindFileByName,
            FindFileContainingSymbol=_file_of,
            FindMessageTypeByName=pool.FindMessageTypeByName,
            FindExtensionByNumber=pool.FindExtensionByNumber,
            FindAllExtensions=pool.FindAllExtensions,
        )
        self._servicer = ReflectionServicer((*services, SERVICE.full_name), known)

    def server_reflection_info(
        self, requests: AsyncIterator[reflection_pb2.ServerReflectionRequest], meta: CallMeta
    ) -> AsyncIterator[reflection_pb2.ServerReflectionResponse]:
        """One answer per question, in order."""
        answers: AsyncIterator[reflection_pb2.ServerReflectionResponse]
        answers = self._servicer.ServerReflectionInfo(requests, None)
        return answers


def _file_of(symbol: str) -> FileDescriptor:
    """The file that defines a symbol; a method's too, which the pool itself does not find. KeyError."""
    pool = descriptor_pool.Default()
    service, _, method = symbol.rpartition(".")
    try:
        return pool.FindFileContainingSymbol(symbol)
    except KeyError:
        found = pool.FindServiceByName(service)
        if method not in found.methods_by_name:
            raise
        return found.file
