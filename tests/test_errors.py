import errno

import pytest

from refine.cli import main
from refine.errors import is_out_of_memory

TEXTS = [
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("can't start new thread"),
    RuntimeError("std::bad_alloc"),
]


@pytest.mark.parametrize("error", TEXTS, ids=repr)
def test_too_little_memory_is_known_by_each_library_s_words(error):
    assert is_out_of_memory(error)


def test_too_little_memory_is_known_behind_what_it_left_half_written():
    with pytest.raises(RuntimeError) as raised:  # noqa: PT012
        try:
            raise MemoryError
        finally:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 13455104 vs 13454992")
    assert is_out_of_memory(raised.value)


@pytest.mark.parametrize("error", [RuntimeError("unexpected pos 1 vs 2"), ValueError(), OSError(errno.ENOSPC, "")])
def test_another_error_is_no_lack_of_memory(error):
    assert not is_out_of_memory(error)


@pytest.mark.parametrize("error", TEXTS, ids=repr)
@pytest.mark.parametrize("words", [["weights", "list"], ["train", "recipe.toml", "out"], ["image.png", "mask.png"]])
def test_the_command_line_says_so_in_one_line(monkeypatch, capsys, words, error):
    def invoke(*args):
        raise error

    monkeypatch.setattr("typer.core.TyperGroup.invoke", invoke)
    with pytest.raises(SystemExit) as stop:
        main(words)
    told = capsys.readouterr().err
    assert stop.value.code == 1
    assert told.startswith("error: ")
    assert "memory" in told or "can't start" in told
    assert told.count("\n") == 1
