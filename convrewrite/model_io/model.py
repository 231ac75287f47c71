"""What was read of a model file, and the graph that passes work on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs
from onnx import GraphProto, ModelProto, TensorProto

from convrewrite.model_io.checks import DEFAULT_DOMAIN
from convrewrite.model_io.protofile import MappedFile, Payload, Source, marked
from convrewrite.model_io.protograph import export_graph, tensors


@dataclass(frozen=True)
class Origin:
    """What was read: the file, its external data files by location, and the skeleton of its graph."""

    source: Source
    external: dict[str, MappedFile]
    graph: GraphProto
    payloads: list[Payload]

    @cached_property
    def sha256(self) -> str:
        """Hash over the file and its external data files."""
        digest = hashlib.sha256()
        for source in [self.source, *self.external.values()]:
            for chunk in source.chunks(0, source.size):
                digest.update(chunk)
        return digest.hexdigest()


@dataclass
class Model:
    """A graph, and all of its file that is not graph.

    Attributes:
        graph: the nodes; weights are lazy. Initializers that the file lists as inputs are no `graph.inputs`.
        ir_version: kept on saving.
        path: where it was read from; None for standard input and for a model made in memory.
        metadata: `metadata_props`, in order; those that are not UTF-8 stay in the shell.
        shell: the rest of the file: producer, doc_string, training_info, functions that could not be inlined.
        origin: what was read; None for a model made in memory.
    """

    graph: gs.Graph
    ir_version: int
    path: Path | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    shell: ModelProto = field(default_factory=ModelProto, repr=False)
    origin: Origin | None = field(default=None, repr=False)

    @property
    def opset(self) -> int:
        """The version of the default operator domain."""
        return int(self.graph.opset)

    @property
    def sha256(self) -> str:
        """The SHA-256 of the file as it was read, followed by its external data files in the order of their names."""
        return self.origin.sha256 if self.origin else ""

    @property
    def nbytes(self) -> int:
        """Size of the file as it was read, external data files included."""
        return sum(s.size for s in [self.origin.source, *self.origin.external.values()]) if self.origin else 0

    @property
    def defaults(self) -> tuple[str, ...]:
        """Initializers that the file lists as inputs, so that a caller may give other values (from IR version 4 on)."""
        if self.origin is None or self.ir_version < 4:
            return ()
        held = {tensor.name for tensor in self.origin.graph.initializer}
        return tuple(info.name for info in self.origin.graph.input if info.name in held)

    @property
    def has_external_data(self) -> bool:
        """Whether the file keeps tensors in other files."""
        return bool(self.origin and self.origin.external)

    def skeleton(self) -> ModelProto:
        """The whole model without the data of its large constants, for shape inference.

        Constants below 4 KiB and int64 vectors (the shapes that nodes take as inputs) keep their values.
        """
        proto, payloads = export(self)
        for tensor in tensors(proto.graph):
            index = marked(tensor.raw_data)
            if index is not None and tensor.data_type == TensorProto.INT64 and len(tensor.dims) <= 1:
                tensor.raw_data = bytes(payloads[index].view)
            elif index is not None:
                tensor.ClearField("raw_data")
        return proto


def export(model: Model) -> tuple[ModelProto, list[Payload]]:
    """The skeleton of what a save would write, and the payloads of its marks."""
    origin = model.origin
    graph, payloads = export_graph(
        model.graph,
        origin.graph if origin else GraphProto(),
        origin.payloads if origin else [],
        all_are_inputs=model.ir_version < 4,
    )
    proto = ModelProto()
    proto.CopyFrom(model.shell)
    proto.ir_version = model.ir_version
    proto.graph.CopyFrom(graph)
    proto.opset_import.extend(model.graph.import_domains or [onnx.helper.make_opsetid("", model.opset)])
    for opset in proto.opset_import:
        if opset.domain in DEFAULT_DOMAIN:
            opset.version = model.opset
    declared = {"ai.onnx", *(opset.domain for opset in proto.opset_import)}
    used = {n.domain for g in [model.graph, *model.graph.subgraphs(recursive=True)] for n in g.nodes if n.domain}
    proto.opset_import.extend(onnx.helper.make_opsetid(domain, 1) for domain in sorted(used - declared))
    for key, value in model.metadata.items():
        proto.metadata_props.add(key=key, value=value)
    return proto, payloads
