"""Data directories, backups and exported histories as earlier versions wrote them: each must be read for ever.

`python -m tests.upgrade.record NAME` records one with the version at hand; what is recorded is never changed again.
"""
