"""Photos decoded once: packed as uint8, memory-mapped, and gathered a whole batch at a time."""
