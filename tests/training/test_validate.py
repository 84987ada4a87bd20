"""Checkpoints of strangers and of failing disks: refused in one line, before anything large is made of them."""

import importlib
import os
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from resnet_min.errors import UserError
from resnet_min.tasks import trained
from resnet_min.tasks.classify.options import ClassifyConfig
from resnet_min.training import checkpoint, validate
from resnet_min.training.optimizer import make_optimizer

ROOT = Path(__file__).parents[2]
SIZES = dict(arch="resnet20", blocks=(1, 1), widths=(4, 8), strides=(1, 2))


def snapshot(optimizer="sgd", classes=("a", "b", "c"), **options):
    """A checkpoint whose optimizer has taken a step."""
    config = ClassifyConfig(**{**SIZES, "data": "digits", "mean": (0.5,) * 3, "std": (0.2,) * 3, **options})
    config = ClassifyConfig(**{**vars(config), "optimizer": optimizer})
    net = config.make_task().build(classes).to(memory_format=torch.channels_last)
    steps = make_optimizer(config, net)
    net(torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)).sum().backward()
    steps.step()
    return checkpoint.snapshot(net, steps, config, classes, epoch=1, step=1)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "last.pt"


def refused(path, said="."):
    """What `trained.load` says of a checkpoint that it refuses, in one line that names the file."""
    with pytest.raises(UserError, match=said) as error:
        trained.load(path)
    assert "\n" not in str(error.value) and str(error.value).count(str(path)) == 1


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_what_is_saved_is_what_is_loaded(path, optimizer):
    saved = snapshot(optimizer)
    checkpoint.save(path, saved)
    loaded = checkpoint.load(path)
    assert validate.digest(loaded) == validate.digest(saved) == torch.load(path)["digest"]
    net = trained.load(path).net
    steps = make_optimizer(trained.load(path).task.config, net)
    checkpoint.restore(loaded, net, steps, path)
    again = steps.state_dict()["state"]
    assert again.keys() == saved["optimizer"]["state"].keys() and len(again) > 10
    for number, slot in saved["optimizer"]["state"].items():
        assert all(torch.equal(value, again[number][name]) for name, value in slot.items())


def test_checkpoints_of_before_the_digest_load(path):
    torch.save(snapshot(), path)
    assert trained.load(path).epoch == 1
    torch.save({**snapshot(), "place": {"step": 3}}, path)  # what a later version adds
    assert trained.load(path).epoch == 1


OTHERS = [1, -1, 2**60, True, 0.5, float("nan"), "x", None, [], {}, torch.zeros(3), [[1]], {"a": torch.zeros(1)}]
TENSORS = {
    "a list": lambda t: t.tolist(),
    "none": lambda t: None,
    "sparse": lambda t: t.to_sparse(),
    "meta": lambda t: t.to("meta"),
    "quantised": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    "complex": lambda t: t.to(torch.complex64),
    "float64": lambda t: t.double(),
    "int32": lambda t: t.int(),
    "bool": lambda t: t.bool(),
    "expanded": lambda t: t.flatten()[:1].expand(t.numel()).view(t.shape),
    "strided": lambda t: t.repeat(2, 1, 1, 1)[::2],
    "larger": lambda t: t.repeat(2, 1, 1, 1),
    "flat": lambda t: t.flatten(),
    "nested": lambda t: torch.nested.nested_tensor([t[0], t[1]]),
}


@pytest.mark.parametrize("key", validate.FORM)
def test_an_entry_of_another_kind(path, key):
    saved, seen = snapshot(), 0
    for other in OTHERS:
        if not validate.FORM[key].fits(other):
            seen += 1
            torch.save({**saved, key: other}, path)
            refused(path, f"its {key} is ")
    assert seen >= 9


@pytest.mark.parametrize("kind", TENSORS)
def test_a_weight_of_another_kind(path, kind):
    saved = snapshot()
    name = "layer1.0.conv1.weight"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of prototypes
        saved["model"][name] = TENSORS[kind](saved["model"][name])
        torch.save(saved, path)
    refused(path)


def test_weights_that_share_memory(path):
    saved = snapshot()
    saved["model"]["layer1.0.conv2.weight"] = saved["model"]["layer1.0.conv1.weight"]
    torch.save(saved, path)
    refused(path, "share their memory")


