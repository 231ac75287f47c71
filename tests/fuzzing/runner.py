"""Several servers at a time, and what they found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from fuzzing.cases import case

TESTS = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Found:
    """What a run found: how many cases ran, and what was wrong with which."""

    ran: int
    faults: dict[int, str]
    text: str


def fuzz(models: Path, numbers: range, *, processes: int = 2, slow: bool = False) -> Found:
    """Run the cases of a range of numbers over the models of a folder."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}
    environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "COLUMNS": "200"}
    servers = []
    for share in range(processes):
        words = map(str, (models, numbers.start + share, numbers.stop, processes))
        command = [sys.executable, "-m", "fuzzing.server", *words, *(["slow"] if slow else [])]
        servers.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    try:
        answers = [json.loads(line) for server in servers for line in (server.communicate()[0] or "").splitlines()]
    finally:
        for server in servers:
            server.kill()
    faults = {answer["case"]: answer["fault"] for answer in answers if answer["fault"]}
    told = [f"{case(number, models, slow=slow)}\n    {fault}" for number, fault in sorted(faults.items())]
    again = f"python -m fuzzing.cases NUMBER FOLDER --models {models}{' --slow' if slow else ''}   (in tests/)"
    return Found(len(answers), faults, "\n".join([*told, f"again: {again}"]) if told else "")


def main() -> None:
    """MODELS FIRST STOP [slow]: run, and print what was found."""
    models, first, stop = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    found = fuzz(models, range(first, stop), slow="slow" in sys.argv[4:])
    print(found.text)
    print(f"{found.ran} cases, {len(found.faults)} faults")


if __name__ == "__main__":
    main()
