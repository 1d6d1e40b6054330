"""The measurements behind `scripts/bench`: real processes, real TLS, a real directory.

Everything that is compared is measured side by side in one run: pairs A B A B ..., and of each pair the ratio. The
machine may be busy with other things; a ratio of neighbours survives that, a single figure does not.

    samples      medians and their intervals
    workloads    the two nets, the requests
    processes    children and what they cost
    empty        a server with empty methods: the floor of this server stack
    client       the callers, in a process of their own
    inside       the engine without a daemon
    hops         what each part of a call's way costs
    report       rows, verdicts, the table
"""