CLASSES = {
    "numbers": ([1, 2, 3], "different names"),
    "bytes": (["a", b"b", "c"], "foreign objects"),
    "one text": ("abc", "different names"),
    "twice": (["a", "b", "a"], "different names"),
    "long": (["a", "b", "c" * 1001], "different names of at most 1,000 characters"),
    "fewer": (["a", "b"], "another architecture"),
    "none": ([], "not a sound checkpoint: num_classes is a whole number of at least 1; got 0"),
}


@pytest.mark.parametrize("kind", CLASSES)
def test_classes(path, kind):
    classes, said = CLASSES[kind]
    torch.save({**snapshot(), "classes": classes}, path)
    refused(path, said)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("epochs", "164", "--epochs is a whole number; got '164'"),
        ("epochs", True, "--epochs is a whole number; got True"),
        ("epochs", 1.5, "--epochs is a whole number"),
        ("epochs", None, "--epochs is a whole number; got None"),
        ("seed", 2**70, "--seed is a whole number"),
        ("lr", float("inf"), "--lr is a finite number; got inf"),
        ("gamma", float("nan"), "--gamma is a finite number; got nan"),
        ("plain", "no", "--plain is true or false; got 'no'"),
        ("arch", 18, "--arch is a text; got 18"),
        ("arch", "resnet19", "unknown arch"),
        ("widths", (4, "8"), "--widths is a whole number"),
        ("widths", 8, "--widths is a whole number; got 8"),
        ("widths", (3000, 3000), "another architecture"),
        ("widths", (10**9, 10**9), "from 1 to 65,536"),
        ("widths", (4, -8), "from 1 to 65,536"),
        ("blocks", (10**7, 10**7), "more than the"),
        ("blocks", (1,), "one number a stage"),
        ("strides", (1, 10**15), "from 1 to 65,536"),
        ("image_size", 10**6, "--image-size must be at most"),
        ("resize", 10**6, "--resize must be at most"),
        ("task", "crowds", "unknown task"),
        ("task", 3, "unknown task"),
        ("task", ["crowd"], "unknown task"),
        ("task", "crowd", "another architecture"),
        ("stem", "imagenet", "another architecture"),
    ],
    ids=str,
)
def test_options_go_through_the_checks_of_flags(path, option, value, said):
    saved = snapshot()
    saved["config"][option] = value
    torch.save(saved, path)
    refused(path, said)


STATES = {
    "another number of parameters": lambda state: state.update({10**6: state.pop(0)}),
    "another shape": lambda state: state[0].update(momentum_buffer=torch.zeros(3)),
    "none of one parameter": lambda state: state.pop(5),
    "an empty one": lambda state: state[5].clear(),
    "another optimizer": lambda state: state[0].update(exp_avg=torch.zeros(3)),
    "a number": lambda state: state[0].update(momentum_buffer=3.0),
}


@pytest.mark.parametrize("kind", STATES)
def test_an_optimizers_state_of_another_net(path, kind):
    saved = snapshot()
    STATES[kind](saved["optimizer"]["state"])
    torch.save(saved, path)
    subject = trained.load(path)  # to evaluate, it is not needed
    steps = make_optimizer(subject.task.config, subject.net)
    with pytest.raises(UserError, match="the state of another optimizer"):
        checkpoint.restore(checkpoint.load(path), subject.net, steps, path)


def test_a_state_of_no_generator(path):
    for state in (torch.zeros(5, dtype=torch.uint8), torch.full((5056,), 255, dtype=torch.uint8)):
        torch.save({**snapshot(), "rng": {"cpu": state}}, path)
        subject = trained.load(path)
        steps = make_optimizer(subject.task.config, subject.net)
        with pytest.raises(UserError, match="no state of torch's generators") as error:
            checkpoint.restore(checkpoint.load(path), subject.net, steps, path)
        assert "\n" not in str(error.value)


def test_the_options_of_the_optimizer_are_the_configs(path):
    saved = snapshot(momentum=0.5)
    saved["optimizer"]["param_groups"][0].update(momentum=7.0, lr="x", maximize=[True])
    torch.save(saved, path)
    subject = trained.load(path)
    steps = make_optimizer(subject.task.config, subject.net)
    checkpoint.restore(checkpoint.load(path), subject.net, steps, path)
    assert steps.param_groups[0]["momentum"] == 0.5 and steps.param_groups[0]["maximize"] is False


