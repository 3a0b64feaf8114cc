"""The command line: one file per command, each with ``add_parser`` and the function that carries it out.

Results go to stdout, everything said about them to stderr. What a command needs is imported when it runs, so that
``gumba --help`` and the commands without a model start at once.
"""
