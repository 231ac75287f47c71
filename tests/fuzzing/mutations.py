"""What can be wrong with a model: any field of the file, what a field means to an operator, the bytes themselves."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper

from fuzzing import nasty

FIELD = FieldDescriptor
NOT_UTF8 = "QzQzQzQzQz"
"""Stands in a model for text that is not UTF-8, which protobuf would not take; put in once the model is bytes."""

SLIDING = ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "QLinearConv", "ConvInteger")
GEOMETRY = ("strides", "dilations", "pads", "kernel_shape", "output_padding", "output_shape")
LISTED = ("perm", "axes", "starts", "ends", "steps", "split", "sizes", *GEOMETRY)
NUMBERED = (
    "group",
    "axis",
    "ceil_mode",
    "transA",
    "transB",
    "keepdims",
    "to",
    "blocksize",
    "storage_order",
    "count_include_pad",
    "allowzero",
    "batch_dims",
    "p",
    "select_last_index",
)
OPERATORS = """Conv ConvTranspose Relu Gemm MatMul Flatten Reshape Transpose MaxPool AveragePool GlobalAveragePool Add
Concat Softmax BatchNormalization Squeeze Unsqueeze Identity Slice Pad Resize Gather Shape Cast Dropout Split ReduceMean
If Loop SequenceConstruct SequenceAt NonZero Einsum LSTM TopK DequantizeLinear QuantizeLinear Constant Rellu""".split()


def mutate(content: bytes, rng: random.Random) -> tuple[bytes, list[str]]:
    """A file with one to three things wrong, and what they are."""
    model = ModelProto.FromString(content)
    told: list[str] = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        change: Callable[[ModelProto, random.Random], str] = rng.choices((_any_field, _meaning), (45, 55))[0]
        try:
            told.append(change(model, rng))
        except (ValueError, TypeError, IndexError, AttributeError) as error:  # what protobuf itself will not hold
            told.append(f"nothing ({type(error).__name__})")
    mutated = model.SerializeToString()
    if NOT_UTF8.encode() in mutated:
        mutated = mutated.replace(NOT_UTF8.encode(), b"\xff\xfe" + b"\xff" * (len(NOT_UTF8) - 2))
    if rng.random() < 0.08:
        mutated, what = _bytes(mutated, rng)
        told.append(what)
    return mutated, told


# Any field ----------------------------------------------------------------------------------------------------------


def _messages(message: Any, path: str) -> Iterator[tuple[Any, str]]:
    yield message, path
    for field, value in message.ListFields():
        if field.type == FIELD.TYPE_MESSAGE:
            repeated = field.is_repeated if hasattr(field, "is_repeated") else field.label == FIELD.LABEL_REPEATED
            for index, child in enumerate(value if repeated else [value]):
                yield from _messages(child, f"{path}.{field.name}[{index}]" if repeated else f"{path}.{field.name}")


def _any_field(model: ModelProto, rng: random.Random) -> str:
    message, path = rng.choice(list(_messages(model, "model")))
    held = [field for field, _ in message.ListFields()]
    field = rng.choice(held if held and rng.random() < 0.8 else list(message.DESCRIPTOR.fields))
    name = f"{path}.{field.name}"
    if field.is_repeated:
        return _repeated(getattr(message, field.name), field, name, rng)
    if rng.random() < 0.2:
        message.ClearField(field.name)
        return f"{name} cleared"
    if field.type == FIELD.TYPE_MESSAGE:
        getattr(message, field.name).SetInParent()
        return f"{name} made"
    value = _value(field, rng)
    if field.type == FIELD.TYPE_BYTES and rng.random() < 0.5:
        old = getattr(message, field.name)
        value = rng.choice((old[:-1], old + b"\0", old[: len(old) // 2], old * 2, old[::-1]))
    setattr(message, field.name, value)
    return f"{name} = {value!r:.60}"


def _repeated(values: Any, field: FieldDescriptor, name: str, rng: random.Random) -> str:
    how = rng.choice(("delete", "duplicate", "swap", "clear", "set", "set", "add", "reverse"))
    place = rng.randrange(len(values)) if len(values) else 0
    plain = field.type != FIELD.TYPE_MESSAGE
    if how == "clear" or not len(values):
        if plain and rng.random() < 0.7:
            values.append(_value(field, rng))
            return f"{name} added"
        del values[:]
        return f"{name} emptied"
    if how == "delete":
        del values[place]
    elif how == "duplicate":
        values.append(values[place])
    elif how in ("swap", "reverse"):
        kept = [value if plain else type(value).FromString(value.SerializeToString()) for value in values]
        kept = kept[::-1] if how == "reverse" else [*kept[place:], *kept[:place]]
        del values[:]
        values.extend(kept)
    elif plain:
        value = _value(field, rng)
        if how == "add":
            values.append(value)
        else:
            values[place] = value
        return f"{name}[{place}] {how} {value!r:.60}"
    else:
        values[place].Clear()
    return f"{name}[{place}] {how}"


def _value(field: FieldDescriptor, rng: random.Random) -> Any:
    if field.type in (FIELD.TYPE_FLOAT, FIELD.TYPE_DOUBLE):
        return rng.choice(nasty.FLOATS)
    if field.type == FIELD.TYPE_STRING:
        return rng.choice([*nasty.STRINGS, NOT_UTF8, NOT_UTF8])
    if field.type == FIELD.TYPE_BYTES:
        return rng.choice(nasty.BYTES)
    if field.type == FIELD.TYPE_ENUM:
        return rng.choice([value.number for value in field.enum_type.values])
    return rng.choice(nasty.INTS)


# What a field means -------------------------------------------------------------------------------------------------


def _meaning(model: ModelProto, rng: random.Random) -> str:
    return rng.choices([change for change, _ in MEANINGS], [weight for _, weight in MEANINGS])[0](model, rng)


def _node(model: ModelProto, rng: random.Random) -> NodeProto:
    return rng.choice(model.graph.node)


def _set(node: NodeProto, name: str, value: Any) -> str:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    kind = AttributeProto.INTS if isinstance(value, list) and not value else None
    made = helper.make_attribute(name, value, attr_type=kind)
    copies = [AttributeProto.FromString(attribute.SerializeToString()) for attribute in kept]
    del node.attribute[:]
    node.attribute.extend([*copies, made])
    return f"{node.op_type} {name} = {value!r:.60}"


def _geometry(model: ModelProto, rng: random.Random) -> str:
    nodes = [node for node in model.graph.node if node.op_type in SLIDING] or list(model.graph.node)
    node = rng.choice(nodes)
    if rng.random() < 0.3:
        return _set(node, "group", rng.choice(nasty.INTS))
    if rng.random() < 0.15:
        return _set(node, "auto_pad", rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET", "nonsense", ""]))
    return _set(node, rng.choice(GEOMETRY), list(rng.choice(nasty.LISTS)))


def _attribute(model: ModelProto, rng: random.Random) -> str:
    node = _node(model, rng)
    held = [attribute.name for attribute in node.attribute]
    name = rng.choice([*held, *held, rng.choice(NUMBERED), rng.choice(LISTED)])
    kinds: list[Any] = [rng.choice(nasty.INTS), rng.choice(nasty.FLOATS), rng.choice(nasty.STRINGS)]
    kinds += [list(rng.choice(nasty.LISTS)), helper.make_tensor("t", TensorProto.FLOAT, [1], [0.5])]
    likely = 0 if name in NUMBERED else 3 if name in LISTED else rng.randrange(5)
    return _set(node, name, kinds[likely if rng.random() < 0.8 else rng.randrange(5)])


def _rewire(model: ModelProto, rng: random.Random) -> str:
    node = _node(model, rng)
    made = [name for other in model.graph.node for name in other.output]
    names = [*made, *(info.name for info in (*model.graph.input, *model.graph.initializer)), "", "nowhere"]
    new = rng.choice(names)
    if rng.random() < 0.25 and node.output:
        node.output[rng.randrange(len(node.output))] = new
        return f"{node.op_type} writes '{new}'"
    if not node.input or rng.random() < 0.15:
        node.input.append(new)
    else:
        node.input[rng.randrange(len(node.input))] = new
    return f"{node.op_type} reads '{new}'"


def _operator(model: ModelProto, rng: random.Random) -> str:
    node = _node(model, rng)
    old, node.op_type = node.op_type, rng.choice(OPERATORS)
    return f"{old} becomes {node.op_type}"


def _between(model: ModelProto, rng: random.Random) -> str:
    """An operator between a tensor and those that read it."""
    node = _node(model, rng)
    if not node.input:
        return "nothing"
    new = NodeProto(op_type=rng.choice(OPERATORS), input=[node.input[0]], output=["between"])
    node.input[0] = "between"
    model.graph.node.insert(0, new)
    return f"{new.op_type} ahead of {node.op_type}"


def _weight(model: ModelProto, rng: random.Random) -> str:
    tensor = rng.choice(model.graph.initializer)
    how = rng.choice(("dims", "empty", "type", "cast", "values", "field", "external", "dim"))
    if how == "dims":
        tensor.dims[:] = rng.choice(nasty.SHAPES)
    elif how == "dim" and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(nasty.INTS)
    elif how == "type":
        tensor.data_type = rng.choice([*range(27), 99, -1])
    elif how == "external":
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key in rng.sample(("location", "offset", "length", "checksum"), 3):
            tensor.external_data.add(
                key=key, value=rng.choice([*nasty.STRINGS, "in.onnx", str(rng.choice(nasty.INTS))])
            )
    else:
        return _refilled(tensor, how, rng)
    return f"weight '{tensor.name}' {how}: {list(tensor.dims)} of type {tensor.data_type}"


def _refilled(tensor: TensorProto, how: str, rng: random.Random) -> str:
    """Another array in place of a weight: the file stays consistent, the operator does not."""
    array = onnx.numpy_helper.to_array(tensor)
    if how == "empty":
        array = array[:0] if rng.random() < 0.5 or not array.ndim else array[..., :0]
    elif how == "cast":
        array = array.astype(rng.choice(("float16", "float64", "int8", "int32", "int64", "bool", "uint8")))
    elif how == "field":
        array = array.reshape(rng.choice((-1, (1, *array.shape), (*array.shape, 1))))
    else:
        array = array * rng.choice((0, float("nan"), float("inf"), 1e30, 1e-30)) if array.dtype.kind == "f" else -array
        array = array.astype(onnx.numpy_helper.to_array(tensor).dtype)
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return f"weight '{tensor.name}' {how}: {list(tensor.dims)} {array.dtype}"


def _shape(model: ModelProto, rng: random.Random) -> str:
    info = rng.choice([*model.graph.input, *model.graph.output, *model.graph.value_info])
    if rng.random() < 0.3:
        dims: list[Any] = rng.choice([["n", "c", "h", "w"], ["n", 3, "h", "w"], [1, 3, 8], None, *nasty.SHAPES])
        kind = info.type.tensor_type.elem_type if rng.random() < 0.7 else rng.choice([0, 6, 7, 8, 10, 11, 99])
        info.CopyFrom(helper.make_tensor_value_info(info.name, kind, dims))
        return f"'{info.name}' declared {dims}"
    if rng.random() < 0.1:
        info.type.CopyFrom(helper.make_sequence_type_proto(info.type))
        return f"'{info.name}' is a sequence"
    dims_of = info.type.tensor_type.shape.dim
    if not dims_of:
        return "nothing"
    dim = rng.choice(dims_of)
    if rng.random() < 0.3:
        dim.dim_param = rng.choice([*nasty.STRINGS, NOT_UTF8])
    else:
        dim.dim_value = rng.choice(nasty.INTS)
    return f"a dimension of '{info.name}' is {dim.dim_param or dim.dim_value!r:.60}"


def _versions(model: ModelProto, rng: random.Random) -> str:
    if rng.random() < 0.3:
        model.ir_version = rng.choice(nasty.INTS)
        return f"IR {model.ir_version}"
    opset = rng.choice(model.opset_import)
    opset.version = rng.choice([*nasty.INTS, *range(1, 27)])
    return f"opset {opset.version}"


def _metadata(model: ModelProto, rng: random.Random) -> str:
    key, value = rng.choice(nasty.KEYS[:3] if rng.random() < 0.8 else nasty.KEYS), rng.choice(nasty.METADATA)
    model.metadata_props.add(key=key, value=value)
    return f"metadata {key} = {value:.60}"


def _text(model: ModelProto, rng: random.Random) -> str:
    """A name everywhere it stands, so that only its text is odd."""
    old = rng.choice([name for node in model.graph.node for name in (*node.input, *node.output)] or [""])
    new = rng.choice([*nasty.STRINGS, NOT_UTF8])
    for names in (*(node.input for node in model.graph.node), *(node.output for node in model.graph.node)):
        for place, name in enumerate(names):
            if name == old:
                names[place] = new
    for info in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        if info.name == old:
            info.name = new
    return f"'{old}' is called {new!r:.60}"


def _ends(model: ModelProto, rng: random.Random) -> str:
    values = rng.choice((model.graph.output, model.graph.input))
    made = [name for node in model.graph.node for name in (*node.input, *node.output)]
    if rng.random() < 0.5 or not values:
        values.add().CopyFrom(helper.make_tensor_value_info(rng.choice([*made, "nowhere"]), TensorProto.FLOAT, None))
        return "another input or output"
    del values[rng.randrange(len(values))]
    return "an input or output less"


def _deep(model: ModelProto, rng: random.Random) -> str:
    """A node inside of an If inside of an If."""
    node = _node(model, rng)
    other = _branch(node)
    for _ in range(rng.choice((1, 3, 30))):
        branches = {"then_branch": _branch(node), "else_branch": other}
        node.CopyFrom(helper.make_node("If", ["condition"], list(node.output), **branches))
    model.graph.initializer.append(helper.make_tensor("condition", TensorProto.BOOL, [], [True]))
    return "a node inside of an If"


def _branch(node: NodeProto) -> onnx.GraphProto:
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in node.output]
    return helper.make_graph([NodeProto.FromString(node.SerializeToString())], "branch", [], outputs)


MEANINGS: list[tuple[Callable[[ModelProto, random.Random], str], int]] = [
    (_geometry, 20),
    (_attribute, 16),
    (_rewire, 10),
    (_operator, 6),
    (_between, 4),
    (_weight, 16),
    (_shape, 12),
    (_versions, 5),
    (_metadata, 8),
    (_text, 8),
    (_ends, 5),
    (_deep, 3),
]


def _bytes(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    place = rng.randrange(max(1, len(content)))
    how = rng.choice(("flip", "truncate", "insert", "repeat"))
    if how == "flip":
        flipped = bytearray(content)
        for _ in range(rng.choice((1, 1, 8))):
            if flipped:
                flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        return bytes(flipped), "bits flipped"
    if how == "truncate":
        return content[:place], f"truncated to {place} bytes"
    if how == "insert":
        return content[:place] + rng.randbytes(9) + content[place:], f"9 bytes inserted at {place}"
    return content + content[place:], f"the end repeated from {place}"
