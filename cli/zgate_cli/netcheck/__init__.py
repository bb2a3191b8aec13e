"""``zgatectl netcheck``: what is between this device and its gateway, seen from the device.

`probe` looks, `judge` and `nat` say what it means (pure), `command` is the command line.
"""