@pytest.mark.parametrize("name", ["eval", "visualize", "train"])
def test_other_files(path, name, tmp_path):
    """A text, a picture, a pickle of protocol 4, a folder, an archive of something else, none of them by any script."""
    path.write_text("root:x:0:0:root:/root:/bin/bash\n" * 30)
    script = importlib.import_module(name)
    before = {"eval": [], "visualize": ["--list-layers"], "train": ["--resume"]}[name]
    with pytest.raises(UserError, match="is not a checkpoint, or a damaged one"):
        script.main([*before, str(path)])
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "no checkpoint")
    with pytest.raises(UserError, match="is not a readable checkpoint"):
        script.main([*before, str(path)])
    for content in ([1, 2], None, torch.zeros(3), {"model": 3}, {}):
        torch.save(content, path)
        with pytest.raises(UserError, match="not a checkpoint of this project"):
            script.main([*before, str(path)])


def repacked(path, compression=zipfile.ZIP_STORED, more=(), pickled=None):
    """The archive at `path`, written anew by zipfile."""
    with zipfile.ZipFile(path) as old:
        members = {info.filename: old.read(info) for info in old.infolist()}
    if pickled is not None:
        members["last/data.pkl"] = pickled
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as new:
        warnings.simplefilter("ignore")  # of names given twice
        for name, content in [*members.items(), *more]:
            new.writestr(name, content)


def test_archives_that_torch_does_not_write(path):
    checkpoint.save(path, snapshot())
    whole = path.read_bytes()
    name = zipfile.ZipFile(path).namelist()[0].split("/")[0]
    repacked(path)
    assert trained.load(path).epoch == 1  # stored, as torch's are
    repacked(path, zipfile.ZIP_DEFLATED)
    refused(path, "compressed")
    path.write_bytes(whole)
    repacked(path, more=[(f"{name}/data/0", bytes(100))])
    refused(path, "overlap")
    path.write_bytes(whole + bytes(100))
    refused(path, "two directories, or bytes around it|damaged")
    path.write_bytes(whole)
    repacked(path, more=[(f"{name}/other.pkl", bytes(validate.MOST_PICKLE + 1))])
    refused(path, "larger than 8,388,608 bytes")


def test_a_file_that_is_cut_short_is_not_loaded_at_all(path):
    checkpoint.save(path, snapshot())
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match="damaged or cut short"):
        validate.check_file(path)


def test_the_directory_is_the_one_that_torch_goes_by(path):
    """The one of archives larger than 4 GB, which torch.save always writes."""
    checkpoint.save(path, snapshot())
    whole = path.read_bytes()
    end = len(whole) - validate.DIRECTORY_END_64.size

    def directory(changed=None):
        content = bytearray(whole)
        if changed is not None:
            content[end + changed] ^= 1
        path.write_bytes(content)
        with open(path, "rb") as file:
            return validate._directory(file)

    start = zipfile.ZipFile(path).start_dir
    assert directory() == start and directory(48) == start ^ 1  # its offset
    assert directory(0) == directory(64) == -1  # its signature; where it itself is


def test_a_file_of_old_has_pickles_of_a_limited_size(path, monkeypatch):
    torch.save(snapshot(), path, _use_new_zipfile_serialization=False)
    validate.check_file(path)
    monkeypatch.setattr(validate, "MOST_PICKLE", 1000)
    with pytest.raises(UserError, match="is not a checkpoint, or a damaged one"):
        validate.check_file(path)


@pytest.mark.parametrize("value", [1e300, -1e300, float("inf"), float("nan"), 10**400, True, "1", None], ids=repr)
def test_no_number(value):
    assert not validate.is_number(value) and validate.is_number(-1e299) and validate.is_number(0)


PROGRESS = dict(losses=torch.zeros(3, dtype=torch.float64), figures=1.5, seen=12, seconds=0.5)
NO_PROGRESS = dict(
    losses=([0.0], torch.zeros(3, dtype=torch.int64), torch.zeros(3, 1)), figures=(float("nan"), None), seen=(-1, 0.5),
    seconds=("1", True),
)  # fmt: skip


def test_progress_within_an_epoch():
    assert validate.is_progress(PROGRESS) and not validate.is_progress(list(PROGRESS))
    for key, others in NO_PROGRESS.items():
        assert not validate.is_progress({name: value for name, value in PROGRESS.items() if name != key})
        assert not any(validate.is_progress({**PROGRESS, key: other}) for other in others)


def test_two_directories_in_one_archive(path):
    """torch reads the directory whose offset the archive gives, zipfile the one that lies before its end."""
    checkpoint.save(path, snapshot())
    repacked(path, zipfile.ZIP_DEFLATED)
    bad = path.read_bytes()
    checkpoint.save(path, snapshot())
    repacked(path)
    good = bytearray(path.read_bytes())
    end = len(good) - 22
    offset = int.from_bytes(good[end + 16 : end + 20], "little")
    for wrong in (offset - 46, offset + 46, 0, len(bad)):
        good[end + 16 : end + 20] = wrong.to_bytes(4, "little")
        path.write_bytes(good)
        refused(path)


