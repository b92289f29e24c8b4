"""Work that is killed at any moment, has too little memory, or a full disk: nothing is lost, nothing is half-written.

python -m torture --seed 1    (in tests/; `make torture`)

A job reads ``in/`` of a folder and writes ``out/``. It is done once undisturbed; what other runs leave at any moment
has to be whole and a part of that, and what they leave at their end has to be all of it.
"""
