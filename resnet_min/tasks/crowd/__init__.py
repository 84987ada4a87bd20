"""Crowds: trained on density maps, judged by the error of the count."""
