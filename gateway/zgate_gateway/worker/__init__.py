"""Worker processes: the sessions of one core, and how the supervisor keeps them.

    supervisor (the daemon)   crew.py      starts them, restarts them, answers them
    both                      messages.py  what they say to each other
                              channel.py   how: one message a packet, with descriptors
    worker (a child)          child.py     listener, sessions, packets
                              __main__.py  the process

The child imports nothing that the supervisor alone needs: no compiler, no database, no models.
"""
