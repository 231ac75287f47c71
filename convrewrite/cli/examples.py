"""Lines that each command's --help ends with. A test parses every one of them."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "explain": (
        "convrewrite explain",
        "convrewrite explain separable",
        "convrewrite explain fcn/position-dependent-constant",
    ),
    "fcn": (
        "convrewrite fcn classifier.onnx any-size.onnx",
        "convrewrite fcn classifier.onnx dense.onnx --stride 4 --html report.html",
        "convrewrite fcn classifier.onnx pixels.onnx --dense --upsample bilinear",
        "convrewrite fcn classifier.onnx - | convrewrite separable - out.onnx",
    ),
    "separable": (
        "convrewrite separable model.onnx small.onnx --tol 0.1",
        "convrewrite separable model.onnx fast.onnx --tol 0.1 --accept faster",
        "convrewrite separable model.onnx small.onnx --tol 0.3 --data digits.npz",
    ),
    "groups": (
        "convrewrite groups model.onnx grouped.onnx",
        "convrewrite groups model.onnx grouped.onnx --tol 0.2 --into 2",
        "convrewrite groups grouped.onnx plain.onnx --expand dense",
    ),
    "transform": (
        "convrewrite transform fc-to-conv model.onnx out.onnx",
        "convrewrite transform separable model.onnx out.onnx --set tol=0.1",
    ),
    "fc-to-conv": (
        "convrewrite fc-to-conv model.onnx out.onnx",
        "convrewrite fc-to-conv model.onnx out.onnx --only 'fc*'",
    ),
    "conv-to-fc": (
        "convrewrite conv-to-fc model.onnx out.onnx",
        "convrewrite conv-to-fc model.onnx out.onnx --skip 'head*'",
    ),
    "verify": (
        "convrewrite verify classifier.onnx any-size.onnx --size 224,512x768",
        "convrewrite verify a.onnx b.onnx --data digits.npz --where",
        "convrewrite verify a.onnx b.onnx --save-failing failing.npz > result.txt",
    ),
    "bench": (
        "convrewrite bench a.onnx b.onnx --size 224 --batch 1,8",
        "convrewrite bench a.onnx b.onnx --min-speedup 1.2 --report bench.json",
        "convrewrite bench classifier.onnx any-size.onnx --windows --size 512",
    ),
    "inspect": (
        "convrewrite inspect model.onnx --sort macs",
        "convrewrite inspect model.onnx --tol 0.1 --html layers.html",
        "convrewrite inspect model.onnx --toeplitz conv1 --size 8x8",
    ),
    "run": (
        "convrewrite run",
        "convrewrite run models.toml --check",
        "convrewrite run --dry-run",
    ),
    "init": ("convrewrite init", "convrewrite init models.toml"),
    "apply": (
        "convrewrite apply any-size.onnx slide.tif map.zarr --memory 8GB",
        "convrewrite apply any-size.onnx scene.npy map.npy --scale 255",
        "convrewrite apply any-size.onnx photo.png map.png --top1 --html map.html",
    ),
}
