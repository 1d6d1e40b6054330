"""The 43 workflow control-flow patterns as data: what each means, which construct carries it, and a net that shows it.

Belongs here: one entry per pattern, grouped as the literature groups them, and the lookup by number, name or alias.
Does not belong here: running them. A pattern's net is an ordinary workflow document; the same core runs it as any
other (`runtime/sandbox.py`), so there is no second implementation.

Source of names, numbers and semantics: Russell, ter Hofstede, van der Aalst, Mulyar, "Workflow Control-Flow Patterns:
A Revised View", BPM Center report BPM-06-22, 2006.
"""
