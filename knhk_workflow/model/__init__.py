"""What a workflow is. Pure: text in, immutable values out.

Belongs here: the parsed document (`spec`), how to read one (`document`, `parse`), expressions over case data
(`expression`) and the compiled net that the core runs (`net`). Does not belong here: what happens to a case.
"""
