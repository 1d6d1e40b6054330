"""What the daemon says about itself: log lines and counters.

A log line is data, never a sentence assembled from what a caller sent.
"""
