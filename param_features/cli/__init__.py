"""The command line: `param-features demo | list-params | harvest | decompose | report | compare | push`.

Tables go to the output stream; progress, notices and errors to the error stream. Nothing else imports this package.
"""

from param_features.cli.app import main

__all__ = ["main"]
