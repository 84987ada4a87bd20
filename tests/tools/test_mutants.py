"""tools.mutants on code of a few lines."""

import shutil

from tools import mutants

CODE = '''"""A docstring stays: 1 < 2."""
def last(values: "list | None", n: int = 1) -> "int | None":
    if n < 2 and not values:
        raise ValueError(f"none of {n + 1}")
    return sorted(values, reverse=True)
'''


def test_each_mutant_has_one_place_changed():
    made = list(mutants.mutants("x.py", CODE))
    changes = {(m.place, m.was, m.now) for m in made}
    assert {
        ("x.py:2", "1", "2"),
        ("x.py:3", "n < 2", "(n <= 2)"),
        ("x.py:3", "n < 2", "(n >= 2)"),
        ("x.py:3", "n < 2 and not values", "(n < 2 or not values)"),
        ("x.py:3", "n < 2 and not values", "(n < 2)"),
        ("x.py:3", "n < 2 and not values", "False"),
        ("x.py:3", "not values", "(values)"),
        ("x.py:4", 'raise ValueError(f"none of {n + 1}")', "pass"),
        ("x.py:5", "sorted(values, reverse=True)", "None"),
        ("x.py:5", "sorted(values, reverse=True)", "(sorted(values))"),
        ("x.py:5", "True", "False"),
    } <= changes
    assert all("|" not in was and "{" not in was or was.startswith("raise") for _, was, _ in changes)
    for mutant in made:
        compile(mutant.source, "x.py", "exec")
        assert mutant.source == CODE.replace(mutant.was, mutant.now, 1) or mutant.source.count(mutant.now)


def test_a_draw_is_the_seeds_and_of_every_room():
    one, same, other = (mutants.draw("", 60, seed) for seed in (0, 0, 1))
    assert one == same != other and {room: len(drawn) for room, drawn in one.items()} == dict.fromkeys(one, 10)
    (drawn,) = (drawn for drawn in mutants.draw("kernels/checks.py:17", 10_000, 0).values() if drawn)
    assert {mutant.place for mutant, _ in drawn} == {"resnet_min/kernels/checks.py:17"}


def test_a_mutant_is_killed_survives_or_takes_too_long(tmp_path, monkeypatch):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_x.py").write_text("import few\n\ndef test_x():\n    assert few.number() == 1\n")
    for code, end in (("return 1", "SURVIVED"), ("return 2", "killed"), ("while True: pass", "timed out")):
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        (tmp_path / "few.py").write_text(f"def number():\n    {code}\n")
        assert mutants.outcome(tmp_path, "test_x.py", 10 if end != "timed out" else 3) == end
