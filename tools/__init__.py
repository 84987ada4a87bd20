"""What is run beside training: `python -m tools.NAME`."""
