"""The commit of a record, marked where code that makes its numbers differs from what is committed."""

import subprocess

import pytest

from balancebench_udi import runner

FILES = (
    "balancebench_udi/runner.py",
    "balancebench_udi/nets/model.py",
    "baselines/joint.py",
    "registry.py",
    "benchmarks/run.py",
    "benchmarks/protocols/quick.yaml",
    "README.md",
    "tests/test_run.py",
)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with these files, all committed, whose runner.py takes the place of ours."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("as committed")
    who = ("-c", "user.name=name", "-c", "user.email=name@example.org", "-c", "commit.gpgsign=false")
    for words in (("init", "-q"), ("add", "."), (*who, "commit", "-q", "-m", "all")):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    monkeypatch.setattr(runner, "__file__", str(tmp_path / "balancebench_udi" / "runner.py"))
    return tmp_path


def found():
    return runner._commit.__wrapped__()  # without its memory


@pytest.mark.parametrize("name", FILES)
def test_only_changed_code_is_marked(checkout, name):
    clean = found()
    assert len(clean) == 12
    (checkout / name).write_text("changed")
    code = name.endswith(".py") and not name.startswith("tests")
    assert found() == (clean + "+" if code else clean)
    (checkout / name).unlink()
    assert found() == (clean + "+" if code else clean)


def test_untracked_files_do_not_count(checkout):
    clean = found()
    (checkout / "benchmarks" / "mine.py").write_text("new")
    assert found() == clean


def test_none_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "__file__", str(tmp_path / "runner.py"))
    assert found() is None
