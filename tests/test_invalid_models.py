"""Models that contradict themselves, through every command: exit code 2, one line, nothing written; and models that
look odd but run, which nobody may call invalid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_models import call, plain, save, snapshot
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

from convrewrite import model_io
from convrewrite.engine.windows import METADATA_KEY
from convrewrite.errors import UsageError
from convrewrite.running import faults, runtime
from nets import Net, run

Change = Callable[[ModelProto], None]


def conv(model: ModelProto, op: str = "Conv") -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == op)


def weight_of(model: ModelProto, place: int = 1, op: str = "Conv") -> TensorProto:
    name = conv(model, op).input[place]
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def one_name(model: ModelProto) -> None:
    for node in model.graph.node:
        node.name = "n"


def attribute(name: str, value: object, op: str = "Conv") -> Change:
    def change(model: ModelProto) -> None:
        node = conv(model, op)
        kept = [AttributeProto.FromString(a.SerializeToString()) for a in node.attribute if a.name != name]
        kind = AttributeProto.INTS if value == [] else None
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value, attr_type=kind)])

    return change


def array(make: Callable[[np.ndarray], np.ndarray], place: int = 1, op: str = "Conv") -> Change:
    """Another array in place of a weight."""

    def change(model: ModelProto) -> None:
        tensor = weight_of(model, place, op)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(make(numpy_helper.to_array(tensor))), tensor.name))

    return change


def on_weight(**fields: object) -> Change:
    def change(model: ModelProto) -> None:
        tensor = weight_of(model)
        for name, value in fields.items():
            if name == "dims":
                tensor.dims[:] = value
            else:
                setattr(tensor, name, value)

    return change


def external(location: str, **entries: str) -> Change:
    def change(model: ModelProto) -> None:
        tensor = weight_of(model)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **entries}.items():
            tensor.external_data.add(key=key, value=value)

    return change


def on_graph(change: Callable[[onnx.GraphProto], object]) -> Change:
    return on_model(lambda model: change(model.graph))


def on_model(change: Callable[[ModelProto], object]) -> Change:
    return lambda model: (change(model), None)[1]


def inserted(op: str, inputs: list[str] | None = None, **attributes: object) -> Change:
    """An operator between the first convolution and what reads it."""

    def change(model: ModelProto) -> None:
        node = conv(model)
        name, node.output[0] = node.output[0], "ahead"
        new = helper.make_node(op, inputs or ["ahead"], [name], **attributes)
        place = list(model.graph.node).index(node) + 1
        nodes = list(model.graph.node)
        nodes.insert(place, new)
        del model.graph.node[:]
        model.graph.node.extend(nodes)

    return change


def opset(version: int) -> Change:
    return lambda model: setattr(model.opset_import[0], "version", version)


def metadata(text: str, key: str = METADATA_KEY) -> Change:
    return on_model(lambda model: model.metadata_props.add(key=key, value=text))


def renamed(field: Callable[[ModelProto], tuple[object, str]]) -> Change:
    """Text that is not UTF-8: protobuf does not take it, so a mark stands for it until the model is bytes."""

    def change(model: ModelProto) -> None:
        holder, name = field(model)
        setattr(holder, name, MARK)

    return change


MARK = "QzQzQzQz"

INVALID: dict[str, Change] = {
    "pads of wrong length": attribute("pads", [1, 1, 1]),
    "negative pads": attribute("pads", [-1, -1, -1, -1]),
    "no pads": attribute("pads", []),
    "strides of zero": attribute("strides", [0, 0]),
    "negative strides": attribute("strides", [-1, 1]),
    "one stride": attribute("strides", [1]),
    "dilations of zero": attribute("dilations", [0, 1]),
    "three dilations": attribute("dilations", [1, 1, 1]),
    "a kernel_shape of another size": attribute("kernel_shape", [5, 5]),
    "a kernel_shape of another rank": attribute("kernel_shape", [3]),
    "a huge kernel_shape": attribute("kernel_shape", [3, 2**40]),
    "a way to pad that is none": attribute("auto_pad", "SOMEHOW"),
    "nodes of one name": one_name,
    "group 0": attribute("group", 0),
    "a negative group": attribute("group", -1),
    "a group that does not divide": attribute("group", 3),
    "a huge group": attribute("group", 2**62),
    "a group for other channels": attribute("group", 2),
    "an attribute of another type": attribute("strides", 2),
    "a string where a list belongs": attribute("pads", "1111"),
    "an axis out of range": attribute("axis", 9, "Flatten"),
    "a weight of rank 3": array(lambda w: w[0]),
    "a weight for other channels": array(lambda w: w[:, :2]),
    "a weight of integers": array(lambda w: w.astype(np.int64)),
    "a weight of double precision": array(lambda w: w.astype(np.float64)),
    "no weight at all": array(lambda w: w[:0]),
    "a bias of another length": array(lambda b: b[:-1], 2),
    "an empty bias": array(lambda b: b[:0], 2),
    "a bias of rank 2": array(lambda b: b[None], 2),
    "a matrix for other features": array(lambda w: w[:, :-1], 1, "Gemm"),
    "an empty matrix": array(lambda w: w[:0], 1, "Gemm"),
    "a vector for a matrix": array(lambda w: w[0], 1, "Gemm"),
    "too little data": on_weight(raw_data=b"\0\0\0\0"),
    "huge extents": on_weight(dims=[2**31, 2**31, 3, 3]),
    "extents that overflow": on_weight(dims=[2**62, 4, 1, 1]),
    "a negative extent": on_weight(dims=[-4, 3, 3, 3]),
    "an unknown type": on_weight(data_type=99),
    "no type": on_weight(data_type=0),
    "external data outside": external("../x"),
    "external data with a root": external("/etc/passwd"),
    "external data with a long name": external("a" * 5000),
    "external data of no name": external(""),
    "external data with a zero byte": external("a\0b"),
    "external data at no offset": external("in.onnx", offset="-5"),
    "external data far behind the end": external("in.onnx", offset=str(2**62), length=str(2**62)),
    "external data at no number": external("in.onnx", offset="nan", length="1e999"),
    "a permutation that is none": inserted("Transpose", perm=[0, 0, 1, 2]),
    "a permutation of another rank": inserted("Transpose", perm=[1, 0]),
    "a type that is none": inserted("Cast", to=999),
    "a reading of nothing": on_graph(lambda graph: conv(ModelProto(graph=graph)) and graph.node[1].input.pop()),
    "an output that nobody makes": on_graph(lambda graph: setattr(graph.output[0], "name", "nowhere")),
    "a node without outputs": on_graph(lambda graph: graph.node[0].output.pop()),
    "two that make one tensor": on_graph(lambda graph: graph.node.add().CopyFrom(graph.node[0])),
    "a cycle": on_graph(lambda graph: graph.node[0].input.__setitem__(0, graph.node[-1].output[0])),
    "an input larger than machines": on_graph(
        lambda graph: setattr(graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 2**62)
    ),
    "opset 0": opset(0),
    "opset a million": opset(10**6),
    "a negative opset": opset(-1),
    "no operator set": lambda model: model.ClearField("opset_import"),
    "an IR version of the future": lambda model: setattr(model, "ir_version", 10**6),
    "no IR version": lambda model: setattr(model, "ir_version", 0),
    "a name that is not UTF-8": renamed(lambda model: (model.graph.node[0], "name")),
    "a dimension that is not UTF-8": renamed(
        lambda model: (model.graph.input[0].type.tensor_type.shape.dim[0], "dim_param")
    ),
    "an operator that is not UTF-8": renamed(lambda model: (model.graph.node[1], "op_type")),
    "a domain that is not UTF-8": renamed(lambda model: (model.graph.node[1], "domain")),
    "an input that is not UTF-8": renamed(lambda model: (model.graph.input[0], "name")),
}

COMMANDS = {
    "fcn": ["fcn", "IN", "OUT"],
    "separable": ["separable", "--tol", "0.1", "IN", "OUT"],
    "groups": ["groups", "--tol", "0.1", "IN", "OUT"],
    "fc-to-conv": ["fc-to-conv", "IN", "OUT"],
    "conv-to-fc": ["conv-to-fc", "IN", "OUT"],
    "transform": ["transform", "open-batch", "IN", "OUT"],
    "unverified": ["fcn", "IN", "OUT", "--no-verify"],
    "inspect": ["inspect", "IN"],
    "verify a": ["verify", "IN", "RIGHT"],
    "verify b": ["verify", "RIGHT", "IN"],
    "bench": ["bench", "IN", "RIGHT"],
    "apply": ["apply", "IN", "IMAGE", "OUT.npy"],
}


def broken(change: Change) -> bytes:
    model = plain()
    change(model)
    return model.SerializeToString().replace(MARK.encode(), b"\xff\xfe" * 4)


@pytest.mark.parametrize("kind", INVALID)
def test_no_command_takes_a_model_that_contradicts_itself(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    paths = {name: tmp_path / file for name, file in (("IN", "in.onnx"), ("RIGHT", "right.onnx"), ("IMAGE", "i.npy"))}
    paths |= {"OUT": tmp_path / "out.onnx", "OUT.npy": tmp_path / "out.npy"}
    paths["IN"].write_bytes(broken(INVALID[kind]))
    save(plain(), paths["RIGHT"])
    np.save(paths["IMAGE"], np.zeros((3, 20, 20), np.float32))
    before = snapshot(tmp_path)
    for name, words in COMMANDS.items():
        code = call(monkeypatch, *(paths.get(word, word) for word in words))
        line = capfd.readouterr().err
        assert code == 2, f"{name}: exit {code}, {line}"
        assert line.startswith("error: "), f"{name}: {line}"
        assert line.count("\n") == 1, f"{name}: {line}"
        assert len(line) < 900
        assert not {"Traceback", "InferenceError(", "NoneType"} & set(line.split())
        assert snapshot(tmp_path) == before, name


def with_text(**fields: str) -> Change:
    return on_model(lambda model: [setattr(model, name, value) for name, value in fields.items()])


VALID: dict[str, Change] = {
    "a ceil_mode of 7": inserted("MaxPool", kernel_shape=[1, 1], ceil_mode=7),
    "a tensor that says it is a segment": lambda model: weight_of(model).segment.SetInParent(),
    "an attribute that refers to nothing": lambda model: setattr(conv(model).attribute.add(
        name="group", type=AttributeProto.INT, i=1), "ref_attr_name", "g"),
    "a producer that is not UTF-8": with_text(producer_name=MARK),
    "a doc string that is not UTF-8": with_text(doc_string=MARK),
    "metadata that is not UTF-8": metadata(MARK, "note"),
    "a key that is not UTF-8": metadata("note", MARK),
}  # fmt: skip


@pytest.mark.parametrize("kind", VALID)
def test_what_runs_is_not_called_invalid(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    source.write_bytes(broken(VALID[kind]))
    session = runtime.open_session(source)
    for value in session.run({"x": np.ones((1, 3, 16, 12), np.float32)}).values():
        assert np.isfinite(value).all()
    assert call(monkeypatch, "inspect", source) == 0
    for command in ("groups", "fc-to-conv", "conv-to-fc"):
        assert call(monkeypatch, command, source, target) in (0, 3), capfd.readouterr().err
    if target.exists() and "UTF-8" in kind:
        assert b"\xff\xfe" * 4 in target.read_bytes(), "what cannot be read is passed on"


def test_a_rewritten_model_keeps_text_that_is_not_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = plain()
    model.producer_name = model.doc_string = model.graph.doc_string = model.graph.node[0].doc_string = MARK
    model.metadata_props.add(key="note", value=MARK)
    model.metadata_props.add(key="plain", value="kept")
    (tmp_path / "in.onnx").write_bytes(broken(lambda made: made.CopyFrom(model)))
    assert call(monkeypatch, "fcn", tmp_path / "in.onnx", tmp_path / "out.onnx") == 0
    content = (tmp_path / "out.onnx").read_bytes()
    assert content.count(b"\xff\xfe" * 4) == 5
    assert model_io.load(tmp_path / "out.onnx").metadata["plain"] == "kept"


@pytest.mark.parametrize(
    "text",
    [
        *("1e999", "NaN", "null", "3", '"window"', "[" * 100_000, "9" * 5000, "{}"),
        *('{"size": [1e999, 1]}', '{"size": [NaN, 1]}', '{"size": "1612"}', '{"size": [16]}', '{"size": [true, 12]}'),
        *('{"size": [16.5, 12]}', '{"size": [1e3, 12]}', '{"size": [9999999999999999999, 12]}', '{"size": {"0": 16}}'),
        *('{"stride": [0, 2]}', '{"stride": [-2, 2]}', '{"offset": ["a", "b"]}', '{"receptive_field": [0, 0]}'),
        *('{"axes": "NCNC"}', '{"axes": 4}', '{"axes": ""}', '{"axes": "NCWH"}', '{"input": "nowhere"}'),
        *('{"input": null}', '{"outputs": []}', '{"outputs": {"nowhere": {}}}', '{"outputs": {"y": 3}}'),
        '{"outputs": {"y": {"size": [0, 1]}}}',
        *('{"outputs": {"y": {"stride": [1]}}}', '{"outputs": {"y": {"layout": 3}}}', '{"equivalence": "perhaps"}'),
        *('{"coarse": [0, 0]}', '{"coarse": [1e999]}'),
    ],
)  # fmt: skip
def test_damaged_window_metadata_is_one_line(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    model = plain()
    output = model.graph.output[0].name
    right = '"input": "x", "axes": "NCHW", "size": [16, 12], "stride": [2, 2], "offset": [0, 0], "why": "", '
    right += f'"receptive_field": [7, 7], "equivalence": "windows", "outputs": {{"{output}": {{}}}}'
    entry = text.replace('"y"', f'"{output}"')
    metadata(f"{{{right}, {entry[1:]}" if text.startswith("{") and text != "{}" else entry)(model)
    source = save(model, tmp_path / "in.onnx")
    np.save(tmp_path / "i.npy", np.zeros((3, 20, 20), np.float32))
    right_model = save(plain(), tmp_path / "right.onnx")
    before = snapshot(tmp_path)
    for words in (["fcn", source, tmp_path / "o.onnx"], ["verify", right_model, source], ["bench", right_model, source],
                  ["apply", source, tmp_path / "i.npy", tmp_path / "o.npy"]):  # fmt: skip
        assert call(monkeypatch, *words) == 2
        line = capfd.readouterr().err
        assert line.count("\n") == 1
        assert METADATA_KEY in line
        assert snapshot(tmp_path) == before
    assert call(monkeypatch, "inspect", source) == 0 or METADATA_KEY in capfd.readouterr().err


# Whose fault it is ---------------------------------------------------------------------------------------------------


def test_an_unforeseen_error_is_ours_on_a_model_that_runs(tmp_path: Path) -> None:
    model = model_io.load(save(plain(), tmp_path / "in.onnx"))
    with pytest.raises(ZeroDivisionError), faults.blaming([model]):
        _ = 1 // 0


def test_an_unforeseen_error_is_the_models_where_it_does_not_run(tmp_path: Path) -> None:
    net = Net(1, 3, 8, 8)
    model = net.model(net.Gather("x", net.const([99]), axis=0), shapes={})
    loaded = model_io.load(save(model, tmp_path / "in.onnx"))
    with pytest.raises(Exception, match="out of"):
        run(model, {"x": np.ones((1, 3, 8, 8), np.float32)})
    with pytest.raises(UsageError, match=r"in\.onnx"), faults.blaming([loaded]):
        _ = 1 // 0


def test_what_has_an_exit_code_of_its_own_keeps_it(tmp_path: Path) -> None:
    loaded = model_io.load(save(plain(), tmp_path / "in.onnx"))
    with pytest.raises(UsageError, match="mine"), faults.blaming([loaded]):
        raise UsageError("mine")


def test_an_internal_error_stays_one_on_a_valid_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fault(*args: object, **more: object) -> None:
        raise KeyError("ours")

    monkeypatch.setattr("convrewrite.pipeline.any_size.run_pass", fault)
    assert call(monkeypatch, "fcn", save(plain(), tmp_path / "in.onnx"), tmp_path / "out.onnx") == 70
    assert capfd.readouterr().err.startswith("internal error: KeyError: 'ours'")
