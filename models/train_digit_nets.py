"""Train the networks of ``digit_nets.py`` on scikit-learn's handwritten digits, and write them beside this file.

    pip install -e ".[train]"
    python -m convrewrite.models.train_digit_nets digits_vgg digits_dw7

The data, the classes and the loop are those of ``train_lenet5.py``. After each step the singular values of every
kernel larger than 1 x 1 are shrunk a little, in each of its forms (``redundancy.py``): that is the proximal step of the
nuclear norm, and starves the directions that the loss does not feed. The last epochs go without, so that no kernel is
of low rank to the last digit: the tails fall off fast, as those of a network larger than its task, and do not end.

Takes about three minutes a network on one core.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import Any

from convrewrite.models import digit_nets, trained_path
from convrewrite.models.digit_nets import BLOCKS, CHANNELS, CLASSES, STAGES
from convrewrite.models.redundancy import fold, forms, tails, unfold
from convrewrite.models.training import Recipe, report, save, torch, train

RECIPE = Recipe(epochs=16, batch=64, learning_rate=2e-3, weight_decay=1e-3, background=0.5, every=2)
FREE = 4
"""Epochs at the end in which nothing is shrunk."""
SHRINKAGE = {"digits_vgg": 0.001, "digits_dw7": 0.01}
"""Share of the largest singular value that each one loses per step."""
PARAMETERS = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
"""Of BatchNormalization: torch's names, and the builder's."""


def vgg() -> Any:
    """The layers of the small VGG up to the logits, under the names of ``digit_nets.py``."""
    nn = torch.nn
    layers: OrderedDict[str, Any] = OrderedDict()
    incoming = 1
    for stage in range(1, STAGES + 1):
        for index in (1, 2):
            layers[f"conv{stage}_{index}"] = nn.Conv2d(incoming, CHANNELS, 3, padding=1, bias=False)
            layers[f"bn{stage}_{index}"] = nn.BatchNorm2d(CHANNELS)
            layers[f"relu{stage}_{index}"] = nn.ReLU()
            incoming = CHANNELS
        layers[f"pool{stage}"] = nn.MaxPool2d(2)
    side = 32 >> STAGES
    return nn.Sequential(layers | {"flatten": nn.Flatten(), "logits": nn.Linear(CHANNELS * side * side, CLASSES)})


def dw7() -> Any:
    """The layers of the depthwise network up to the logits, under the names of ``digit_nets.py``."""
    nn = torch.nn
    layers: OrderedDict[str, Any] = OrderedDict()

    def add(name: str, convolution: Any) -> None:
        layers[name] = convolution
        layers[f"{name}_bn"] = nn.BatchNorm2d(convolution.out_channels)
        layers[f"{name}_relu"] = nn.ReLU()

    incoming = BLOCKS[0][0]
    add("stem", nn.Conv2d(1, incoming, 3, padding=1, bias=False))
    for index, (channels, stride) in enumerate(BLOCKS, 1):
        depthwise = nn.Conv2d(incoming, incoming, 7, stride=stride, padding=3, groups=incoming, bias=False)
        add(f"dw{index}", depthwise)
        add(f"pw{index}", nn.Conv2d(incoming, channels, 1, bias=False))
        incoming = channels
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(layers | {"flatten": nn.Flatten(), "logits": nn.Linear(incoming, CLASSES)})


NETWORKS = {"digits_vgg": vgg, "digits_dw7": dw7}


def shrink(net: Any, share: float) -> None:
    """Take ``share`` of the largest singular value from each singular value of each kernel, down to zero.

    The size of the kernel stays: BatchNormalization makes the network blind to it, and it would only change how far a
    step of the training goes.
    """
    with torch.no_grad():
        for layer in net:
            if not isinstance(layer, torch.nn.Conv2d) or layer.kernel_size == (1, 1):
                continue
            for form in forms(layer.groups):
                matrices = unfold(layer.weight, layer.groups, form)
                left, values, right = torch.linalg.svd(matrices, full_matrices=False)
                kept = (values - share * values[:, :1]).clamp(min=0)
                kept = kept * (values.norm(dim=1) / kept.norm(dim=1))[:, None]
                low = (left * kept[:, None, :]) @ right
                layer.weight.copy_(fold(low, tuple(layer.weight.shape), layer.groups, form))


def weights(net: Any) -> dict[str, Any]:
    """The parameters, under the names that the builder uses."""
    result = {}
    for name, value in net.state_dict().items():
        layer, parameter = name.rsplit(".", 1)
        if isinstance(net.get_submodule(layer), torch.nn.BatchNorm2d):
            if parameter not in PARAMETERS:
                continue
            parameter = PARAMETERS[parameter]
        result[f"{layer}.{parameter}"] = value.numpy()
    return result


def main(names: list[str]) -> None:
    """Train each, print the accuracies and the tails of the kernels, write the model."""
    for name in names or list(NETWORKS):

        def after_step(net: Any, epoch: int, share: float = SHRINKAGE[name]) -> None:
            if epoch <= RECIPE.epochs - FREE:
                shrink(net, share)

        net = train(NETWORKS[name], RECIPE, after_step)
        print(name)
        report(net)
        model = digit_nets.build(name, weights(net))
        print("kernel    form     at half the cost   at break-even")
        print(*tails(model), sep="\n")
        save(model, trained_path(name))


if __name__ == "__main__":
    main(sys.argv[1:])
