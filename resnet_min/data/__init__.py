"""Images in memory: decoded once into a cache, mapped from it, cropped and flipped batch by batch."""

from .splits import Dataset, Split, load

__all__ = ["Dataset", "Split", "load"]
