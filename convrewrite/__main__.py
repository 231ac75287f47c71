"""`python -m convrewrite`."""

from convrewrite.cli import main

if __name__ == "__main__":
    main()
