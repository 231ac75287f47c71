"""A number, and a folder of models, give a case: a file with something wrong, and the command that gets it."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from pathlib import Path

from convrewrite.passes import ALL
from fuzzing.mutations import mutate

REWRITING = {
    "fcn": [
        [],
        ["--size", "24x24"],
        ["--window", "16x12"],
        ["--dynamic-batch"],
        ["--dense"],
        ["--upsample", "nearest"],
    ],
    "separable": [["--tol", "0.1"], ["--tol", "0.5", "--accept", "always"], []],
    "groups": [["--tol", "0.1"], ["--into", "2", "--tol", "0.9"], ["--expand", "branches"], ["--expand", "dense"]],
    "fc-to-conv": [[]],
    "conv-to-fc": [[], ["--size", "16"]],
}
COMMANDS = {
    "fcn": 30,
    "separable": 14,
    "groups": 12,
    "fc-to-conv": 8,
    "conv-to-fc": 6,
    "transform": 8,
    "inspect": 14,
    "verify": 8,
    "apply": 3,
}
REWRITING["transform"] = [[kind.name] for kind in ALL if kind.step_of is None and kind.name not in COMMANDS]
SLOW = {"bench": 2, "run": 2}
"""Commands that start processes of their own: only in a long run."""


@dataclass(frozen=True)
class Case:
    """One case. `model`: what it started from. `content`: of the file. `told`: what was done to it."""

    number: int
    model: Path
    content: bytes
    told: tuple[str, ...]
    command: str
    options: tuple[str, ...]

    def words(self, folder: Path) -> list[str]:
        """The command line, for a folder that `lay` has filled."""
        made, out, right = str(folder / "in.onnx"), str(folder / "out.onnx"), str(folder / "right.onnx")
        if self.command == "inspect":
            return ["inspect", made, *self.options]
        if self.command == "verify":
            return ["verify", made, right] if "first" in self.options else ["verify", right, made]
        if self.command == "bench":
            return ["bench", made, right, "--seconds", "0.2"]
        if self.command == "apply":
            return ["apply", made, str(folder / "image.npy"), str(folder / "out.npy"), "--workers", "1"]
        if self.command == "run":
            return ["run", str(folder / "convrewrite.toml"), "--jobs", "1"]
        if self.command == "transform":
            return ["transform", *self.options, made, out]
        return [self.command, made, out, *self.options]

    def lay(self, folder: Path) -> None:
        """Put what the command reads into a folder."""
        (folder / "in.onnx").write_bytes(self.content)
        if self.command in ("verify", "bench"):
            (folder / "right.onnx").write_bytes(self.model.read_bytes())
        if self.command == "run":
            text = 'models = ["in.onnx"]\noutput = "made/{name}.onnx"\nsteps = [{ pass = "fcn" }]\n'
            (folder / "convrewrite.toml").write_text(text)
        if self.command == "apply":
            import numpy as np

            np.save(folder / "image.npy", np.zeros((3, 32, 24), np.float32))

    def __str__(self) -> str:
        done = "; ".join(self.told)
        return f"case {self.number}: {self.command} {' '.join(self.options)} on {self.model.stem}: {done}"


def case(number: int, models: Path, *, slow: bool = False) -> Case:
    """The case of a number. `models`: a folder. `slow`: with the commands that take seconds."""
    rng = random.Random(number)
    model = rng.choice(sorted(models.glob("*.onnx")))
    weights = COMMANDS | (SLOW if slow else {})
    command = rng.choices(list(weights), list(weights.values()))[0]
    if command in REWRITING:
        options = rng.choice(REWRITING[command])
        options = [*options, "--no-verify"] if rng.random() < 0.25 else options
    else:
        options = {"verify": [rng.choice(("first", "second"))], "inspect": ["--tol", "0.1"]}.get(command, [])
    content, told = mutate(model.read_bytes(), rng)
    return Case(number, model, content, tuple(told), command, tuple(options))


def main() -> None:
    """NUMBER FOLDER [--models FOLDER] [--slow] [--debug]: lay out a case, run it, and say what was wrong."""
    from fuzzing import checks, seeds

    number, folder = int(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    models = folder / "models"
    if "--models" in sys.argv:
        models = Path(sys.argv[sys.argv.index("--models") + 1])
    else:
        models.mkdir(exist_ok=True)
        seeds.write(models)
    chosen = case(number, models, slow="--slow" in sys.argv)
    print(chosen)
    place = folder / f"case{number}"
    place.mkdir()
    print("convrewrite", *chosen.words(place))
    debug = ["--debug"] if "--debug" in sys.argv else []
    print(checks.faults(chosen, place, debug, quiet=False) or "nothing wrong")


if __name__ == "__main__":
    main()
