"""What large organisations ask of the engine beyond running workflows: service levels and what hangs on them.

Belongs here: SLO windows and their configuration. Promotion gates, key management, receipts and regions have their
configuration types here and are refused by name until this version executes them.
"""
