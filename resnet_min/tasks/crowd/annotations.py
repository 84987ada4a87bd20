"""Reads annotations in a process of its own, since some damaged files crash SciPy's reader: `reader` starts it.

On stdin a JSON list of file names; on stdout a line of JSON for each, as soon as it is read: its points, [[x, y], …],
or what is wrong with it. Imports no torch, so that it starts quickly.
"""

import json
import resource
import signal
import sys

MOST_BYTES = 2**29  # of memory: a damaged file may speak of any size
MOST_SECONDS = 20  # for a file
MOST_HEADS = 100_000


def points_of(file: str) -> list[list[float]]:
    """The points in a ShanghaiTech annotation. Raises whatever SciPy's reader and other contents lead to."""
    import numpy as np
    from scipy.io import loadmat

    points = loadmat(file, variable_names=["image_info"])["image_info"][0, 0][0, 0][0]
    points = np.asarray(points, dtype=np.float64).reshape(-1, 2)  # MATLAB writes no heads as 0×0
    if len(points) > MOST_HEADS:
        raise ValueError(f"it has {len(points):,} heads, more than {MOST_HEADS:,}")
    return points.tolist()


def main() -> None:
    import scipy.io  # noqa: F401  (before there is a limit)

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = MOST_BYTES if hard == resource.RLIM_INFINITY else min(MOST_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    for file in json.load(sys.stdin):
        signal.alarm(MOST_SECONDS)
        try:
            answer = points_of(file)
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
