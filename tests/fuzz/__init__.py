"""Bytes from outside, made up: every decoder must answer with its own error, and nothing else.

    python -m tests.fuzz --minutes 10             all targets in turn
    python -m tests.fuzz --minutes 10 frames      one of them
    python -m tests.fuzz --input FILE frames      one input again

A target takes bytes and returns; an exception that leaves it is a defect, and so is a call that takes
seconds or hundreds of megabytes. Where atheris is installed it looks for inputs by coverage; otherwise
inputs of the corpus are changed at random. `tests/test_fuzz.py` tries every truncation and every
flipped bit of the corpus. What once broke a decoder is kept in `corpus/TARGET/`.
"""
