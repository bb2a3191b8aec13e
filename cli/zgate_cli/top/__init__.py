"""``zgatectl top``: the gateway, live.

`state` (what is known, what keys do) and `view` (what it looks like) are pure; `keys` reads what a
terminal sends; `terminal` has the terminal, `driver` puts them together.
"""
