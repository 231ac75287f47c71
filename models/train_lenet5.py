"""Train LeNet-5 on scikit-learn's handwritten digits and write ``lenet5.onnx`` beside this file.

    pip install -e ".[train]"
    python -m convrewrite.models.train_lenet5

The network is the one of ``lenet.py`` (ReLU and max pooling) with 11 classes: the digits, and "background,
or nothing centred here", learned from plain paper and from off-centre and cut digits. That eleventh class
makes the class map on a large image meaningful: without it every empty window would be some digit.

Seeded, single-threaded and deterministic: one machine gives the same file every time. Takes about a minute.
"""

from __future__ import annotations

import importlib
from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from convrewrite.models import digits, lenet, lenet5_path

EPOCHS, BATCH, LEARNING_RATE, WEIGHT_DECAY, SEED = 100, 64, 2e-3, 1e-3, 0
torch: Any = importlib.import_module("torch")  # no dependency of convrewrite: only this script needs it


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


def train() -> Any:
    """Adam with a cosine schedule on fresh random patches every epoch."""
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    rng = np.random.default_rng(SEED)
    images, labels = digits.glyphs("train")
    net = network()
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for epoch in range(1, EPOCHS + 1):
        inputs, targets = digits.patches(images, labels, rng)
        order = rng.permutation(len(inputs))
        total = 0.0
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            logits = net(torch.from_numpy(inputs[chosen]))
            loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets[chosen]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(chosen)
        schedule.step()
        if epoch % 10 == 0:
            print(f"epoch {epoch:3d}  loss {total / len(order):.4f}")
    return net.eval()


def classify(net: Any, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Class [N] of each window [N,1,32,32]."""
    with torch.no_grad():
        return np.asarray(net(torch.from_numpy(inputs)).argmax(1).numpy(), np.int64)


def report(net: Any) -> None:
    """Print the accuracies on the held-out digits: alone, in random patches, and on a canvas."""
    images, labels = digits.glyphs("held-out")
    alone = classify(net, images[:, None]) == labels
    print(f"held-out digits, centred: {alone.mean():.4f} ({alone.sum()} of {len(alone)})")

    inputs, targets = digits.patches(images, labels, np.random.default_rng(SEED + 1))
    correct = classify(net, inputs) == targets
    print(f"held-out patches, 11 classes: {correct.mean():.4f} ({correct.sum()} of {len(correct)})")

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
    model = lenet.build(classes=11, opset=13, weights=weights)
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    """Train, print the accuracies, write the model."""
    net = train()
    report(net)
    lenet5_path().write_bytes(export(net).SerializeToString(deterministic=True))
    print(f"wrote {lenet5_path().name}, {lenet5_path().stat().st_size} bytes")


if __name__ == "__main__":
    main()
