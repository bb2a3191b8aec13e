/* SPDX-License-Identifier: Apache-2.0 */
#include "recovery_pacing.h"

#define SECOND_NS 1000000000ULL
#define MS_NS 1000000ULL
#define QUANTUM_NS 1000000ULL /* as much as is sent in this time, */
#define QUANTUM_MAX_PACKETS 45 /* but no more than one GSO batch, */
#define QUANTUM_MIN_PACKETS 2
/* Timers and event loops come late: what they missed, up to this, may be made up. */
#define LATE_NS 1000000ULL
/* RFC 9002 section 7.7: a burst may be as long as the initial window. */
#define BURST_PACKETS 10

static uint64_t quantum(const struct zdp_pacing *pacing)
{
	uint64_t bytes = pacing->rate / (SECOND_NS / QUANTUM_NS);
	uint64_t least = (uint64_t)QUANTUM_MIN_PACKETS * pacing->packet_bytes;
	uint64_t most = (uint64_t)QUANTUM_MAX_PACKETS * pacing->packet_bytes;

	return bytes < least ? least : bytes > most ? most : bytes;
}

static uint64_t depth(const struct zdp_pacing *pacing)
{
	uint64_t bytes = quantum(pacing) + pacing->rate / (SECOND_NS / LATE_NS);
	uint64_t burst = (uint64_t)BURST_PACKETS * pacing->packet_bytes;

	return bytes > burst ? bytes : burst;
}

/* Small enough a number that a second's worth in nanoseconds does not overflow. */
static uint64_t bytes_per_ms(const struct zdp_pacing *pacing)
{
	return pacing->rate < 1000 ? 1 : pacing->rate / 1000;
}

static void fill(struct zdp_pacing *pacing, uint64_t now_ns)
{
	uint64_t most = depth(pacing), elapsed = now_ns - pacing->filled_ns, earned;

	if (now_ns <= pacing->filled_ns)
		return;
	earned = elapsed >= SECOND_NS ? most : elapsed * bytes_per_ms(pacing) / MS_NS;
	if (earned == 0)
		return; /* the time is not lost, it counts next time */
	pacing->tokens += earned;
	pacing->filled_ns = now_ns;
	if (pacing->tokens > most)
		pacing->tokens = most;
}

void zdp_pacing_set_rate(struct zdp_pacing *pacing, uint64_t rate, uint64_t now_ns)
{
	if (pacing->rate)
		fill(pacing, now_ns);
	else
		pacing->filled_ns = now_ns;
	if (pacing->rate == 0 && rate) {
		pacing->rate = rate;
		pacing->tokens = depth(pacing);
	}
	pacing->rate = rate;
}

uint64_t zdp_pacing_allowance(struct zdp_pacing *pacing, uint64_t now_ns)
{
	if (pacing->rate == 0)
		return UINT64_MAX;
	fill(pacing, now_ns);
	return pacing->tokens < quantum(pacing) ? 0 : pacing->tokens;
}

uint64_t zdp_pacing_at(const struct zdp_pacing *pacing)
{
	uint64_t wanted = quantum(pacing), per_ms = bytes_per_ms(pacing);

	if (pacing->rate == 0 || pacing->tokens >= wanted)
		return 0;
	return pacing->filled_ns + ((wanted - pacing->tokens) * MS_NS + per_ms - 1) / per_ms;
}

void zdp_pacing_sent(struct zdp_pacing *pacing, uint64_t bytes, uint64_t now_ns)
{
	if (pacing->rate == 0)
		return;
	fill(pacing, now_ns);
	pacing->tokens = pacing->tokens > bytes ? pacing->tokens - bytes : 0;
}
