/* SPDX-License-Identifier: Apache-2.0 */
/* Parts of the policy program, to be timed by BPF_PROG_TEST_RUN beside the whole. */
#include "../policy/policy.c"

/* Reads the same headers, decides nothing. */
int zg_parse_only(struct __sk_buff *skb)
{
	struct zg_packet packet = { .start = ETH_HLEN, .end = skb->len };

	if (zg_parse(skb, &packet, false))
		return TC_ACT_SHOT;
	return packet.service == 0xFFFF && packet.tcp_flags ? TC_ACT_SHOT : TC_ACT_OK;
}

/* The tables only: client 0, TCP, no parsing but two loads. */
static __always_inline int zg_classify(struct __sk_buff *skb, const __u8 family,
				       const __u32 destination_offset,
				       const __u32 destination_bytes, const __u32 port_offset)
{
	struct zg_address destination = {};
	struct zg_active active;
	struct zg_answer answer;
	__u16 port_be = 0;

	if (!zg_read_active(&active) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + destination_offset, &destination,
			       destination_bytes) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + port_offset, &port_be, 2))
		return TC_ACT_SHOT;
	{
		const struct zg_question question = {
			.destination = &destination,
			.now_ns = bpf_ktime_get_coarse_ns(),
			.slot = active.slot_plus_1 - 1,
			.client_index = 0,
			.family = family,
			.protocol = ZG_TCP,
			.service = bpf_ntohs(port_be),
		};

		return zg_judge(&question, &answer) ? TC_ACT_SHOT : TC_ACT_OK;
	}
}

int zg_classify4(struct __sk_buff *skb)
{
	return zg_classify(skb, 4, 16, 4, 22);
}

int zg_classify6(struct __sk_buff *skb)
{
	return zg_classify(skb, 6, 24, 16, 42);
}

/* Another source port each time, so that each repetition is a new flow. */
static __always_inline void zg_change_port(struct __sk_buff *skb)
{
	const __u32 header_bytes = skb->protocol == bpf_htons(ETH_P_IPV6) ? 40 : 20;
	const __u16 port = bpf_get_prandom_u32();

	bpf_skb_store_bytes(skb, ETH_HLEN + header_bytes, &port, 2, 0);
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
