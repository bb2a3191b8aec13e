/* SPDX-License-Identifier: Apache-2.0 */
/* The two ends of a path (RFC 9000 section 9). */
#ifndef ZDP_PATH_H
#define ZDP_PATH_H

#include <netinet/in.h>
#include <stdint.h>
#include <sys/socket.h>

union zdp_address {
	struct sockaddr any;
	struct sockaddr_in ipv4;
	struct sockaddr_in6 ipv6;
};

/* struct in_pktinfo, struct in6_pktinfo: only _GNU_SOURCE has them. */
#define ZDP_LOCAL_IPV4_BYTES 12
#define ZDP_LOCAL_IPV6_BYTES 20

/* Our end, as the control message of an answer has it. Empty on a socket that is bound to one
 * address: that is the one then. See local_address.py. */
struct zdp_local {
	uint8_t bytes[ZDP_LOCAL_IPV6_BYTES];
	uint8_t count;
};

struct zdp_path {
	union zdp_address peer;
	socklen_t peer_bytes;
	struct zdp_local local;
};

#endif
