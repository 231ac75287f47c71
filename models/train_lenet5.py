"""Train LeNet-5 on scikit-learn's handwritten digits and write ``lenet5.onnx`` beside this file.

    pip install -e ".[train]"
    python -m convrewrite.models.train_lenet5

The network is the one of ``lenet.py`` (ReLU and max pooling) with 11 classes: the digits, and "background,
or nothing centred here", learned from plain paper and from off-centre and cut digits. That eleventh class
makes the class map on a large image meaningful: without it every empty window would be some digit.

Takes about a minute.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from convrewrite.models import digits, lenet, lenet5_path
from convrewrite.models.training import SEED, Recipe, classify, report, save, torch, train

RECIPE = Recipe(epochs=100, batch=64, learning_rate=2e-3, weight_decay=1e-3)


def network() -> Any:
    """The layers of ``lenet.py`` under the same names, up to the logits: [N,1,32,32] -> [N,11]."""
    nn = torch.nn
    return nn.Sequential(
        OrderedDict(
            c1=nn.Conv2d(1, 6, 5),
            relu1=nn.ReLU(),
            s2=nn.MaxPool2d(2),
            c3=nn.Conv2d(6, 16, 5),
            relu2=nn.ReLU(),
            s4=nn.MaxPool2d(2),
            flatten1=nn.Flatten(),
            c5=nn.Linear(400, 120),
            relu3=nn.ReLU(),
            f6=nn.Linear(120, 84),
            relu4=nn.ReLU(),
            logits=nn.Linear(84, 11),
        )
    )


def report_canvas(net: Any) -> None:
    """Print the accuracies on a canvas of held-out digits."""
    found, background = scan(net)
    print(f"canvas, window nearest to each digit: {found.mean():.4f} ({found.sum()} of {len(found)})")
    print(f"canvas, windows that no digit is centred in: {background.mean():.4f} are background")


def scan(net: Any, side: int = 1024, stride: int = 4) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Slide the window over a canvas: correct at each digit, and background at each window away from all."""
    image, placements = digits.canvas(side, side, seed=SEED)
    windows = np.lib.stride_tricks.sliding_window_view(image[0, 0], (digits.SIDE, digits.SIDE))
    windows = windows[::stride, ::stride]
    classes = np.stack([classify(net, np.ascontiguousarray(row[:, None])) for row in windows])
    corners = np.arange(len(classes)) * stride
    away = np.ones(classes.shape, bool)
    found = []
    for digit in placements:
        rows, columns = np.abs(corners - digit.top), np.abs(corners - digit.left)
        found.append(classes[rows.argmin(), columns.argmin()] == digit.label)
        away &= np.maximum(rows[:, None], columns) >= digits.OFF_CENTRE
    return np.asarray(found), classes[away] == digits.BACKGROUND


def export(net: Any) -> onnx.ModelProto:
    """The ONNX model of ``lenet.py`` with the trained weights; nothing else is in it."""
    weights = {name: value.numpy() for name, value in net.state_dict().items()}
    return lenet.build(classes=11, opset=13, weights=weights)


def main() -> None:
    """Train, print the accuracies, write the model."""
    net = train(network, RECIPE)
    report(net)
    report_canvas(net)
    save(export(net), lenet5_path())


if __name__ == "__main__":
    main()
