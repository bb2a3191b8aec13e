/* SPDX-License-Identifier: Apache-2.0 */
/* A Reno TCP with selective ACKs and no timers but one. */

static void reno_begin(struct reno *reno)
{
	reno->window = 10;
	reno->threshold = 1e9;
}

static void reno_lost(struct reno *reno, uint64_t number)
{
	reno->in_flight--;
	if (number < reno->recovery_point)
		return;
	reno->recovery_point = reno->next;
	reno->window = reno->window / 2 < 2 ? 2 : reno->window / 2;
	reno->threshold = reno->window;
}

static void reno_ack(struct reno *reno, uint64_t number, uint64_t now)
{
	reno->last_progress_ns = now;
	if (number < reno->una || reno->acked[number % RING])
		return;
	reno->acked[number % RING] = 1;
	reno->in_flight--;
	if (number > reno->highest)
		reno->highest = number;
	if (number >= reno->recovery_point)
		reno->window += reno->window < reno->threshold ? 1 : 1 / reno->window;
	if (reno->window > 30000)
		reno->window = 30000;
	while (reno->una < reno->next && (reno->acked[reno->una % RING] || reno->una + 3 <= reno->highest)) {
		if (!reno->acked[reno->una % RING])
			reno_lost(reno, reno->una);
		reno->una++;
	}
}

static bool reno_may_send(const struct reno *reno)
{
	return (double)reno->in_flight + 1 <= reno->window && reno->next - reno->una < RING - 1;
}

static uint64_t reno_send(struct reno *reno)
{
	reno->acked[reno->next % RING] = 0;
	reno->in_flight++;
	return reno->next++;
}

static void reno_timeout(struct reno *reno, uint64_t now)
{
	if (reno->in_flight == 0 || now - reno->last_progress_ns < SECOND / 2)
		return;
	reno->threshold = reno->window / 2 < 2 ? 2 : reno->window / 2;
	reno->window = 1;
	reno->in_flight = 0;
	reno->una = reno->recovery_point = reno->next;
	reno->last_progress_ns = now;
}
