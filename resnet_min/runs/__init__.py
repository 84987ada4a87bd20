"""Runs: what one trains with, its folder, what it ran on, and tables of many."""
