/* SPDX-License-Identifier: Apache-2.0 */
/* What carrier.c and carrier_send.c share. _GNU_SOURCE comes before it. */
#ifndef ZDP_CARRIER_PRIVATE_H
#define ZDP_CARRIER_PRIVATE_H

#include <sys/socket.h>
#include <sys/uio.h>

#include "carrier.h"
#include "outbox.h"
#include "timers.h"

/* Most messages of one recvmmsg. */
#define ZDP_RECEIVE_MOST 64
#define ZDP_CONTROL_BYTES 128

struct zdp_message_control {
	_Alignas(struct cmsghdr) uint8_t bytes[ZDP_CONTROL_BYTES];
};

struct zdp_carrier {
	int udp_fd, tun_fd;
	size_t cid_bytes;
	bool tun_wanted, tun_gone, has_gso, error_pending;
	struct zdp_coalescer *tun;
	struct zdp_outbox *outbox;
	struct zdp_reports reports;
	struct zdp_table by_cid, by_address;
	struct zdp_networks by_network;
	struct zdp_session *only;
	TAILQ_HEAD(zdp_active, zdp_session) active;
	struct zdp_timers timers;
	struct zdp_carrier_counters counters;
	uint8_t *received, *plain, *read;
	/* Of recvmmsg. */
	unsigned int calls; /* messages to ask for next time */
	struct mmsghdr messages[ZDP_RECEIVE_MOST];
	struct iovec pieces[ZDP_RECEIVE_MOST];
	struct zdp_path paths[ZDP_RECEIVE_MOST];
	struct zdp_message_control controls[ZDP_RECEIVE_MOST];
};

/* Everything that is in the outbox. What the socket does not take is lost, and counted. */
void zdp_carrier_send(struct zdp_carrier *carrier);

#endif
