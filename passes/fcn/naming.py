"""What a network does that has no windows, by the name that its author knows it by.

    Concat [1, 1, D], [N, H W, D]                      ->   a class token in line with the positions
    MatMul [N, H W, D], [N, D, H W]                    ->   self-attention: every position reads every other one
    a mean over the columns, times the map             ->   coordinate attention, strip pooling

The walk finds that an axis does not fit; which of these it was is read from what the operands hold.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_graphsurgeon as gs

from convrewrite.engine.axes import atoms, large
from convrewrite.engine.graph import producer
from convrewrite.engine.operators import chosen
from convrewrite.passes.fcn.lifter import Lifter
from convrewrite.passes.fcn.views import Fixed, Parts, Refuse, State, Strip, View, Weights

POOLING = chosen("pool global-pool reduction")


def pools_of(states: Sequence[State]) -> frozenset[str]:
    """Anchors of the whole-map pools, and of softmaxes over a window, that some operands came through."""
    found = frozenset[str]()
    for state in states:
        if isinstance(state, View):
            found |= state.pools
        elif isinstance(state, Parts):
            found |= pools_of(state.members)
        elif isinstance(state, Weights):
            found |= state.view.pools | (frozenset({state.anchor}) if state.mass is not None else frozenset())
    return found


def positions_in_line(lifter: Lifter, node: gs.Node, members: Sequence[State], place: int) -> Refuse:
    """Why a Concat along positions is refused: a token of its own, two pools in one line, or a list of positions."""
    label = lifter.label(node)
    joined = [state.axes[place] if isinstance(state, View) else () for state in members]
    alone = [t.name for t, axis in zip(node.inputs, joined, strict=True) if not large(axis)]
    beside = [a for s in members if isinstance(s, View) for i, axis in enumerate(s.axes) if i != place for a in axis]
    if alone and any(atom.letter == "C" and atom.extent > 1 for atom in beside):  # tokens have features
        return Refuse("fcn/class-token", f"{label} puts '{alone[0]}' in line with the positions of the map")
    letters = [{atom.letter for atom in large(axis)} for axis in joined]
    pool = one_axis_pool(lifter, node)
    if pool is not None and not alone and any(one != letters[0] for one in letters):
        detail = f"{label} puts rows and columns in one line, which {lifter.label(pool)} pooled over the other axis"
        return Refuse("fcn/pools-one-axis", detail)
    return Refuse("fcn/position-in-output", f"{label} joins positions of the map one behind the other")


def product_of_two(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> Refuse:
    """Why a product of two tensors that both depend on the image is refused."""
    both = [large(atoms(state.axes)) for state in states[:2] if isinstance(state, View)]
    label = lifter.label(node)
    if len(both) == 2 and all(both) and "Softmax" in _kinds_ahead(node):
        return Refuse("fcn/self-attention", f"{label} multiplies each position by every other one")
    return Refuse("fcn/no-rule", f"{label} multiplies two tensors that depend on the image")


def _kinds_ahead(node: gs.Node) -> set[str]:
    """Operators that read the product, through no more than shapes, scales and masks."""
    found, todo = set[str](), [node]
    while todo:
        for tensor in todo.pop().outputs:
            for reader in tensor.outputs:
                if reader.op not in found:
                    found.add(reader.op)
                    if reader.op in ("Mul", "Div", "Add", "Reshape", "Transpose", "Where", "Cast", "Squeeze"):
                        todo.append(reader)
    return found


def named(lifter: Lifter, node: gs.Node, refused: Refuse) -> Refuse:
    """The refusal of a node, by the name of what the network does; with the pools that led to it."""
    pools = refused.pools | pools_of([lifter.state(tensor) for tensor in node.inputs])
    if refused.reason.code == "fcn/spatial-broadcast":
        pool = one_axis_pool(lifter, node)
        if pool is not None:
            return meets_the_map(lifter, node, pool, pools)
    return Refuse(refused.reason.code, refused.detail, pools)


def meets_the_map(lifter: Lifter, node: gs.Node, pool: gs.Node, pools: frozenset[str] = frozenset()) -> Refuse:
    """The refusal where what was pooled over one axis alone goes back into the map."""
    return Refuse(
        "fcn/pools-one-axis", f"{lifter.label(node)} spreads what {lifter.label(pool)} took over one axis", pools
    )


def one_axis_pool(lifter: Lifter, node: gs.Node) -> gs.Node | None:
    """The pool ahead of a node that took the rows alone, or the columns, of a map that has both."""
    todo, seen = list(node.inputs), set[str]()
    while todo:
        tensor = todo.pop()
        made = producer(tensor)
        if made is None or tensor.name in seen:
            continue
        seen.add(tensor.name)
        after = _extended(lifter.state(tensor))
        before = [_extended(lifter.state(t)) for t in made.inputs]
        if made.op in POOLING and after and any(after < more for more in before):
            return made
        todo += [t for t, letters in zip(made.inputs, before, strict=True) if len(letters) == 1]
        if len(after) == 1:
            todo += [t for t, letters in zip(made.inputs, before, strict=True) if len(letters) > 1]
    return None


def _extended(state: State) -> set[str]:
    """The letters of the axes along which a tensor has several positions."""
    view = state.view if isinstance(state, Strip | Weights) else state
    return {atom.letter for atom in large(atoms(view.axes))} if isinstance(view, View) else set()


def mixed(lifter: Lifter, node: gs.Node, views: Sequence[View], fixed: Sequence[State]) -> frozenset[str]:
    """Pools that must be global too, where a value of one window meets one of the whole image; never a mixture.

    Raises:
        Refuse: the value of the window came through no pool.
    """
    whole = [s for s in fixed if isinstance(s, Fixed) and s.pools & lifter.forced]
    if not whole or not all(view.one_position for view in views):
        return frozenset()
    pools = frozenset[str]().union(*(view.pools for view in views))
    if not pools:
        what = f"{lifter.label(node)} joins what one window gives with what the whole image gives"
        raise Refuse("fcn/no-rule", what)
    return pools
