/* SPDX-License-Identifier: Apache-2.0 */
/* A UDP socket, a TUN, and the sessions between them: the way of a packet without Python.
 *
 *   1. receive   recvmmsg with UDP_GRO; runs of packets of one session
 *   2.           zdp_session_receive opens them, the coalescer writes them to the TUN
 *   3. read      the TUN, super-packets whole; destination address, or its network -> session
 *   4.           zdp_session_send_read cuts and seals, or queues
 *   5. serve     what is due: ACKs, queued packets, timers
 *   6. send      sendmsg with UDP_SEGMENT
 *
 * What is not the engine's is reported (report.h). One thread; no locks. */
#ifndef ZDP_CARRIER_H
#define ZDP_CARRIER_H

#include "networks.h"
#include "session.h"
#include "table.h"

struct zdp_carrier_counters {
	uint64_t received_packets, received_bytes, receive_calls;
	uint64_t sent_packets, sent_bytes, send_calls;
	uint64_t send_dropped; /* the socket's buffer was full, or the kernel refused */
	uint64_t tun_reads, tun_read_bytes;
	uint64_t no_session; /* read from the TUN, for nobody */
};

struct zdp_carrier;

/* The descriptors stay the caller's. NULL: no memory. */
struct zdp_carrier *zdp_carrier_new(int udp_fd, size_t cid_bytes);
void zdp_carrier_free(struct zdp_carrier *carrier);
void zdp_carrier_set_udp(struct zdp_carrier *carrier, int udp_fd);
/* A TUN with IFF_VNET_HDR; `tcp`, `udp`: whether it takes super-packets. -1 detaches. */
bool zdp_carrier_set_tun(struct zdp_carrier *carrier, int tun_fd, bool tcp, bool udp);
/* All that is read from the TUN is this session's; NULL: it is found by its destination. */
void zdp_carrier_set_only(struct zdp_carrier *carrier, struct zdp_session *session);

struct zdp_table *zdp_carrier_by_cid(struct zdp_carrier *carrier);
/* Keys: 4 or 16 bytes of address. */
struct zdp_table *zdp_carrier_by_address(struct zdp_carrier *carrier);
/* For addresses that are no session's own. */
struct zdp_networks *zdp_carrier_by_network(struct zdp_carrier *carrier);
struct zdp_reports *zdp_carrier_reports(struct zdp_carrier *carrier);
struct zdp_outbox *zdp_carrier_outbox(struct zdp_carrier *carrier);
const struct zdp_carrier_counters *zdp_carrier_counters(const struct zdp_carrier *carrier);
void zdp_carrier_tun_stats(const struct zdp_carrier *carrier, struct zdp_coalesce_stats *stats);
/* The session is about to be freed. */
void zdp_carrier_forget(struct zdp_carrier *carrier, struct zdp_session *session);
/* The session has something to do: zdp_carrier_run looks at it. */
void zdp_carrier_activate(struct zdp_carrier *carrier, struct zdp_session *session);

/* Goes round until both descriptors are empty, reports wait, or `limit_ns` have passed. True: more
 * waits. */
bool zdp_carrier_run(struct zdp_carrier *carrier, uint64_t limit_ns);
/* Serves the sessions that are active, without receiving or reading. */
void zdp_carrier_flush(struct zdp_carrier *carrier);
/* Whether the descriptor is one that the carrier reads by itself. */
bool zdp_carrier_owns(const struct zdp_carrier *carrier, int fd);
/* Whether Python must look: reports, an error, a TUN that is gone. */
bool zdp_carrier_is_wanted(const struct zdp_carrier *carrier);
/* When zdp_carrier_run is wanted though nothing arrives; ZDP_NEVER. */
uint64_t zdp_carrier_deadline(struct zdp_carrier *carrier, uint64_t now_ns);
/* What went wrong since the last call: the socket's error queue is worth a look. */
bool zdp_carrier_take_error(struct zdp_carrier *carrier);
bool zdp_carrier_tun_is_gone(const struct zdp_carrier *carrier);
uint64_t zdp_now_ns(void);

#endif
