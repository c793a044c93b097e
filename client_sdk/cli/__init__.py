"""The command `fedquorum`. Commands import what they need when they run, so that `--help` comes at once."""

import sys

from client_sdk.cli.application import app
from client_sdk.cli.failures import one_line


def main() -> None:
    """Runs the command line: errors are one line on standard error; exit code 1 for an error, 2 for wrong usage."""
    try:
        code = app(prog_name="fedquorum", standalone_mode=False)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read the output has seen enough; closing here keeps Python from complaining at its own exit.
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        line = one_line(error)
        if line is None:
            raise
        sys.stderr.write(f"fedquorum: {line.text}\n")
        sys.exit(line.exit_code)
    sys.exit(code if isinstance(code, int) else 0)
