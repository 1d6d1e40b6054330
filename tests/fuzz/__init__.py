"""Whatever bytes come in, only errors of ours come out: every decoder, parser and reader of ids.

    mutation.py   random input, and known good input spoilt
    targets.py    what is fed, with good examples of its input
    fuzz.py       the loop, and what it found

`python -m tests.fuzz [--target NAME]... [--inputs N] [--seed N]`; a finding prints the command that shows it again.
"""