def test_values_within_values(path):
    deep = []
    for _ in range(30):
        deep = [deep] * 30  # 30**30, in a few bytes
    torch.save({**snapshot(), "more": deep}, path)
    refused(path, "more than 8 deep")
    wide = [["x"] * 2000] * 2000
    torch.save({**snapshot(), "more": wide}, path)
    refused(path, "more than 1,000,000 values")


def test_calls_that_torch_allows_and_a_checkpoint_has_no_use_for(path):
    class Bytes:
        def __reduce__(self):
            return bytearray, (10**10,)

    torch.save({**snapshot(), "more": Bytes()}, path)
    refused(path, "foreign objects: builtins bytearray|__builtin__ bytearray")


@pytest.mark.parametrize("save", [checkpoint.save, lambda path, saved: torch.save(saved, path)], ids=["digest", "none"])
def test_damaged_bytes_are_noticed(path, save):
    """Each flipped bit is noticed, or changes nothing that is loaded: by checksums alone where there is no digest."""
    saved = snapshot()
    save(path, saved)
    whole, wanted, rng = path.read_bytes(), validate.digest(saved), np.random.default_rng(0)
    noticed = 0
    for _ in range(100):
        bits = np.frombuffer(whole, np.uint8).copy()
        bits[rng.integers(len(bits))] ^= 1 << rng.integers(8)
        path.write_bytes(bits.tobytes())
        try:
            assert validate.digest(checkpoint.load(path)) == wanted
        except UserError as error:
            noticed += 1
            assert "\n" not in str(error)
    assert noticed > 30


def test_the_digest_is_of_every_value():
    values = torch.zeros(10_000)
    before = validate.digest({"values": values})
    values[5_000] = 1e-30
    assert validate.digest({"values": values}) != before


def test_the_digest_notices_what_checksums_do_not(path):
    saved = snapshot()
    digest = validate.digest(saved)
    saved["model"]["fc.bias"][0] += 1e-3
    torch.save({**saved, "digest": digest}, path)
    refused(path, "damaged: what it holds is not what was saved")
    saved = snapshot()
    saved["config"]["lr"] = 0.5
    torch.save({**saved, "digest": digest}, path)
    refused(path, "damaged")


BOMBS = {
    "widths": lambda path: torch.save(changed(widths=(3000, 3000, 3000), blocks=(1, 1, 1), strides=(1, 2, 2)), path),
    "blocks": lambda path: torch.save(changed(blocks=(10**7, 10**7)), path),
    "classes": lambda path: torch.save({**snapshot(), "classes": [str(n) for n in range(100_000)]}, path),
    "expanded": lambda path: torch.save(expanded(), path),
    "deflated": lambda path: deflated(path),
}


def changed(**options):
    saved = snapshot()
    saved["config"].update(options)
    return saved


def expanded():
    saved = snapshot()
    saved["model"]["fc.weight"] = torch.zeros(1, 1).expand(10**9, 8)
    return saved


def deflated(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("last/data.pkl", "w") as file:
        for _ in range(100):
            file.write(bytes(2**20))


MEASURE = """
import resource, sys, time
sys.path.insert(0, sys.argv[1])
from resnet_min.errors import UserError
from resnet_min.tasks import trained
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[2:]:
    before, began = peak(), time.process_time()
    try:
        trained.load(path)
        print("loaded", path)
    except UserError as error:
        print((peak() - before) // 1024, round(time.process_time() - began, 1), error)
"""


def test_small_files_stay_small_in_memory(tmp_path):
    """Files of at most 2 MB that describe gigabytes are refused within 40 MB and 2 s of processor time."""
    paths = []
    for kind, make in BOMBS.items():
        paths.append(str(tmp_path / f"{kind}.pt"))
        make(paths[-1])
        assert Path(paths[-1]).stat().st_size < 2 * 2**20
    unmeasured = {key: value for key, value in os.environ.items() if key != "COVERAGE_PROCESS_START"}  # it takes time
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, ROOT, *paths], env=unmeasured, capture_output=True, text=True
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == len(BOMBS), done.stderr
    for line in lines:
        megabytes, seconds, said = line.split(maxsplit=2)
        assert int(megabytes) <= 40 and float(seconds) < 2, said
