"""The Linux host that an agent or a connector runs on: names, routes, sysctls, its own folder."""
