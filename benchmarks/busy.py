"""A process that keeps one core busy until it is ended: what timing has to live with on a shared machine.

python benchmarks/busy.py
"""

from __future__ import annotations


def main() -> None:
    """Count, for ever."""
    count = 0
    while True:
        count += 1


if __name__ == "__main__":
    main()
