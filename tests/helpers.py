"""What several test files share: how legible pictures are, a crowd made of blobs, tiny runs and how they are equal."""

import json
import tarfile
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from scipy.io import savemat

from resnet_min.training import checkpoint

# A run of a few seconds, on the images of `make_shades`. On the CPU, where the same run has the same bits.
TINY = (
    "--arch resnet20 --blocks 1 1 1 --widths 4 4 8 --batch-size 8 --lr 0.05 --amp off --dropout 0.3 --device cpu"
).split()


def check_legible(figure: Figure, path: Path, most_bytes: int = 400_000) -> None:
    """Every text is inside the picture and on no other text (slanted ones are not compared); the file is small."""
    with Image.open(path) as image:
        size = np.array(image.size)
    beyond = set()  # the labels of ticks beyond an axis' limits are never drawn
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if not low <= tick.get_loc() <= high:
                beyond |= {tick.label1, tick.label2}
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in beyond]
    boxes = np.array([text.get_window_extent().get_points() for text in texts])  # [N, low or high, x or y]
    names = [text.get_text() for text in texts]
    assert names
    outside = [names[i] for i in np.flatnonzero((boxes[:, 0] < -1).any(1) | (boxes[:, 1] > size + 1).any(1))]
    assert not outside
    level = np.array([text.get_rotation() in (0, 90) for text in texts])
    low, high = boxes[level, 0] + 1, boxes[level, 1] - 1
    on = (low[:, None] < high[None]).all(2) & (low[None] < high[:, None]).all(2)
    names = [name for name, is_level in zip(names, level, strict=True) if is_level]
    assert not [(names[i], names[j]) for i, j in zip(*np.nonzero(np.triu(on, 1)), strict=True)]
    assert path.stat().st_size < most_bytes


def mark(path, points):
    """An annotation as ShanghaiTech's are."""
    info = np.empty((1, 1), dtype=[("location", "O"), ("number", "O")])
    info[0, 0] = (np.asarray(points, dtype=float), np.array([[len(points)]]))
    cell = np.empty((1, 1), dtype=object)
    cell[0, 0] = info
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"image_info": cell})


def blobs(rng, size=(64, 96), most=12):
    """A picture with bright discs on noise, and their centres, which keep 12 pixels apart."""
    places = np.stack(np.meshgrid(range(6, size[1], 16), range(6, size[0], 16)), axis=-1).reshape(-1, 2)
    points = rng.permutation(places)[: rng.integers(0, most + 1)] + rng.random(2) * 4
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    picture = rng.normal(70, 12, (*size, 3))
    for px, py in points:
        picture[(x - px) ** 2 + (y - py) ** 2 < 16] = rng.uniform(170, 255, 3)
    return picture.clip(0, 255).astype(np.uint8), points


def make_part(root, truth="ground-truth", train=6, test=3, kind="jpg", **options):
    """A part of ShanghaiTech, of blobs."""
    rng = np.random.default_rng(0)
    for split, count in (("train_data", train), ("test_data", test)):
        (root / split / "images").mkdir(parents=True)
        for number in range(1, count + 1):
            picture, points = blobs(rng, **options)
            Image.fromarray(picture).save(root / split / "images" / f"IMG_{number}.{kind}")
            mark(root / split / truth / f"GT_IMG_{number}.mat", points)
    return root


def unpack_runs(root):
    """The four runs of fixtures/runs.tar.xz in the folder `root`, their data in it too: see test_old_runs."""
    part = make_part(root / "crowd", kind="png")  # which every decoder reads alike
    with tarfile.open(Path(__file__).parent / "fixtures" / "runs.tar.xz") as archive:
        # Python 3.10.12 and 3.11.4 brought the filter, without which 3.12 warns.
        archive.extractall(root, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    for path in root.glob("crowd-*/*.pt"):
        saved = torch.load(path, weights_only=True)
        saved["config"]["data"] = str(part)
        torch.save(saved, path)
    return root


def make_shades(root, train=17, test=6):
    """An image folder of two classes that differ in colour; `train` and `test` images of each."""
    draw = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for name, level in (("dark", 60), ("light", 180)):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = (level + draw.integers(-50, 50, (16, 16, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def rows(path):
    """The lines of a run's metrics.jsonl, but for what the clock says."""
    lines = [json.loads(line) for line in Path(path, "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]


def assert_same_run(one, two, name="last.pt"):
    """Logs and the checkpoint of that name are equal, to the bit."""
    assert rows(one) == rows(two)
    assert Path(one, "steps.jsonl").read_text() == Path(two, "steps.jsonl").read_text()
    first, second = checkpoint.load(Path(one, name)), checkpoint.load(Path(two, name))
    assert first["epoch"] == second["epoch"] and first["step"] == second["step"]
    assert first.keys() == second.keys()
    for entry in {"model", "trained"} & first.keys():
        for name, tensor in first[entry].items():
            assert torch.equal(tensor, second[entry][name]), name
    states = (saved["optimizer"]["state"].values() for saved in (first, second))
    for one_state, two_state in zip(*states, strict=True):
        assert one_state.keys() == two_state.keys()
        assert all(torch.equal(tensor, two_state[name]) for name, tensor in one_state.items())
    assert torch.equal(first["rng"]["cpu"], second["rng"]["cpu"])
