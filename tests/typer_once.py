"""Lets typer make the commands once per process that tests call them in.

It makes all of them from their signatures each time that one is called, which is most of the time that a command on a
small model takes. Whoever calls commands in its own process imports this module.
"""

from __future__ import annotations

import functools

import typer

if not hasattr(typer.main.get_command, "cache_info"):
    typer.main.get_command = functools.cache(typer.main.get_command)
