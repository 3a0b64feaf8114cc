"""The command line: one file per command, each with ``add_parser`` and the function that runs the command.

Results go to stdout, everything else to stderr. A command imports what it needs when it runs, so that ``gumba --help`` and the
commands without a model start fast.
"""
