"""Sans-IO protocol code: no socket, no clock, no log, and nothing else of zgate's."""
