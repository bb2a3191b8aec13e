"""The connector: runs beside private applications, dials out, offers services or networks."""
