"""Ours beside what a user would pick instead: `python -m tools.benchmark TABLE`. A file of `TABLES` a table."""

# Each is a module here that defines `cases(args) -> Iterator[Case]`: see timing.py. It may also define `run`, to be
# called in place of timing's, `print_row`, in place of the common one, and `VERSIONS`, the further packages that its
# figures depend on.
TABLES = ("augment", "roofline", "kernels", "training", "scaling", "inference", "serving", "server")
