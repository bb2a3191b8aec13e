/* SPDX-License-Identifier: Apache-2.0 */
#include "recovery_ecn.h"

/* Marked packets before the answer of the path is awaited (RFC 9000 appendix A.4). */
#define TESTING_PACKETS 10

bool zdp_ecn_marks(const struct zdp_ecn *ecn)
{
	return ecn->state == ZDP_ECN_TESTING || ecn->state == ZDP_ECN_CAPABLE;
}

void zdp_ecn_sent(struct zdp_ecn *ecn, uint32_t packets)
{
	ecn->marked_total += packets;
	if (ecn->state == ZDP_ECN_TESTING && ecn->marked_total - ecn->marked_before >= TESTING_PACKETS)
		ecn->state = ZDP_ECN_UNKNOWN;
}

/* RFC 9000 section 13.4.2.1. Fewer marks than marked packets acknowledged: the path clears them or
 * the peer does not count. More than were sent: somebody sets them. */
static bool counts_hold(const struct zdp_ecn *ecn, const struct zdp_ecn_counts *counts,
			uint32_t newly)
{
	const struct zdp_ecn_counts *before = &ecn->counts;

	if (counts->ect0 < before->ect0 || counts->ce < before->ce || counts->ect1)
		return false;
	if (counts->ect0 - before->ect0 + counts->ce - before->ce < newly)
		return false;
	return counts->ect0 <= ecn->marked_total && counts->ce <= ecn->marked_total - counts->ect0;
}

uint64_t zdp_ecn_ack(struct zdp_ecn *ecn, const struct zdp_ack *ack, uint32_t newly)
{
	uint64_t ce = 0;

	if (ecn->state == ZDP_ECN_FAILED)
		return 0;
	if (ack->has_ecn ? !counts_hold(ecn, &ack->ecn, newly) : newly != 0) {
		ecn->state = ZDP_ECN_FAILED;
		return 0;
	}
	ecn->acked += newly;
	if (ack->has_ecn) {
		ce = ack->ecn.ce - ecn->counts.ce;
		ecn->counts = ack->ecn;
	}
	if (newly && ecn->state != ZDP_ECN_CAPABLE)
		ecn->state = ZDP_ECN_CAPABLE;
	return ce;
}

void zdp_ecn_lost(struct zdp_ecn *ecn, uint32_t marked_in_flight)
{
	if (ecn->state == ZDP_ECN_UNKNOWN && ecn->acked == 0 && marked_in_flight == 0)
		ecn->state = ZDP_ECN_FAILED;
}

void zdp_ecn_path_changed(struct zdp_ecn *ecn)
{
	/* The counts go on: they are the packet number space's, not the path's. */
	ecn->marked_before = ecn->marked_total;
	ecn->acked = 0;
	ecn->state = ZDP_ECN_TESTING;
}
