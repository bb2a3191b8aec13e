/* SPDX-License-Identifier: Apache-2.0 */
/* What the engine leaves to Python: copies, so that buffers can be used again. Bounded. */
#ifndef ZDP_REPORT_H
#define ZDP_REPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "path.h"

enum zdp_report_kind {
	ZDP_REPORT_PACKET,       /* a UDP payload for aioquic, with the path that it came by */
	ZDP_REPORT_DATAGRAM,     /* a DATAGRAM frame's payload that only Python can judge */
	ZDP_REPORT_READ,         /* a read of the TUN: no session, unknown pair, or too big */
	ZDP_REPORT_PROBE_ACKED,  /* a path MTU probe of `number` bytes */
	ZDP_REPORT_PROBE_LOST,
	ZDP_REPORT_BAD_ACK,      /* the peer acknowledged what was never sent */
	ZDP_REPORT_AEAD_LIMIT,   /* too many forged packets (RFC 9001 section 6.6) */
	ZDP_REPORT_KEY_WORN,     /* the sending key of phase `number` has sealed enough: update it */
};

struct zdp_session;

struct zdp_report {
	enum zdp_report_kind kind;
	struct zdp_session *session; /* NULL: unknown */
	uint32_t offset, bytes;      /* into zdp_reports.data */
	uint32_t number;
	struct zdp_path path;
};

#define ZDP_REPORTS_MAX 2048
#define ZDP_REPORT_BYTES_MAX (16U << 20)

struct zdp_reports {
	struct zdp_report *items;
	uint8_t *data;
	uint32_t count, capacity, bytes, bytes_capacity;
	uint64_t lost; /* no memory, or more than the bounds */
};

/* Hand them over before more is received: a round adds 512 packets or 4 MB at most. */
bool zdp_reports_are_many(const struct zdp_reports *reports);
/* False: it is lost, and counted. */
bool zdp_report(struct zdp_reports *reports, enum zdp_report_kind kind,
		struct zdp_session *session, const void *data, size_t bytes, uint32_t number,
		const struct zdp_path *path);
/* The session is about to be freed. */
void zdp_reports_forget(struct zdp_reports *reports, const struct zdp_session *session);
void zdp_reports_free(struct zdp_reports *reports);

#endif
