"""What the training scripts share: the loop over fresh patches of digits, the accuracies, the file.

Seeded, single-threaded and deterministic: one machine gives the same file every time.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from convrewrite.models import digits

__all__ = ["SEED", "Recipe", "classify", "report", "save", "torch", "train"]

SEED = 0
torch: Any = importlib.import_module("torch")  # no dependency of convrewrite: only the training needs it


@dataclass(frozen=True)
class Recipe:
    """How to train. ``background``: patches without a centred digit, per digit. ``every``: epochs per printed line."""

    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float
    background: float = 1.0
    every: int = 10


def train(network: Callable[[], Any], recipe: Recipe, after_step: Callable[[Any, int], None] | None = None) -> Any:
    """Adam with a cosine schedule on fresh random patches every epoch.

    ``after_step`` gets the network and the epoch, from 1, after each step, and may change the weights.
    """
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    rng = np.random.default_rng(SEED)
    images, labels = digits.glyphs("train")
    net = network()
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs)
    for epoch in range(1, recipe.epochs + 1):
        inputs, targets = digits.patches(images, labels, rng, recipe.background)
        order = rng.permutation(len(inputs))
        total = 0.0
        for start in range(0, len(order), recipe.batch):
            chosen = order[start : start + recipe.batch]
            logits = net(torch.from_numpy(inputs[chosen]))
            loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets[chosen]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if after_step is not None:
                after_step(net, epoch)
            total += loss.item() * len(chosen)
        schedule.step()
        if epoch % recipe.every == 0:
            print(f"epoch {epoch:3d}  loss {total / len(order):.4f}", flush=True)
    return net.eval()


def classify(net: Any, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """The class [N] of each window [N, 1, 32, 32]."""
    with torch.no_grad():
        return np.asarray(net(torch.from_numpy(inputs)).argmax(1).numpy(), np.int64)


def report(net: Any) -> None:
    """Print the accuracies on the held-out digits: alone, and in random patches."""
    images, labels = digits.glyphs("held-out")
    alone = classify(net, images[:, None]) == labels
    print(f"held-out digits, centred: {alone.mean():.4f} ({alone.sum()} of {len(alone)})")

    inputs, targets = digits.patches(images, labels, np.random.default_rng(SEED + 1))
    correct = classify(net, inputs) == targets
    print(f"held-out patches, 11 classes: {correct.mean():.4f} ({correct.sum()} of {len(correct)})")


def save(model: onnx.ModelProto, path: Path) -> None:
    """Check the model, write it, and print its size."""
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
    print(f"wrote {path.name}, {path.stat().st_size} bytes")
