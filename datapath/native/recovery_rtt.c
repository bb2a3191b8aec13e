/* SPDX-License-Identifier: Apache-2.0 */
#include "recovery_rtt.h"

void zdp_rtt_begin(struct zdp_rtt *rtt, uint64_t initial_ns)
{
	*rtt = (struct zdp_rtt){.smoothed = initial_ns ? initial_ns : ZDP_INITIAL_RTT_NS};
	rtt->variance = rtt->smoothed / 2;
}

void zdp_rtt_sample(struct zdp_rtt *rtt, uint64_t latest_ns, uint64_t ack_delay_ns,
		    uint64_t max_ack_delay_ns, uint64_t now_ns)
{
	uint64_t adjusted = latest_ns, difference;

	rtt->latest = latest_ns;
	if (!rtt->sampled) {
		rtt->sampled = true;
		rtt->first_sample_at_ns = now_ns;
		rtt->least = rtt->smoothed = latest_ns;
		rtt->variance = latest_ns / 2;
		return;
	}
	if (rtt->least == 0 || latest_ns < rtt->least)
		rtt->least = latest_ns;
	if (ack_delay_ns > max_ack_delay_ns)
		ack_delay_ns = max_ack_delay_ns;
	if (latest_ns >= rtt->least + ack_delay_ns)
		adjusted = latest_ns - ack_delay_ns;
	difference = rtt->smoothed > adjusted ? rtt->smoothed - adjusted : adjusted - rtt->smoothed;
	rtt->variance = (3 * rtt->variance + difference) / 4;
	rtt->smoothed = (7 * rtt->smoothed + adjusted) / 8;
}

void zdp_rtt_forget_least(struct zdp_rtt *rtt)
{
	rtt->least = 0;
}

uint64_t zdp_rtt_pto_ns(const struct zdp_rtt *rtt, uint64_t max_ack_delay_ns)
{
	uint64_t margin = 4 * rtt->variance;

	if (margin < ZDP_GRANULARITY_NS)
		margin = ZDP_GRANULARITY_NS;
	return rtt->smoothed + margin + max_ack_delay_ns;
}
