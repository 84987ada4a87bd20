"""What a report shows of the inside of a network: every kind of picture of viz/looking.py once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..model import backbone_of
from ..training.hardware import cpu
from ..viz import layers, looking, pictures
from .task import Split
from .trained import Trained


def draw(
    subject: Trained, split: Split, name: str, picture_of: Callable[[str], Path], number: int = 0, title: str = ""
) -> None:
    """Draw the filters of a network, and what it makes of image `number` of a split; on the CPU, where it must be.

    name: of the network, in titles. picture_of: what is drawn -> its file.
    """
    task, net, model = subject.task, subject.net.cpu(), backbone_of(subject.net)
    config, last = task.config, f"layer{model.stages}"
    view = looking.View(net, model, name, subject.classes, config.mean, config.std, title)
    looking.check(view, ["all"], None, config.input_size)
    weight = layers.convolution(model, "conv1").weight.detach().float()
    pictures.filters(weight, picture_of("filters"), layer=f"{name}: conv1", title=title)

    image = split.subset([number])
    (said,) = task.answer(net, [(f"image {number}", image)], subject.classes, cpu())
    ((x, _),) = task.batches(image, cpu(), batch_size=1).ordered()
    seen = looking.Subject(x, view.picture(x[0]), said.caption)
    looking.features(view, seen, ["all"], None, picture_of("features"), each=False, grey=False)
    looking.reconstruct(view, seen, ["all"], None, None, True, picture_of("reconstruct"))
    target = model(x).argmax().item() if subject.classes else None
    looking.gradcam(view, seen, ["all"], target, picture_of("gradcam"))

    def batches_of(numbers: Sequence[int]) -> Iterator:
        some = split if len(numbers) == len(split) else split.subset(numbers)
        return task.batches(some, cpu(), batch_size=256).ordered()

    looking.top(view, batches_of, len(split), last, None, picture_of("top"))
