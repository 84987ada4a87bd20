"""A slip on a command line is one line, whichever script it is."""

import importlib

import pytest

from resnet_min.errors import run_script


@pytest.mark.parametrize(
    ("script", "flags", "said"),
    [
        ("train", "--epoch 3", "unknown argument '--epoch', did you mean --epochs?; --help lists what there is"),
        ("train", "--epochs three", "argument --epochs: invalid int value: 'three'"),
        ("train", "--lr=0.1 --momentun=1", "unknown argument '--momentun', did you mean --momentum?; --help lists"),
        ("eval", "run --split tets", "argument --split: invalid choice: 'tets'"),
        ("eval", "run --json run/last.pt", "argument --json: 'run/last.pt' must end in .json"),
        ("eval", "run --report x.pdf", "argument --report: 'x.pdf' must end in .html"),
        ("visualize", "run --layer conv1 --out LICENSE", "argument --out: 'LICENSE' must end in .png or .pdf or .svg"),
        ("visualize", "run --layer conv1 --out a.jpg", "argument --out: 'a.jpg' must end in"),
        ("visualize", "--curves", "argument --curves: expected at least one argument"),
        ("tools.export", "run --to onnx --fussed", "unknown argument '--fussed', did you mean --fused?"),
        ("tools.export", "run", "the following arguments are required: --to"),
        ("tools.reproduce", "digits --smok", "unknown argument '--smok', did you mean --smoke?"),
        ("tools.benchmark.__main__", "kernel", "argument table: invalid choice: 'kernel'"),
        ("tools.package_weights", "run --forse", "unknown argument '--forse', did you mean --force?"),
    ],
)
def test_a_slip_is_one_line(script, flags, said, capsys):
    main = importlib.import_module(script).main
    with pytest.raises(SystemExit) as stop:
        run_script(lambda: main(flags.split()))
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.startswith(f"error: {said}") and err.count("\n") == 1
