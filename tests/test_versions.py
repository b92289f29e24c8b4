import subprocess

from refine.versions import commit, versions


def test_the_commit_is_that_of_the_codes_own_checkout(tmp_path):
    def git(*words: str) -> str:
        person = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        done = subprocess.run(["git", *person, *words], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    assert commit(tmp_path) == ""
    git("init", "-q")
    (tmp_path / "file").write_text("1")
    (tmp_path / "below").mkdir()
    git("add", "file")
    git("commit", "-q", "-m", "first")
    head = git("rev-parse", "HEAD")
    assert commit(tmp_path) == head
    assert commit(tmp_path / "below") == ""  # as a package that is installed inside another project's checkout
    (tmp_path / "file").write_text("2")
    assert commit(tmp_path) == f"{head} and uncommitted changes"


def test_a_machine_without_git_has_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() == ""


def test_versions_name_what_computes():
    assert {"python", "refine-masks", "torch", "numpy", "opencv-python"} == set(versions())
