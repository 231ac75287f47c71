"""The options of every command, each declared once: name, type, default, range or choices, help.

kinds        what an option is, and how each kind of value is read and checked
checking     how a result is checked: CheckOptions, VerifyOptions
rewriting    what is made: FcnOptions, SeparableOptions, GroupsOptions, ...
working      the other commands: BenchOptions, InspectOptions, ApplyOptions, RunOptions, ...
keywords     a function of an options object becomes one that takes them as keywords
"""

from convrewrite.options.checking import CheckOptions, Provider, VerifyOptions
from convrewrite.options.kinds import Option, options_of
from convrewrite.options.rewriting import (
    Accept,
    FcnOptions,
    GroupsOptions,
    LinearOptions,
    RewriteOptions,
    SeparableOptions,
    TradeOptions,
    TransformOptions,
)
from convrewrite.options.working import (
    ApplyOptions,
    BenchOptions,
    ChangeOptions,
    InitOptions,
    InspectOptions,
    LazyOptions,
    RunOptions,
)

__all__ = [
    "Accept",
    "ApplyOptions",
    "BenchOptions",
    "ChangeOptions",
    "CheckOptions",
    "FcnOptions",
    "GroupsOptions",
    "InitOptions",
    "InspectOptions",
    "LazyOptions",
    "LinearOptions",
    "Option",
    "Provider",
    "RewriteOptions",
    "RunOptions",
    "SeparableOptions",
    "TradeOptions",
    "TransformOptions",
    "VerifyOptions",
    "options_of",
]
