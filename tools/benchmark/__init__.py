"""Ours beside what a user would pick instead: `python -m tools.benchmark TABLE`. A file of `TABLES` a table."""

# Each is a module here that defines `cases(args) -> Iterator[Case]`: see timing.py. args: device, arch, batch.
TABLES = ("augment", "kernels", "training", "inference")
