"""Prometheus metrics: one snapshot per scrape, rendered.

Nothing is counted here. The kernel, the packet engine and the daemon count; a scrape asks them
once and renders what they said, so that ``/metrics``, ``zgatectl status`` and the kernel's tables
cannot disagree. Counters start at zero with the daemon, as Prometheus expects.

    source     asks the running gateway        (event loop; the kernel's tables in a thread)
    snapshot   what it said: plain values
    collector  the metric families of a snapshot, by subject (gateway, traffic, workers, services)
    text       the families as text            (in a thread)

``docs/metrics.md`` has them all.
"""
