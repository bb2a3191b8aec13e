/* SPDX-License-Identifier: Apache-2.0 */
/* Whether path and peer carry ECN: validation as RFC 9000 section 13.4.2 and appendix A.4 say. */
#ifndef ZDP_RECOVERY_ECN_H
#define ZDP_RECOVERY_ECN_H

#include <stdbool.h>
#include <stdint.h>

#include "frames.h"

enum zdp_ecn_state { ZDP_ECN_TESTING, ZDP_ECN_UNKNOWN, ZDP_ECN_CAPABLE, ZDP_ECN_FAILED };

struct zdp_ecn {
	enum zdp_ecn_state state;
	uint64_t marked_total;	/* packets sent with ECT(0) on this connection */
	uint64_t marked_before; /* of them, before this path */
	uint64_t acked;		/* of those sent on this path */
	struct zdp_ecn_counts counts; /* as of the largest ACK so far */
};

void zdp_ecn_sent(struct zdp_ecn *ecn, uint32_t packets);
/* An ACK that raised the largest acknowledged; `newly` of the packets that it newly acknowledged were
 * sent with ECT(0). Returns how many more were marked CE than was known. */
uint64_t zdp_ecn_ack(struct zdp_ecn *ecn, const struct zdp_ack *ack, uint32_t newly);
/* A marked packet was lost: what drops all of them is found so. */
void zdp_ecn_lost(struct zdp_ecn *ecn, uint32_t marked_in_flight);
void zdp_ecn_path_changed(struct zdp_ecn *ecn);
bool zdp_ecn_marks(const struct zdp_ecn *ecn);

#endif
