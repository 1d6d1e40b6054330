"""What happens to a case. Pure: plain functions over plain values.

Belongs here: commands, events, the state of a case, the rules that turn one into the other, and the reasons that
`explain` gives. Does not belong here: awaiting, clocks, random numbers, logging, files, sockets, storage keys.
Time arrives as an argument, ids are counters of the case.

    step(case, model, command, now)  ->  events      decide.py, settle.py; changes the case through emit only
    fold(case, event)                                apply.py; the one way a case changes, live and in replay
"""
