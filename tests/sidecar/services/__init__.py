"""What the calls mean: over a real server and a real engine on disk."""
