"""The core: tables complete, life cycles, incidents, data, and random nets whose replay equals the live case."""
