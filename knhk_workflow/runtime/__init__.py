"""The shell around the core: what awaits, reads clocks, holds locks and talks to the store.

Belongs here: the engine, live cases, definitions, queries, records, time and ids. Does not belong here: what a command
does to a case (core), what a workflow means (model), bytes on disk (store).
"""
