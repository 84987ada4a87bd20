"""Errors a user can cause: one line that says what was wrong and what to do, exit code 2, no traceback."""

import sys
from collections.abc import Callable

from .files import printable


class UserError(ValueError):
    """Something the caller can put right. The message is one line: what was got, what was wanted, what to do."""


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main` and leave the process with its exit code.

    0 when it returns; 2 and one line on stderr for a `UserError` or an operating-system error (a full disk, a read-only
    folder); 130 for Ctrl-C. Any other exception is a bug of ours and keeps its traceback.
    """
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no text
    try:
        main()
    except UserError as error:
        message = " ".join(str(error).split())
    except MemoryError as error:
        message = f"not enough memory: {error or 'see the sizes that were asked for'}"
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output left, as in `eval.py | head`
        sys.stderr.close()
        sys.exit(141)
    except OSError as error:
        message = f"{error.strerror or error}: {error.filename}" if error.filename else str(error)
    else:
        return
    print(f"error: {printable(message)}", file=sys.stderr)
    sys.exit(2)
