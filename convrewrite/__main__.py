"""`python -m convrewrite`."""

from convrewrite.cli.app import main

if __name__ == "__main__":
    main()
