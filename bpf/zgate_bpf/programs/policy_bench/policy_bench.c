/* SPDX-License-Identifier: Apache-2.0 */
/* Parts of the policy program, to be timed by BPF_PROG_TEST_RUN beside the whole. */
#include "../policy/policy.c"

/* Reads the same headers, decides nothing. */
int zg_parse_only(struct __sk_buff *skb)
{
	struct zg_packet packet = { .start = ETH_HLEN, .end = skb->len };

	if (zg_parse(skb, &packet))
		return TC_ACT_SHOT;
	return packet.service == 0xFFFF && packet.tcp_flags ? TC_ACT_SHOT : TC_ACT_OK;
}

/* The tables only: client 0, TCP over IPv4, no parsing but two loads. */
int zg_classify_only(struct __sk_buff *skb)
{
	struct zg_address destination = {};
	struct zg_active active;
	struct zg_answer answer;
	__u16 port_be = 0;

	if (!zg_read_active(&active) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + 16, &destination, 4) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + 22, &port_be, 2))
		return TC_ACT_SHOT;
	{
		const struct zg_question question = {
			.destination = &destination,
			.now_ns = bpf_ktime_get_coarse_ns(),
			.slot = active.slot_plus_1 - 1,
			.client_index = 0,
			.family = 4,
			.protocol = ZG_TCP,
			.service = bpf_ntohs(port_be),
		};

		return zg_judge(&question, &answer) ? TC_ACT_SHOT : TC_ACT_OK;
	}
}

/* Another source port each time, so that each repetition is a new flow. */
static __always_inline void zg_change_port(struct __sk_buff *skb)
{
	const __u16 port = bpf_get_prandom_u32();

	bpf_skb_store_bytes(skb, ETH_HLEN + 20, &port, 2, 0);
}

int zg_new_port(struct __sk_buff *skb)
{
	zg_change_port(skb);
	return TC_ACT_OK;
}

int zg_new_flow(struct __sk_buff *skb)
{
	zg_change_port(skb);
	return zg_conclude(skb, ZG_UP);
}
