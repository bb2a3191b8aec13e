/* SPDX-License-Identifier: Apache-2.0 */
/* Why a packet was dropped: the kernel's half of zgate_protocol.drop_reason.DropReason. The
 * loader compiles the two against each other: a program whose numbers differ does not load. */
#ifndef ZGATE_DROP_REASON_H
#define ZGATE_DROP_REASON_H

enum zg_drop_reason {
	ZG_DROP_NONE = 0,                    /* passed */
	ZG_DROP_NO_CLIENT = 1,               /* the address belongs to no known client */
	ZG_DROP_MALFORMED = 2,               /* the headers do not parse */
	ZG_DROP_UNKNOWN_NEXT_HEADER = 3,     /* an IPv6 header that cannot be walked */
	ZG_DROP_FRAGMENT_WITHOUT_FIRST = 4,  /* the first one was not seen, or not passed */
	ZG_DROP_POLICY_RULE = 5,             /* a deny rule matched */
	ZG_DROP_POLICY_DEFAULT = 6,          /* no rule matched; the default is deny */
	ZG_DROP_UNSOLICITED = 7,             /* inbound, and about no allowed flow */
	ZG_DROP_LINK_LOCAL = 8,              /* link-local addresses are never forwarded */
	ZG_DROP_FLOW_TABLE_FULL = 9,         /* no room for a new flow */
	ZG_DROP_NO_POLICY = 10,              /* nothing loaded, or none for this client */
	ZG_DROP_INTERNAL = 11,               /* a map or entry that must exist does not */
	ZG_DROP_NOT_IP = 12,                 /* neither IPv4 nor IPv6 */
	ZG_DROP_SOURCE_SPOOFED = 13,         /* not an address of the client it came from */
	ZG_DROP_RATE_LIMITED = 14,           /* more bytes than the client's limit */
	ZG_DROP_NEW_FLOW_LIMITED = 15,       /* more new flows than the client's limit */
	ZG_DROP_NO_BACKEND = 16,             /* no connector can take the flow */
	ZG_DROP_NOT_A_DESTINATION = 17,      /* an offer's address, named by a client */
	ZG_DROP_REASONS = 64,                /* how many counters there are */
};

#endif
