"""Files that people write, read strictly: one clear line for every mistake."""
