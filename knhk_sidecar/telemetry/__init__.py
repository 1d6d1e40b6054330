"""What the daemon says about itself: log lines, numbers, and the checkpoints of its audit that it sends away.

A log line is data, never a sentence assembled from what a caller sent.
"""
