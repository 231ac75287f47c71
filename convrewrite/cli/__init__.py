"""The command line: the only place that knows flags, terminals and argv.

`app` declares the program; the other modules hold a family of commands each, or what they share.
"""
