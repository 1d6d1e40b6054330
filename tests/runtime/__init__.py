"""The engine through its public operations, in memory and on LevelDB, across restarts and failures."""
