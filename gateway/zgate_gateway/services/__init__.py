"""Private services in the supervisor: who offers them, where they are, and what may be offered.

directory       names and their virtual IPs, for good; addresses of offers, for a while
authorization   may this connector offer that?
kernel_offers   services and offers as the kernel's tables know them
routes          networks behind connectors, and which of several leads there
connectors      every session that offers something: registration, health, silence, drain, end
report          all of it for administrators
"""
